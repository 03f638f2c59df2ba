"""A real Prometheus scrapes a real run: panels have data, alerts can be evaluated, and the numbers are the run's."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from services.base.ports import free_port
from tests.helpers.command_line import environment
from tests.helpers.monitoring import FOLDER, RULES, documented, may_be_missing, metrics_of, panels

pytestmark = pytest.mark.slow
SCRAPE_S = 1
DATA_TIMEOUT_S = 240
SESSION = "/tmp/ray/session_latest"


@dataclass(frozen=True)
class Prometheus:
    url: str

    def get(self, path: str, **parameters: str) -> Any:
        answer = requests.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=10).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Labels and value of each series."""
        return [
            (series["metric"], float(series["value"][1])) for series in self.get("query", query=expression)["result"]
        ]

    def number(self, expression: str) -> float | None:
        """Of the one series."""
        found = self.query(expression)
        assert len(found) < 2, found
        return found[0][1] if found else None


def until(condition: Callable[[], Any], what: Callable[[], Any]) -> Any:
    """Waits for something true; `what` says what is missing otherwise."""
    deadline = time.monotonic() + DATA_TIMEOUT_S
    while not (found := condition()):
        assert time.monotonic() < deadline, what()
        time.sleep(0.5)
    return found


@pytest.fixture
def prometheus(ray_head, tmp_path) -> Iterator[Prometheus]:
    """Ours, with the shipped configuration, on loopback; it looks at the head of the tests, more often."""
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed (Debian: apt install prometheus)")
    text = (FOLDER / "prometheus.yml").read_text()
    assert SESSION in text
    settings = yaml.safe_load(text.replace(SESSION, str(ray_head.session)))
    settings["global"] = {"scrape_interval": f"{SCRAPE_S}s", "evaluation_interval": f"{SCRAPE_S}s"}
    settings["rule_files"] = [str(FOLDER / file) for file in settings["rule_files"]]
    config = tmp_path / "prometheus.yml"
    config.write_text(yaml.safe_dump(settings))
    address = f"127.0.0.1:{free_port()}"
    command = ["prometheus", f"--config.file={config}", f"--web.listen-address={address}"]
    command.append(f"--storage.tsdb.path={tmp_path / 'tsdb'}")
    with (tmp_path / "prometheus.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    yield Prometheus(f"http://{address}")
    process.terminate()
    process.wait(60)


@pytest.fixture
def run(recipe, ray_head, tmp_path) -> Iterator[Path]:
    """The folder of a run that goes on until the test is over."""
    second = "scorers.coarse={scorer: jpeg_size, options: {quality: 50}, num_cpus: 0.1}"
    command = [sys.executable, "-m", "system", "train", str(recipe), "name=watched", "steps=100000", second]
    with (tmp_path / "run.log").open("w") as log:
        process = subprocess.Popen(command, cwd=tmp_path, env=environment(ray_head.address), stdout=log, stderr=log)
    yield tmp_path / "runs" / "watched"
    assert process.poll() is None, (tmp_path / "run.log").read_text()
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 130, (tmp_path / "run.log").read_text()


def ready(prometheus: Prometheus) -> bool:
    try:
        return requests.get(f"{prometheus.url}/-/ready", timeout=10).ok
    except requests.ConnectionError:
        return False


def test_every_panel_and_alert_has_data_and_it_is_the_runs(run, prometheus):
    until(lambda: ready(prometheus), lambda: "prometheus does not start")
    missing = may_be_missing()
    wanted = {title: query for title, query in panels("watched").items() if not metrics_of(query) <= missing}
    needed = {metric for rule in RULES for metric in metrics_of(rule["expr"])} - missing
    exported = {f"{name}_count" if kind == "histogram" else name for name, kind in documented().items()} - missing
    wanted |= {name: name for name in needed | exported}

    def without_data() -> list[str]:
        return [title for title, query in wanted.items() if not prometheus.query(query)]

    until(lambda: not without_data(), without_data)

    lines = until(lambda: recorded(run), lambda: "no metrics.jsonl")
    named = {series["__name__"] for series, _ in prometheus.query('{__name__=~"ray_tempflow_.*"}')}
    assert {metric for name in named for metric in metrics_of(name)} <= documented().keys()
    for series, key in {
        "images_total": "decodes",
        "steps_total": "step",
        "policy_version": "version",
        'heldout_score{scorer="size"}': "eval/size",
        'score_advantage_ratio{scorer="coarse"}': "reward/coarse/share",
        "grad_norm": "grad_norm",
        'stage_seconds{stage="update"}': "seconds/update",
        'branch_reward_std{sampling_step="1"}': "branch/std",
    }.items():
        value = prometheus.number(watched(series))
        values = [line[key][1] if key == "branch/std" else line[key] for line in recorded(run) if key in line]
        assert value in values, (series, value)
        assert len(lines) > 1
    for work in ("generate", "learn"):
        counted = prometheus.number(watched(f'nfe_total{{work="{work}"}}'))
        assert counted in list(accumulate(line.get(f"nfe/{work}", 0) for line in recorded(run)))
    held = prometheus.query(watched("rollout_policy_version"))
    assert {labels["worker"] for labels, _ in held} == {"0", "1"}
    versions = {line["version"] for line in recorded(run)}
    sent = versions | {max(versions) + 1}  # before the step that made it is recorded
    assert {version for _, version in held} <= sent
    assert prometheus.number(watched("rollout_workers")) == 2

    rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
    assert [rule["name"] for rule in rules] == [rule["alert"] for rule in RULES]
    assert all(rule["health"] == "ok" for rule in rules), rules
    firing = [alert["labels"] for rule in rules for alert in rule["alerts"] if alert["state"] == "firing"]
    assert not [labels for labels in firing if labels.get("run", "watched") == "watched"]


def test_a_run_that_came_to_its_end_is_not_gone(recipe, ray_head, prometheus, tempflow):
    """What its last second said is there, though its process was gone before Ray's next report."""
    until(lambda: ready(prometheus), lambda: "prometheus does not start")
    done = tempflow("train", recipe, "name=over", address=ray_head.address)
    assert done.returncode == 0, done.stderr
    until(lambda: not prometheus.query('ray_tempflow_steps_wanted{run="over"}'), lambda: "its gauges stay")
    last = prometheus.number('max(max_over_time(ray_tempflow_policy_version{run="over"}[10m]))')
    wanted = prometheus.number('max(max_over_time(ray_tempflow_steps_wanted{run="over"}[10m]))')
    assert last == wanted == 4
    (gone,) = (rule["expr"] for rule in RULES if rule["alert"] == "TempflowRunGone")
    assert "over" not in {labels["run"] for labels, _ in prometheus.query(gone)}


def watched(series: str) -> str:
    """A series of the run `watched`: the head has seen other runs before."""
    name, _, labels = series.partition("{")
    return f'ray_tempflow_{name}{{run="watched",{labels or "}"}'


def recorded(run: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl."""
    file = run / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().split("\n")[:-1]] if file.exists() else []
