"""What of a line of metrics.jsonl reaches Ray's metrics, against values worked out by hand."""

import math
import re
import time

import pytest

from services.base import gauges
from system.run import telemetry
from system.run.telemetry import EXPORTS, Telemetry
from tests.helpers.paths import ROOT

UNEXPORTED = {
    *("nfe", "scores", "elapsed_s", "branch/noise_level", "branch/weight", "bytes/weights"),
    *("warnings", "grad_rms", "eval_error/SCORER", "eval_error.SET/SCORER"),
}
"""Keys that are not exported: sums of other keys, constants of the run, warnings, and keys for them alone."""

LINE = {
    "time": 1000.5,
    "step": 3,
    "version": 3,
    "elapsed_s": 7.0,
    "nfe": 900,
    "decodes": 54,
    "scores": 108,
    "nfe/generate": 200,
    "nfe/learn": 100,
    "nfe/padding": 8,
    "reward/mean": 0.5,
    "reward/size/mean": 1.5,
    "reward/size/holes": 2,
    "holes": 0,
    "eval/size": 0.25,
    "eval/size/two words/and a slash": 0.75,
    "eval.more/size": 0.125,
    "eval.more/size/red": 0.5,
    "eval_holes/size": 1,
    "eval_holes.more/size": 2,
    "drift/by_step": [0.0, math.nan, 2.0],
    "seconds/step": 4.0,
    "seconds/request/size": 0.125,
    "workers_replaced": 1,
    "learner_restarts": 0,
}


class Recorded:
    """A metric of Ray that keeps what it was told: the last value of a gauge, the sum of a counter, by its tags."""

    seen: dict[tuple, float]

    def __init__(self, name, description, tag_keys) -> None:
        assert description.isascii()
        self.name, self.tag_keys = name, tag_keys

    def _key(self, tags):
        assert set(tags) == set(self.tag_keys)
        assert all(value.isascii() for value in tags.values())
        return (self.name, *(value for tag, value in tags.items() if tag != "run"))

    def set(self, value, tags) -> None:
        assert math.isfinite(value)
        Recorded.seen[self._key(tags)] = value

    def inc(self, value, tags) -> None:
        assert value > 0
        Recorded.seen[self._key(tags)] = Recorded.seen.get(self._key(tags), 0) + value


@pytest.fixture
def seen(monkeypatch):
    """What was exported, by name and tags; gauges are refreshed at every turn of their thread."""
    Recorded.seen = {}
    monkeypatch.setattr(telemetry, "Gauge", Recorded)
    monkeypatch.setattr(telemetry, "Counter", Recorded)
    monkeypatch.setattr(gauges, "REFRESH_S", 0.001)
    return Recorded.seen


def wait_until(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_line_becomes_these_metrics_and_no_others(seen):
    with Telemetry(
        "a", lambda: {"steps": 40, "workers": 2, "workers/0/version": 3, "workers/4/version": 2}
    ) as exported:
        exported.restored({"step": 2, "nfe": 600, "decodes": 36, "scores": 72})
        exported.record(LINE)
        wait_until(lambda: ("tempflow_stage_seconds", "step") in seen)
    assert seen == {
        ("tempflow_recorded_timestamp_seconds",): 1000.5,
        ("tempflow_policy_version",): 3,
        ("tempflow_steps_total",): 1,
        ("tempflow_steps_wanted",): 40,
        ("tempflow_images_total",): 18,
        ("tempflow_nfe_total", "generate"): 200,
        ("tempflow_nfe_total", "learn"): 100,
        ("tempflow_padding_rows_total",): 8,
        ("tempflow_reward_mean",): 0.5,
        ("tempflow_score_mean", "size"): 1.5,
        ("tempflow_score_holes_total", "size"): 2,
        ("tempflow_heldout_score", "", "size"): 0.25,
        ("tempflow_heldout_category_score", "", "size", "two words/and a slash"): 0.75,
        ("tempflow_heldout_score", "more", "size"): 0.125,
        ("tempflow_heldout_category_score", "more", "size", "red"): 0.5,
        ("tempflow_heldout_holes", "", "size"): 1,
        ("tempflow_heldout_holes", "more", "size"): 2,
        ("tempflow_drift_step_mean", "0"): 0.0,
        ("tempflow_drift_step_mean", "2"): 2.0,
        ("tempflow_stage_seconds", "step"): 4.0,
        ("tempflow_pool_request_seconds", "size"): 0.125,
        ("tempflow_rollout_workers_replaced_total",): 1,
        ("tempflow_rollout_workers",): 2,
        ("tempflow_rollout_policy_version", "0"): 3,
        ("tempflow_rollout_policy_version", "4"): 2,
    }


def test_a_gauge_lasts_until_a_hole_takes_its_place(seen):
    with Telemetry("a", dict) as exported:
        exported.record({"time": 7.0, "reward/mean": 0.5, "eval/size": 0.25})
        exported.record({"time": 8.0, "reward/mean": math.nan})
        seen.clear()
        wait_until(lambda: seen)
        assert seen == {("tempflow_recorded_timestamp_seconds",): 8.0, ("tempflow_heldout_score", "", "size"): 0.25}


def test_until_the_first_line_the_last_step_is_the_beginning(seen):
    began = time.time()
    with Telemetry("a", dict):
        wait_until(lambda: seen)
    ((name, value),) = seen.items()
    assert name == ("tempflow_recorded_timestamp_seconds",)
    assert began <= value <= time.time()


def test_the_last_line_is_exported_however_short_the_time(seen, monkeypatch):
    monkeypatch.setattr(gauges, "REFRESH_S", 60)
    with Telemetry("a", dict) as exported:
        exported.record({"version": 50})
    assert seen[("tempflow_policy_version",)] == 50


def test_before_the_first_line_the_version_is_the_one_that_was_restored(seen):
    """A run that dies in its first step is then known to have steps left."""
    with Telemetry("a", dict) as exported:
        exported.restored({"step": 10})
    assert seen[("tempflow_policy_version",)] == 10


def test_counters_count_what_this_process_did(seen):
    with Telemetry("resumed", dict) as exported:
        exported.restored({"step": 10, "decodes": 180})
        exported.record({"step": 11, "decodes": 198, "nfe/learn": 5, "workers_replaced": 1, "learner_restarts": 0})
        exported.record({"step": 12, "decodes": 216, "nfe/learn": 5, "workers_replaced": 1, "learner_restarts": 0})
        exported.restored({"step": 11, "decodes": 198})  # the learner was lost; step 12 is made again
        exported.record({"step": 12, "decodes": 216, "nfe/learn": 5, "workers_replaced": 2, "learner_restarts": 1})
    assert seen[("tempflow_steps_total",)] == 3
    assert seen[("tempflow_images_total",)] == 54
    assert seen[("tempflow_nfe_total", "learn")] == 15
    assert seen[("tempflow_rollout_workers_replaced_total",)] == 2
    assert seen[("tempflow_learner_restarts_total",)] == 1


def test_tags_that_ray_refuses_are_escaped(seen):
    with Telemetry("a", lambda: {"eval/size/größer": 1.0}):
        wait_until(lambda: len(seen) == 2)
    assert ("tempflow_heldout_category_score", "", "size", r"gr\xf6\xdfer") in seen


def test_names_follow_the_conventions():
    for export in EXPORTS:
        assert re.fullmatch(r"tempflow_[a-z_]+", export.name)
        assert export.name.endswith("_total") == (export.kind != "gauge")
    assert len({export.name for export in EXPORTS}) == len(EXPORTS)


def documented(file: str, columns: int) -> list[list[str]]:
    """Rows of the tables in docs/`file` that have so many columns, without their heads."""
    lines = [line for line in (ROOT / "docs" / file).read_text().splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [row for row in rows if len(row) == columns and "`" in row[0]]


def test_the_docs_list_every_metric():
    kinds = {"gauge": "gauge", "count": "counter", "total": "counter"}
    assert documented("reference/prometheus.md", 5) == [
        [
            f"`ray_{export.name}`",
            kinds[export.kind],
            ", ".join(f"`{tag}`" for tag in export.tags),
            f"`{export.key}`",
            export.description,
        ]
        for export in EXPORTS
    ]


def test_the_docs_list_what_the_services_export():
    made = re.compile(r"(Counter|Gauge|Histogram)\(\s*\"(\w+)\"")
    found = {made_here for file in (ROOT / "services").rglob("*.py") for made_here in made.findall(file.read_text())}
    assert {(kind.lower(), f"`ray_{name}`") for kind, name in found} == {
        (kind, name)
        for name, kind, _, _ in documented("reference/prometheus.md", 4)
        if name.startswith("`ray_tempflow")
    }


def test_every_documented_key_is_exported_or_left_out_on_purpose():
    """docs/metrics.md writes placeholders in capitals; `a/b`, `/c` stands for a/b and a/c."""
    keys = []
    for cell, *_ in documented("metrics.md", 3):
        for name in re.findall(r"`([^`]+)`", cell):
            keys.append(f"{keys[-1].rpartition('/')[0]}{name}" if name.startswith("/") else name)
    assert {"reward/SCORER/std", "learner_restarts", "drift/by_step"} <= set(keys)
    unexported = {key for key in keys if not any(export.match(key) is not None for export in EXPORTS)}
    assert unexported == UNEXPORTED
