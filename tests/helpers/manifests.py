"""What a Kubernetes API server, the CRDs and KubeRay's operator would say, without any of them."""

import gzip
import json
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import kubernetes_validate
import yaml
from jsonschema import Draft202012Validator, ValidationError
from jsonschema.validators import extend

from system.manifests.infra import Infra
from system.recipe.load import load_config, parse_config
from system.recipe.model import RunConfig
from tests.helpers.paths import ROOT

GOLDEN = ROOT / "tests" / "golden" / "crds"
KUBERNETES = "1.33"
MAX_NAME = 47
"""The operator appends six characters, and a RayCluster's name has at most 53."""
PROMPTS = ["data.train=/runs/train.txt", "data.heldout=/runs/test.txt"]
SMALL = {"image": "tempflow:1", "runs": {"claim": "runs"}, "workers": {"cpus": 8, "gpus": 2}}
OWN = SMALL | {"learner": {"gpus": 1}, "reward": {"gpus": 1, "cpus": 2, "memory": "32Gi"}}


class _Widest(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, and what any other reader of YAML 1.1 or 1.2 takes for another kind than text."""


_Widest.yaml_implicit_resolvers = {first: [*found] for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Widest.add_implicit_resolver(
    "!other",
    re.compile(
        r"""(y|n|yes|no|on|off|true|false|null|~|<<|=
        |[-+]?[0-9][0-9_]*(\.[0-9_]*)?(e[-+]?[0-9]+)?|[-+]?\.[0-9_]+(e[-+]?[0-9]+)?|[-+]?\.(inf|nan)
        |[-+]?0[xob][0-9a-f_]+|[-+]?[0-9]+(:[0-5]?[0-9])+(\.[0-9]*)?|[0-9]+-[0-9]+-[0-9]+([Tt ].*)?)$""",
        re.IGNORECASE | re.VERBOSE,
    ),
    None,
)
_Widest.add_constructor("!other", lambda loader, node: Exception(f"{node.value} is no text to every reader"))


def read(text: str) -> list[Any]:
    """The documents of a text, as the reader sees them that takes the fewest things for text."""
    return list(yaml.load_all(text, _Widest))


def check(document: dict[str, Any]) -> None:
    """Raises what is wrong with a document; a key that no schema knows is wrong, too."""
    group, _, _ = document["apiVersion"].partition("/")
    if group not in ("ray.io", "monitoring.coreos.com"):
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
        return
    validator(document["kind"]).validate(document)
    if group != "ray.io":
        return
    spec = document["spec"]
    cluster = ray_cluster(document)
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", document["metadata"]["name"])
    assert len(document["metadata"]["name"]) <= MAX_NAME
    _check_cluster(cluster)
    if document["kind"] == "RayJob":
        assert spec["ttlSecondsAfterFinished"] == 0 or spec["shutdownAfterJobFinishes"]
        assert spec["submissionMode"] != "SidecarMode" or "submitterPodTemplate" not in spec
        if "kueue.x-k8s.io/queue-name" in document["metadata"]["labels"]:
            assert spec["shutdownAfterJobFinishes"]
            assert "clusterSelector" not in spec
            assert not cluster.get("enableInTreeAutoscaling")
    for template in [*templates(cluster), *([spec["submitterPodTemplate"]] if "submitterPodTemplate" in spec else [])]:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", **template["metadata"]}}
        kubernetes_validate.validate(pod | {"spec": template["spec"]}, KUBERNETES, strict=True)


def ray_cluster(document: dict[str, Any]) -> dict[str, Any]:
    """The cluster of a RayJob or a RayService."""
    return document["spec"]["rayClusterSpec" if document["kind"] == "RayJob" else "rayClusterConfig"]


def templates(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    """The pod templates of a cluster, the head's first."""
    return [cluster["headGroupSpec"]["template"], *(group["template"] for group in cluster["workerGroupSpecs"])]


def _check_cluster(cluster: dict[str, Any]) -> None:
    """The rules of the operator's own validation."""
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        assert "labels" not in group["rayStartParams"]
        asked = {"num-cpus", "num-gpus", "memory", "resources"} & set(group["rayStartParams"])
        assert not (asked and group.get("resources"))
        assert all(re.fullmatch(r"([a-z0-9.-]+/)?[A-Za-z0-9._-]{1,63}", key) for key in group.get("labels", {}))
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    head_env = {variable["name"] for variable in groups[0]["template"]["spec"]["containers"][0]["env"]}
    assert not head_env & {"RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "REDIS_USERNAME", "RAY_enable_autoscaler_v2"}
    if cluster.get("enableInTreeAutoscaling"):
        assert cluster["autoscalerOptions"]["version"] == "v2"
        assert all(template["spec"]["restartPolicy"] == "Never" for template in templates(cluster))
    assert cluster["authOptions"]["mode"] == "token"
    assert tuple(int(part) for part in cluster["rayVersion"].split(".")) >= (2, 52, 0)


def _once(_: object, keys: list[str], items: list[Any], schema: object) -> Iterator[ValidationError]:
    """The API server refuses two items of a list with the same values of these keys."""
    found = [tuple(item.get(key) for key in keys) for item in items]
    for values in set(found):
        if found.count(values) > 1:
            yield ValidationError(f"{values} occurs twice")


_Validator = extend(Draft202012Validator, {"x-kubernetes-list-map-keys": _once})


@cache
def validator(kind: str) -> Draft202012Validator:
    """Of the CRD's schema as JSON Schema that refuses unknown keys; `metadata` is the API server's own."""
    crd = json.loads(gzip.decompress((GOLDEN / f"{kind}.json.gz").read_bytes()))
    strict = _strict({**crd, "properties": {**crd["properties"], "metadata": {"type": "object"}}})
    Draft202012Validator.check_schema(strict)
    return _Validator(strict)


def _strict(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    dropped = {key for key in ("format", "default") if key in schema and not _is_schema(schema[key])}
    made = {key: _strict(value) for key, value in schema.items() if key not in dropped}
    if made.pop("x-kubernetes-int-or-string", False) is True:
        made.pop("type", None)
        made["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if "(?i)" in (pattern := str(made.get("pattern", ""))):  # Go reads a flag anywhere, Python only in front
        made["pattern"] = "(?i)" + pattern.replace("(?i)", "")
    if isinstance(made.get("properties"), dict) and not made.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made


def _is_schema(value: Any) -> bool:
    """Whether `format` or `default` is a property's name."""
    return isinstance(value, dict) and "type" in value


def infra(raw: dict, **more: object) -> Infra:
    return parse_config(Infra, raw | more, "infra.yaml")


def recipe(*overrides: str, base: str = "sd35_pickscore") -> RunConfig:
    few = ["rollout.workers=2", "learner.ranks=1", "scorers.0.replicas=1", "scorers.0.num_gpus=0.25"]
    return load_config(base, [*PROMPTS, "placement=split", *few, *overrides])


def by_kind(documents: list[dict]) -> dict[str, dict]:
    return {document["kind"]: document for document in documents}
