"""Exports the lines of metrics.jsonl as Ray metrics for Prometheus. docs/reference/prometheus.md lists them."""

import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import Any, Literal

from ray.util.metrics import Counter, Gauge

from services.base.gauges import LastingGauges, Reading

BY_STEP = "sampling_step"
"""The tag for values that are a list in a line: one per sampling step."""


@dataclass(frozen=True)
class Export:
    """One metric."""

    key: str
    """The key in metrics.jsonl. A part in braces matches anything and becomes a tag. A part in brackets may be missing;
    its tag is then empty."""
    name: str
    """The metric's name without the prefix `ray_`, which Ray adds."""
    kind: Literal["gauge", "count", "total"]
    """A count is the number in one step, a total the number so far. Both are exported as counters of this process."""
    description: str
    by_step: bool = False
    """Whether the value is a list by sampling step."""

    @property
    def tags(self) -> tuple[str, ...]:
        """The names of the tags, except `run`."""
        return (*re.findall(r"\{(\w+)\}", self.key), *([BY_STEP] if self.by_step else []))

    def match(self, key: str) -> dict[str, str] | None:
        """The tags in `key`, in ASCII because Ray accepts nothing else; None if `key` belongs to another metric."""
        named = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>.+?)", re.escape(self.key))
        found = re.fullmatch(re.sub(r"\\\[(.+?)\\\]", r"(?:\1)?", named), key)
        return {tag: ascii(part)[1:-1] for tag, part in found.groupdict("").items()} if found else None


EXPORTS = [
    Export("time", "tempflow_recorded_timestamp_seconds", "gauge", "when the last step was recorded"),
    Export("version", "tempflow_policy_version", "gauge", "policy version, which is the number of training steps done"),
    Export("step", "tempflow_steps_total", "total", "training steps"),
    Export("steps", "tempflow_steps_wanted", "gauge", "training steps after which the run is over"),
    Export("reward/mean", "tempflow_reward_mean", "gauge", "combined training reward, mean over the step's images"),
    Export("reward/{scorer}/mean", "tempflow_score_mean", "gauge", "a training scorer's mean over the step's images"),
    Export("reward/{scorer}/std", "tempflow_score_std", "gauge", "a training scorer's standard deviation"),
    Export(
        "reward/{scorer}/flat_groups",
        "tempflow_score_flat_groups_ratio",
        "gauge",
        "share of groups in which a training scorer gives every image the same score",
    ),
    Export(
        "reward/{scorer}/share",
        "tempflow_score_advantage_ratio",
        "gauge",
        "share of the advantages that a training scorer makes",
    ),
    Export(
        "reward/{scorer}/holes", "tempflow_score_holes_total", "count", "images without a score of a training scorer"
    ),
    Export(
        "eval[.{set}]/{scorer}/{category}", "tempflow_heldout_category_score", "gauge", "held-out mean of a category"
    ),
    Export("eval[.{set}]/{scorer}", "tempflow_heldout_score", "gauge", "held-out mean of the last evaluation"),
    Export("eval_holes[.{set}]/{scorer}", "tempflow_heldout_holes", "gauge", "held-out images without a score"),
    Export(
        "images/not_finite", "tempflow_images_not_finite_total", "count", "images of NaN or infinity, which are holes"
    ),
    Export(
        "advantage/flat_groups",
        "tempflow_flat_groups_ratio",
        "gauge",
        "share of groups without a spread of rewards",
    ),
    Export("branch/std", "tempflow_branch_reward_std", "gauge", "mean within-group standard deviation", by_step=True),
    Export("holes", "tempflow_action_holes_total", "count", "actions without a reward"),
    Export("retries/scores", "tempflow_score_retries_total", "count", "requests to a scorer that were sent again"),
    Export("loss", "tempflow_loss", "gauge", "loss of the update"),
    Export("kl", "tempflow_kl", "gauge", "KL to the reference"),
    Export("grad_norm", "tempflow_grad_norm", "gauge", "gradient norm before clipping"),
    Export("ratio/mean", "tempflow_policy_ratio_mean", "gauge", "mean ratio"),
    Export(
        "ratio/max_deviation",
        "tempflow_policy_ratio_max_deviation",
        "gauge",
        "largest deviation of a ratio from 1 in the update",
    ),
    Export(
        "ratio/first_deviation",
        "tempflow_policy_ratio_first_deviation",
        "gauge",
        "largest deviation of a ratio from 1 before the first optimizer step",
    ),
    Export(
        "ratio/clip_fraction",
        "tempflow_clipped_actions_ratio",
        "gauge",
        "share of actions that the clip cuts",
    ),
    Export("drift/mean", "tempflow_drift_mean", "gauge", "drift in log p, mean of the worst sampling step"),
    Export("drift/max", "tempflow_drift_max", "gauge", "drift in log p, maximum"),
    Export(
        "drift/by_step", "tempflow_drift_step_mean", "gauge", "drift in log p, mean of a sampling step", by_step=True
    ),
    Export("staleness", "tempflow_staleness_versions", "gauge", "age of the policy that generated the step"),
    Export("nfe/padding", "tempflow_padding_rows_total", "count", "rows that fill micro-batches, beside the NFE"),
    Export("nfe/{work}", "tempflow_nfe_total", "count", "NFE of rollouts (generate) and learner (learn)"),
    Export("decodes", "tempflow_images_total", "total", "images of training steps"),
    Export(
        "seconds/request/{scorer}", "tempflow_pool_request_seconds", "gauge", "mean seconds of a request and its wait"
    ),
    Export("seconds/{stage}", "tempflow_stage_seconds", "gauge", "seconds of a stage, the last time that it ran"),
    Export("idle/{role}", "tempflow_idle_ratio", "gauge", "share of the step in which a role's processes waited"),
    Export("bytes/images_peak", "tempflow_images_in_flight_peak_bytes", "gauge", "most image bytes in flight at once"),
    Export("workers", "tempflow_rollout_workers", "gauge", "rollout workers that are running now"),
    Export(
        "workers/{worker}/version",
        "tempflow_rollout_policy_version",
        "gauge",
        "policy version that was last sent to a worker",
    ),
    Export("workers_replaced", "tempflow_rollout_workers_replaced_total", "total", "rollout workers replaced"),
    Export("learner_restarts", "tempflow_learner_restarts_total", "total", "restarts of the learner"),
]
"""All metrics. If several keys match, the first one is used."""

Tags = tuple[tuple[str, str], ...]
Tagged = tuple[Export, Tags]


class Telemetry:
    """Exports the metrics that a run records, until the context manager exits.

    A gauge keeps its last recorded value; a hole removes it. Until the first line, the time of the last step is the
    start time of this object. Counters count the work of this process: they include the steps that are repeated
    after a learner was lost, and exclude the steps before a resume.

    Args:
        run: the value of the tag `run`, which every metric has.
        live: returns keys and values that may change within a step.
    """

    def __init__(self, run: str, live: Callable[[], Mapping[str, Any]]) -> None:
        self.run, self.live = run, live
        self.values: dict[Tagged, float] = dict(_flatten({"time": time.time()}))
        self.counted: dict[str, float] = {}
        kinds = {"gauge": Gauge, "count": Counter, "total": Counter}
        self.metrics = {e: kinds[e.kind](e.name, e.description, ("run", *e.tags)) for e in EXPORTS}
        self.gauges = LastingGauges(self._read)

    def __enter__(self) -> "Telemetry":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.gauges.close()

    def restored(self, totals: Mapping[str, float]) -> None:
        """Set the values from which totals are counted, by key. The policy version is the number of steps."""
        self.counted |= totals
        self.values = self.values | dict(_flatten({"version": totals["step"]}))

    def record(self, line: Mapping[str, Any]) -> None:
        """Export a line of metrics.jsonl."""
        gauges = dict(self.values)
        for (export, tags), value in _flatten(line):
            if export.kind == "gauge":
                gauges[export, tags] = value
            else:
                self._count(export, tags, value)
        self.values = {tagged: value for tagged, value in gauges.items() if math.isfinite(value)}

    def _count(self, export: Export, tags: Tags, value: float) -> None:
        if export.kind == "total":
            value, self.counted[export.key] = value - self.counted.get(export.key, 0), value
        if value > 0:
            self.metrics[export].inc(value, {"run": self.run, **dict(tags)})

    def _read(self) -> Iterator[Reading]:
        """The current values of the gauges."""
        values = self.values | dict(_flatten(self.live()))
        for (export, tags), value in values.items():
            yield self.metrics[export], value, {"run": self.run, **dict(tags)}


def _flatten(line: Mapping[str, Any]) -> Iterator[tuple[Tagged, float]]:
    """Each number in a line with its metric and tags. NaN is a hole."""
    for key, value in line.items():
        found = _find(key)
        if found is None:
            continue
        export, tags = found
        if export.by_step:
            for i, item in enumerate(value):
                yield (export, (*tags, (BY_STEP, str(i)))), float(item)
        else:
            yield (export, tags), float(value)


@cache
def _find(key: str) -> Tagged | None:
    for export in EXPORTS:
        if (tags := export.match(key)) is not None:
            return export, tuple(tags.items())
    return None
