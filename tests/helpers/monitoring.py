"""The expressions of deploy/monitoring, and what docs/reference/prometheus.md says of the metrics in them."""

import re

import yaml

from deploy.monitoring.build import DASHBOARDS
from tests.helpers.paths import ROOT

FOLDER = ROOT / "deploy" / "monitoring"
DOCS = (ROOT / "docs" / "reference" / "prometheus.md").read_text()

RULES = [rule for group in yaml.safe_load((FOLDER / "rules.yaml").read_text())["groups"] for rule in group["rules"]]
METRIC = re.compile(r"ray_(?:tempflow|serve)_\w+")


def panels(run: str) -> dict[str, str]:
    """Each expression of the dashboards as Grafana sends it for a run, by dashboard, title and legend."""
    return {
        f"{name} / {panel.title} / {legend}": expression.replace("$run", run).replace("$__rate_interval", "1m")
        for name, shown in DASHBOARDS.items()
        for panel in shown
        for legend, expression in panel.expressions.items()
    }


def documented() -> dict[str, str]:
    """Kind by name of every metric in the tables of the docs."""
    return dict(re.findall(r"^\| `(ray_tempflow_\w+)` \| (\w+) \|", DOCS, re.MULTILINE))


def may_be_missing() -> set[str]:
    """The metrics that the docs list as those that a run which is well may not have."""
    items = DOCS.partition("may therefore be missing in a run that is well:\n\n")[2].partition("\n\n")[0]
    return set(METRIC.findall(items))


def metrics_of(expression: str) -> set[str]:
    """The names in an expression; those of a histogram's parts without their suffix."""
    kinds = documented()
    bare = {name: re.sub(r"_(bucket|sum|count)$", "", name) for name in METRIC.findall(expression)}
    return {short if kinds.get(short) == "histogram" else name for name, short in bare.items()}
