"""Dashboards, alerts and docs agree with each other; the alerts fire when they should and not otherwise."""

import json
import re
import shutil
import subprocess

import pytest
import yaml

from deploy.monitoring.build import DASHBOARDS, built
from system.manifests.network import METRICS
from system.manifests.pods import HEAD_PORTS
from tests.helpers.manifests import check, read
from tests.helpers.monitoring import DOCS, FOLDER, RULES, documented, may_be_missing, metrics_of, panels
from tests.helpers.paths import ROOT

ROLES = ("rollout", "learner", "colocated", "reward")
"""The values of the tag `role` of ray_tempflow_gpu_memory_bytes."""

promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")

kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")


def run(*command: str) -> str:
    done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_files_are_what_build_writes():
    files = built()
    assert {name: (FOLDER / name).read_text() for name in files} == files
    assert sorted(path.stem for path in (FOLDER / "dashboards").iterdir()) == sorted(DASHBOARDS)


@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_dashboard_has_its_variables_and_room_for_each_panel(name):
    board = json.loads((FOLDER / "dashboards" / f"{name}.json").read_text())
    source, run = board["templating"]["list"]
    assert (source["name"], source["type"], run["name"]) == ("datasource", "datasource", "run")
    taken = {
        (x, y)
        for at in (panel["gridPos"] for panel in board["panels"])
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    }
    assert len(taken) == sum(panel["gridPos"]["w"] * panel["gridPos"]["h"] for panel in board["panels"])
    assert max(x for x, _ in taken) < 24
    for panel in board["panels"]:
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}"
            labels = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            grouped = {tag for tags in re.findall(r"by \(([^)]+)\)", target["expr"]) for tag in tags.split(", ")}
            assert labels <= grouped


def test_expressions_use_documented_metrics_alone():
    used = {metric for expression in panels("x").values() for metric in metrics_of(expression)}
    used |= {metric for rule in RULES for metric in metrics_of(rule["expr"])}
    serve = {metric for metric in used if metric.startswith("ray_serve")}
    assert used - serve <= documented().keys()
    assert all(f"`{metric}`" in DOCS for metric in serve)
    assert may_be_missing() <= documented().keys()


def test_every_alert_has_an_entry_in_the_runbook_and_a_test():
    entries = re.findall(r"^## (\w+)$", (ROOT / "docs" / "runbook.md").read_text(), re.MULTILINE)
    assert entries == [rule["alert"] for rule in RULES]
    tests = yaml.safe_load((FOLDER / "rules.test.yaml").read_text())["tests"]
    fires = {case["alertname"] for test in tests for case in test["alert_rule_test"] if case.get("exp_alerts")}
    assert fires == set(entries)
    for rule in RULES:
        assert rule["annotations"]["runbook"] == f"docs/runbook.md#{rule['alert'].lower()}"


def test_the_operators_objects_are_valid_and_scrape_the_ports_of_our_pods():
    (monitor,), (rule,) = (read((FOLDER / f"{name}.yaml").read_text()) for name in ("pod-monitor", "prometheus-rule"))
    check(monitor)
    check(rule)
    scraped = {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]}
    assert {HEAD_PORTS[name] for name in scraped} == set(METRICS)


def test_no_manifest_has_a_merge_key():
    """Several versions of `kubectl apply -k` refuse the key `<<` (github.com/kubernetes-sigs/kustomize/issues/4747)."""
    assert not [path for path in FOLDER.parent.rglob("*.yaml") if "<<" in path.read_text()]


@kubectl
def test_kubectl_builds_all_of_it():
    built_here = read(run("kubectl", "kustomize", "."))
    assert sorted(document["kind"] for document in built_here) == ["ConfigMap"] * 4 + ["PodMonitor", "PrometheusRule"]
    for document in built_here:
        check(document)


@pytest.mark.parametrize("role", ["rollout", "learner"])
def test_gpu_memory_of_a_role_is_without_that_of_the_pool_whose_run_is_empty(role):
    """With all runs chosen, Grafana asks for `run=~".*"`, which an empty label matches, too."""
    (expression,) = (e for title, e in panels(".*").items() if title.startswith(f"{role} / GPU memory"))
    matches = re.search(r'role(=~|!=)"([^"]+)"', expression)
    shown = {one for one in ROLES if (matches[1] == "=~") == bool(re.fullmatch(matches[2], one))}
    assert shown == {role, "colocated"}


@promtool
def test_promtool_accepts_the_rules_and_they_fire_when_they_should():
    assert f"{len(RULES)} rules found" in run("promtool", "check", "rules", "rules.yaml")
    assert "SUCCESS" in run("promtool", "test", "rules", "rules.test.yaml")
    assert "is valid prometheus config" in run("promtool", "check", "config", "prometheus.yml")
