"""Warnings while training: problems that the metrics of finished steps show.

They are a pure function of the recipe and of the lines of metrics.jsonl so far, so a resumed run warns as the whole run
would. Four things are looked at:

- a scorer gives all images of most groups the same score: such groups teach nothing;
- a watcher (a scorer that is not trained on) falls on held-out prompts while a training scorer rises: reward hacking;
- Adam's ε is above the gradient's root mean square: ε, not the gradient, sets the size of the steps;
- the requests to a scorer take most of the step: nothing else makes the step faster.
"""

import math
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from system.recipe.model import RunConfig

WINDOW = 5
"""Training steps whose mean is looked at."""
PAUSE = 25
"""Training steps before the same warning about the same scorer may be repeated."""
FLAT_SHARE = 0.5
"""The share of a scorer's groups without spread that is too much."""
LATENCY_SHARE = 0.5
"""The share of a step without its evaluation that a request may take, its time in queues included."""
STANDARD_ERRORS = 3.0
"""A held-out mean has fallen or risen if it changed by more than this many standard errors of the change. These are
computed as for independent means. The means are of the same prompts and noise, so the bound is cautious."""

Finding = tuple[str, str, str]
"""The kind of a warning, what it is about, and its sentence."""


@dataclass(frozen=True)
class _HeldOut:
    """The held-out scores of one evaluation."""

    step: int
    mean: Mapping[str, float]
    error: Mapping[str, float]
    """The standard errors of the means."""

    def rose(self, name: str, since: "_HeldOut", sign: float = 1.0) -> bool:
        """Whether a scorer's mean rose since an earlier evaluation. With a negative sign: whether it fell."""
        error = math.hypot(self.error[name], since.error[name])
        return math.copysign(1.0, sign) * (self.mean[name] - since.mean[name]) > STANDARD_ERRORS * error


@dataclass
class Warnings:
    """Looks at the steps of a run, one after another."""

    config: RunConfig
    _recent: dict[str, deque[float]] = field(default_factory=dict)
    """The last known values of a key."""
    _best: dict[str, _HeldOut] = field(default_factory=dict)
    """The evaluation with a watcher's highest mean, by watcher."""
    _said: dict[tuple[str, str], int] = field(default_factory=dict)
    """The step of the last warning of a kind about something."""

    def after(self, line: Mapping[str, Any]) -> list[str]:
        """The warnings after a step, each a sentence.

        Args:
            line: the step's metrics. Steps come in order; a later line of the same step adds to it.
        """
        step, said = line["step"], []
        for kind, subject, sentence in self._found(line):
            if step - self._said.get((kind, subject), -PAUSE) >= PAUSE:
                self._said[kind, subject] = step
                said.append(f"step {step}: {sentence}")
        return said

    def _found(self, line: Mapping[str, Any]) -> Iterator[Finding]:
        yield from self._flat_groups(line)
        yield from self._falling_watchers(line)
        yield from self._small_gradient(line)
        yield from self._slow_scorers(line)

    def _flat_groups(self, line: Mapping[str, Any]) -> Iterator[Finding]:
        for scorer in self.config.reward_scorers:
            share = self._mean(f"reward/{scorer.name}/flat_groups", line)
            if share > FLAT_SHARE:
                sentence = (
                    f"`{scorer.name}` gave all images the same score in {share:.0%} of the groups of the last "
                    f"{WINDOW} steps, and such groups teach nothing; raise kernel.noise_level or plan.explorations, "
                    "use a scorer with finer scores, or train on prompts that are neither solved nor hopeless"
                )
                yield "flat groups", scorer.name, sentence

    def _falling_watchers(self, line: Mapping[str, Any]) -> Iterator[Finding]:
        names = [scorer.name for scorer in self.config.scorers]
        mean, error = ({name: _number(line, f"{kind}/{name}") for name in names} for kind in ("eval", "eval_error"))
        now, trained = _HeldOut(line["step"], mean, error), {scorer.name for scorer in self.config.training_scorers}
        for watcher in names:
            if watcher in trained or math.isnan(mean[watcher]):
                continue
            best = self._best.setdefault(watcher, now)
            if mean[watcher] > best.mean[watcher]:
                best = self._best[watcher] = now
            if (name := self._improved(now, best)) is not None and now.rose(watcher, best, sign=-1):
                sentence = (
                    f"`{watcher}`, which is not trained on, fell on held-out prompts from {best.mean[watcher]:.4g} "
                    f"(step {best.step}) to {mean[watcher]:.4g}, while the training scorer `{name}` went from "
                    f"{best.mean[name]:.4g} to {mean[name]:.4g}; {self._pictures(now, best)}raise objective.kl, "
                    "combine several scorers, or stop and keep an earlier checkpoint"
                )
                yield "watcher", watcher, sentence

    def _improved(self, now: _HeldOut, best: _HeldOut) -> str | None:
        """The first training scorer that moved where its weight pulls it, if there is one."""
        for scorer in self.config.reward_scorers:
            if now.rose(scorer.name, best, sign=sum([scorer.weight, *scorer.category_weights.values()])):
                return scorer.name
        return None

    def _pictures(self, now: _HeldOut, best: _HeldOut) -> str:
        if not self.config.eval.grid:
            return ""
        return f"compare the pictures in samples/step_{now.step:06d} with samples/step_{best.step:06d}; "

    def _small_gradient(self, line: Mapping[str, Any]) -> Iterator[Finding]:
        rms, eps = self._mean("grad_rms", line), self.config.learner.eps
        if 0 < rms < eps:
            sentence = (
                f"the gradient's root mean square was {rms:.1e} over the last {WINDOW} steps, below Adam's "
                f"ε = {eps:g}, so the weights move less than learner.lr says; lower learner.eps to {rms / 100:.0e}"
            )
            yield "epsilon", "", sentence

    def _slow_scorers(self, line: Mapping[str, Any]) -> Iterator[Finding]:
        step_s = _number(line, "seconds/step") - line.get("seconds/eval", 0.0)
        for i, scorer in enumerate(self.config.scorers):
            request_s, key = _number(line, f"seconds/request/{scorer.name}"), f"latency/{scorer.name}"
            share = self._mean(key, {key: request_s / step_s})
            if share > LATENCY_SHARE:
                sentence = (
                    f"a request to `{scorer.name}` takes {request_s:.3g} s with its time in queues, and took "
                    f"{share:.0%} of a step over the last {WINDOW} steps, so this scorer bounds the step; raise "
                    f"scorers.{i}.replicas, lower scorers.{i}.request_images, or run it on a GPU"
                )
                yield "latency", scorer.name, sentence

    def _mean(self, key: str, line: Mapping[str, Any]) -> float:
        """The mean of the last WINDOW known values; NaN while there are fewer, and if the line has no known one."""
        value = _number(line, key)
        if math.isnan(value):
            return math.nan
        recent = self._recent.setdefault(key, deque(maxlen=WINDOW))
        recent.append(value)
        return sum(recent) / WINDOW if len(recent) == WINDOW else math.nan


def _number(line: Mapping[str, Any], key: str) -> float:
    """The value of a key; NaN if the line does not have it, or has None for it, as metrics.jsonl has for NaN."""
    value = line.get(key)
    return math.nan if value is None else float(value)
