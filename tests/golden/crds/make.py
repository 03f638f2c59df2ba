"""Reduce CRDs to the schemas of their version v1, without descriptions: `make.py FOLDER_OF_CRDS`.

The CRDs are those of two operators, both Apache-2.0:
- KubeRay 1.7.0 (github.com/ray-project/kuberay, ray-operator/config/crd/bases);
- the Prometheus operator 0.93.0 (github.com/prometheus-operator/prometheus-operator, example/prometheus-operator-crd).
"""

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
FILES = (
    "ray.io_rayjobs",
    "ray.io_rayservices",
    "monitoring.coreos.com_podmonitors",
    "monitoring.coreos.com_prometheusrules",
)


def without_descriptions(schema: Any, of_properties: bool = False) -> Any:
    """The schema; a property that is named `description` stays."""
    if isinstance(schema, list):
        return [without_descriptions(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: without_descriptions(value, key == "properties" and not of_properties)
        for key, value in schema.items()
        if key != "description" or of_properties
    }


for file in FILES:
    crd = yaml.safe_load((Path(sys.argv[1]) / f"{file}.yaml").read_text())
    version = next(version for version in crd["spec"]["versions"] if version["name"] == "v1")
    text = json.dumps(without_descriptions(version["schema"]["openAPIV3Schema"]), sort_keys=True)
    (HERE / f"{crd['spec']['names']['kind']}.json.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
