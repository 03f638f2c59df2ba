"""The page of a comparison: curves with their spread over seeds, the cost of each target, and paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from system.compare.curves import Curve, Drawing, panels
from system.compare.result import Point, Result
from system.compare.student import half_interval
from system.report.build import pages, score
from system.report.canvas import Panel, short

TARGETS = 4
COSTS = {"nfe": "NFE", "step": "training steps", "seconds": "seconds of training"}


@dataclass(frozen=True)
class Reached:
    """The mean cost to reach a target."""

    nfe: str
    """NFE, with the number of seeds that reached the target if not all did; a dash if none did."""
    images: str = ""
    """The numbers of decodes and of scores, as `A / B`; empty if no seed reached the target."""


@dataclass(frozen=True)
class Row:
    """A contender in the table."""

    contender: str
    seeds: int
    spent: str
    """The mean NFE of a run."""
    first: str
    last: str
    reached: list[Reached]
    """The cost to reach each target."""


@dataclass(frozen=True)
class Gap:
    """The last score of a contender minus that of the first contender, over the seeds that both have."""

    contender: str
    scorer: str
    seeds: int
    difference: str
    interval: str
    verdict: str


def write_page(
    results: Sequence[Result],
    output: Path,
    title: str,
    command: str,
    targets: Sequence[float] = (),
    base: str | None = None,
) -> Path:
    """Write compare.html and one PNG per panel. Returns the page's path.

    Args:
        base: the contender that the others are compared with; the first one if not given.
        targets: the scores in the table. If none are given, some between the start and the best end are used.
    """
    by_contender: dict[str, list[Result]] = {} if base is None else {base: []}
    for result in results:
        by_contender.setdefault(result.contender, []).append(result)
    scorers = list(results[0].points[0].held_out)
    watched = [name for name in scorers if name not in results[0].trained_on]
    judge = (watched or scorers)[0]
    shown = list(dict.fromkeys((judge, *results[0].trained_on)))
    figures = [panel for name in shown for cost in COSTS for panel in _scores(by_contender, name, cost, output)]
    figures += _spread(by_contender, output)
    targets = targets or _targets(by_contender, judge)
    page = (
        pages("system.compare")
        .get_template("compare.html.j2")
        .render(
            title=title,
            command=command,
            judge=judge,
            panels=figures,
            targets=[score(target, 3) for target in targets],
            rows=[_row(contender, runs, judge, targets) for contender, runs in by_contender.items()],
            gaps=[gap for name in shown for gap in _gaps(by_contender, name)],
            recipes={contender: runs[0].recipe for contender, runs in by_contender.items()},
            made_by=sorted({result.made_by for result in results}),
        )
    )
    path = output / "compare.html"
    path.write_text(page, encoding="utf-8")
    return path


def _series(runs: Sequence[Result], name: str, cost: str) -> tuple[np.ndarray, np.ndarray]:
    """The costs (P,), mean over seeds, and the scores (S, P), at the points that every seed has."""
    count = min(len(run.points) for run in runs)
    costs_SP = np.array([[getattr(point, cost) for point in run.points[:count]] for run in runs], float)
    score_SP = np.array([[point.held_out[name] for point in run.points[:count]] for run in runs], float)
    return costs_SP.mean(0), score_SP


def _scores(by_contender: dict[str, list[Result]], name: str, cost: str, output: Path) -> list[Panel]:
    """A held-out score over a cost."""

    def set_up(axis: Axes) -> None:
        axis.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=cost == "step"))
        axis.xaxis.set_major_formatter(lambda value, _: short(value))

    curves = []
    for contender, runs in by_contender.items():
        cost_P, score_SP = _series(runs, name, cost)
        curves.append(Curve(contender, cost_P, score_SP, f"{score_SP.mean(0)[-1]:.3f}"))
    over = COSTS[cost]
    drawing = Drawing(f"{name}-{cost}", f"{name} over {over}", over, f"held-out {name}", set_up)
    alt = f"At the end: {', '.join(curve.name for curve in curves)}."
    return panels(drawing, curves, f"Mean held-out {name} over {over}", alt, output)


def _spread(by_contender: dict[str, list[Result]], output: Path) -> list[Panel]:
    """The reward's spread over the sampling steps."""

    def set_up(axis: Axes) -> None:
        axis.set_ylim(bottom=0)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))

    curves = []
    for contender, runs in by_contender.items():
        spread_ST = np.array([run.spread for run in runs], float)
        drawn = np.flatnonzero(~np.isnan(spread_ST).any(0))
        curves.append(Curve(contender, drawn, spread_ST[:, drawn]))
    x, y = "sampling step i (0 starts from pure noise)", "reward std within a group"
    drawing = Drawing("spread", "Reward spread by sampling step", x, y, set_up)
    caption = "Standard deviation of the reward among siblings, or among a prompt's images if K = 1, by sampling step"
    return panels(drawing, curves, caption, "Reward std by sampling step.", output)


def _targets(by_contender: dict[str, list[Result]], judge: str) -> list[float]:
    """Evenly spaced scores between the mean start and the best mean end; none if no contender gained."""
    ends = {contender: _series(runs, judge, "nfe")[1].mean(0)[[0, -1]] for contender, runs in by_contender.items()}
    low, high = mean(end[0] for end in ends.values()), max(end[1] for end in ends.values())
    if high <= low:
        return []
    return [low + (high - low) * (k + 1) / (TARGETS + 1) for k in range(TARGETS)]


def _row(contender: str, runs: Sequence[Result], judge: str, targets: Sequence[float]) -> Row:
    start_S, end_S = _series(runs, judge, "nfe")[1][:, [0, -1]].T
    reached = [_reached(runs, judge, target) for target in targets]
    spent = mean(run.points[-1].nfe for run in runs)
    return Row(contender, len(runs), f"{spent:,.0f}", _mean_and_spread(start_S), _mean_and_spread(end_S), reached)


def _mean_and_spread(score_S: np.ndarray) -> str:
    return f"{score_S.mean():.3f}" + (f" ± {score_S.std(ddof=1):.3f}" if len(score_S) > 1 else "")


def _reached(runs: Sequence[Result], judge: str, target: float) -> Reached:
    costs = [found for run in runs if (found := crossing(run.points, judge, target)) is not None]
    if not costs:
        return Reached("–")
    nfe, decodes, scores = (short(float(value)) for value in np.mean(costs, axis=0))
    seeds = "" if len(costs) == len(runs) else f" ({len(costs)} of {len(runs)})"
    return Reached(nfe + seeds, f"{decodes} / {scores}")


def crossing(points: Sequence[Point], name: str, target: float) -> tuple[float, float, float] | None:
    """(NFE, decodes, scores) at which a score first reaches `target`, interpolated linearly; None if it never does.

    Evaluations with a hole are skipped.
    """
    known = [(point, value) for point in points if (value := point.held_out[name]) is not None]
    if known and known[0][1] >= target:
        return float(known[0][0].nfe), float(known[0][0].decodes), float(known[0][0].scores)
    for (before, low), (after, high) in pairwise(known):
        if low < target <= high:
            part = (target - low) / (high - low)
            pairs = ((getattr(before, cost), getattr(after, cost)) for cost in ("nfe", "decodes", "scores"))
            nfe, decodes, scores = (start + part * (end - start) for start, end in pairs)
            return nfe, decodes, scores
    return None


def _gaps(by_contender: dict[str, list[Result]], name: str) -> list[Gap]:
    """The gap in one score between each contender and the first, if at least two seeds have both scores."""
    (base, *others), found = by_contender, []
    ends = {
        contender: {run.seed: run.points[-1].held_out[name] for run in runs} for contender, runs in by_contender.items()
    }
    for contender in others:
        shared = sorted(ends[base].keys() & ends[contender].keys())
        differences = [
            mine - theirs
            for seed in shared
            if (mine := ends[contender][seed]) is not None and (theirs := ends[base][seed]) is not None
        ]
        if len(differences) < 2:
            continue
        middle, half = mean(differences), half_interval(differences)
        verdict = "not distinguishable" if abs(middle) <= half else "better" if middle > 0 else "worse"
        interval = " to ".join(score(end, 3, "+") for end in (middle - half, middle + half))
        found.append(Gap(contender, name, len(differences), score(middle, 3, "+"), interval, verdict))
    return found
