"""An estimate as a person reads it: a table of the roles, and a sentence for each answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from rich.table import Table

from system.capacity.cards import GB
from system.capacity.estimate import HOUR_S, MOST_PADDING, Estimate, Split
from system.capacity.fit import Fit, peak_bytes
from system.capacity.host import node_share
from system.capacity.memory import Process
from system.capacity.packing import NODE_GPUS, no_place
from system.capacity.scorers import reward_of
from system.recipe.model import RunConfig

LEAST_GAIN = 0.02
"""A setting that saves a smaller share of a step is not named."""


def estimate_table(config: RunConfig, estimate: Estimate) -> Table:
    """A line for each kind of process, and below it what takes its memory. The table fits 80 characters.

    Without GPUs it has no seconds, because they are not estimated for CPUs.
    """
    card = estimate.card
    title, columns = f"{config.name} on CPUs", ["role", "processes", "peak GB"]
    if estimate.asked:
        title = f"{config.name} on {estimate.gpus} x {card.name}, rates {card.source}"
        columns = ["role", "processes", f"peak GB of {card.memory_gb:g}", "s a step", "waits"]
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="left" if column == "role" else "right", overflow="fold")
    for one in estimate.processes:
        if estimate.asked:
            table.add_row(one.role, f"{one.count} x {one.gpus:g} GPU", _peak(one), *_time(one, estimate))
        else:
            table.add_row(one.role, str(one.count), _peak(one))
        for kind, parts in (("held", one.held), ("phase", one.phases)):
            for name, num_bytes in _largest(parts, one.peak_bytes):
                table.add_row(f"  {kind}: {name}", "", _gb(num_bytes), style="dim")
        table.add_section()
    return table


def _peak(one: Process) -> str:
    """The peak of a process; a reward model of which nothing is known has none."""
    return _gb(one.peak_bytes) if one.peak_bytes else "?"


def _largest(parts: dict[str, float], whole: float) -> list[tuple[str, float]]:
    """The parts with their bytes, the largest first; what is less than 1% of the process is left out."""
    return sorted((item for item in parts.items() if item[1] > 0.01 * whole), key=lambda item: -item[1])


def _time(one: Process, estimate: Estimate) -> tuple[str, str]:
    step = estimate.step
    match one.role:
        case "rollout":
            return _s(step.rollout), _share(step.idle.get("rollout", step.idle.get("rollout and learner", 0.0)))
        case "learner":
            return _s(step.learning), _share(step.idle["learner"])
        case "colocated":
            return _s(step.rollout + step.learning), _share(step.idle["rollout and learner"])
    waits = _share(step.idle["reward"]) if "reward" in step.idle else ""
    return (_s(step.scoring) if step.scoring else "", waits)


def estimate_sentences(config: RunConfig, estimate: Estimate, price: float | None) -> Iterator[str]:
    """What follows from the estimate, the answer to "does it fit" first."""
    if estimate.asked:
        yield fit_sentence(estimate)
    else:
        yield "The roles ask for no GPU. They run on CPUs, for which no seconds are estimated."
    task, prompts = estimate.task, config.data.prompts_per_step
    yield (
        f"A step has {prompts} prompts: {prompts * task.nfe:,} NFE of sampling, {prompts * task.images:,} images, "
        f"{prompts * task.passes:,.0f} NFE of learning."
    )
    if estimate.asked:
        yield from _time_sentences(config, estimate, price)
    too_much = (
        f", more than {MOST_PADDING:.0%}: choose micro-batches that divide the rows" if pads_too_much(estimate) else ""
    )
    yield (
        f"Padding is {_share(task.sampling_padding)} of the rows of sampling and {_share(task.learning_padding)} of "
        f"learning{too_much}."
    )
    daily = f", and {_gb(estimate.disk_bytes_per_day)} GB of them are written in a day" if estimate.asked else ""
    yield host_sentence(estimate.host, estimate.host_bytes)
    yield (
        f"The object store holds up to {_gb(estimate.store_bytes)} GB; "
        f"a checkpoint has {_gb(estimate.checkpoint_bytes)} GB{daily}."
    )


def _time_sentences(config: RunConfig, estimate: Estimate, price: float | None) -> Iterator[str]:
    step = estimate.step
    begin = f"On {estimate.asked:g} GPUs, a" if estimate.asked > estimate.gpus else "A"
    again = f" and {_s(step.evaluation)} s of evaluation" if step.evaluation else ""
    yield (
        f"{begin} step takes {_s(step.total)} s{again}; generating {_s(step.rollout)}, scoring "
        f"{_s(step.scoring)} beside it and {_s(step.last_scores)} after it, learning {_s(step.learning)}."
    )
    hours = config.steps * (step.total + step.evaluation) / HOUR_S
    cost = f", {price * estimate.gpu_hours:,.0f} at {price:g} a GPU-hour" if price is not None else ""
    yield f"{config.steps:,} steps take {hours:,.3g} h, {estimate.gpu_hours:,.4g} GPU-hours{cost}."
    yield f"Longest waits: {step.waits}, {_share(step.idle[step.waits])} of a step."
    if unknown := [scorer.name for scorer in config.scorers if not reward_of(scorer, config.policy).known]:
        yield f"Not counted, since their cost is not known: the scorers {', '.join(unknown)}."
    best, own = estimate.best, estimate.own
    if best.seconds < (1 - LEAST_GAIN) * own.seconds:
        saved = 1 - best.seconds / own.seconds
        yield (
            f"{_split(best)} would take {_s(best.seconds)} s a step, {saved:.0%} less, on as many GPUs: "
            f"{' '.join(best.overrides)}"
        )
        if best.hardware:
            yield f"The layer hardware={best.hardware} has these values of placement, rollout and learner."
    if estimate.merged_seconds is not None and estimate.merged_seconds < (1 - LEAST_GAIN) * step.total:
        saved = 1 - estimate.merged_seconds / step.total
        yield f"rollout.merge_adapter=true would take {_s(estimate.merged_seconds)} s a step, {saved:.0%} less."


def pads_too_much(estimate: Estimate) -> bool:
    """Whether more rows are padding than a recipe should have."""
    return max(estimate.task.sampling_padding, estimate.task.learning_padding) > MOST_PADDING


def fit_sentence(fit: Fit) -> str:
    """Whether it fits, or what makes it fit."""
    if fit.fits:
        return f"It fits: every process has room on its {fit.card.name}{_together(fit)}."
    if fit.asked > fit.gpus:
        return f"It does not fit: the roles ask for {fit.asked:g} GPUs, and there are {fit.gpus}; {fit.fix}."
    if fit.packing.unplaced:
        return f"It does not fit: {no_place(fit.packing.unplaced, fit.gpus)}; {fit.fix}."
    large = max((one for one in fit.processes if not one.fits(fit.card)), key=lambda one: one.peak_bytes)
    share = f"its {large.gpus:g} of one" if 0 < large.gpus < 1 else "each"
    return (
        f"It does not fit: {large.role} takes {_gb(large.peak_bytes)} GB in {large.phase}, and {share} "
        f"{fit.card.name} has {_gb(large.share_bytes(fit.card))} GB; {fit.fix}."
    )


def _together(fit: Fit) -> str:
    """The processes on the fullest GPU, with the sum of their peaks; nothing where no processes share a GPU."""
    found = fit.fullest
    if len(found) < 2:
        return ""
    counts = Counter(one.role for one in found)
    roles = " and ".join(role if count == 1 else f"{count} x {role}" for role, count in counts.items())
    return f"; {roles} share one and take {_gb(peak_bytes(found))} GB of {fit.card.memory_gb:g} together"


def host_sentence(found: list[Process], num_bytes: float) -> str:
    """How much memory the hosts need, and the process that needs most."""
    large, share = max(found, key=lambda one: one.peak_bytes), node_share(found)
    nodes = f" ({_gb(share * num_bytes)} GB on each node of {NODE_GPUS} GPUs)" if share < 1 else ""
    most = f"{large.role} takes most, {_gb(large.peak_bytes)} GB" + (f" in {large.phase}" if large.phase else "")
    return f"All processes need {_gb(num_bytes)} GB of the host's memory{nodes}, the object store included; {most}."


def _split(split: Split) -> str:
    reward = f" and {split.reward} of rewards" if split.reward else ""
    if split.shared:
        reward = " and the rewards"
    if split.placement == "colocated":
        return f"Colocated, {split.rollout} GPUs of both roles{reward},"
    return f"Split, {split.rollout} GPUs of rollout, {split.learner} of the learner{reward},"


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / GB:.3g}" if num_bytes < 10 * GB else f"{num_bytes / GB:.1f}"


def _s(seconds: float) -> str:
    return f"{seconds:,.0f}" if seconds >= 10 else f"{seconds:.2g}"


def _share(share: float) -> str:
    return f"{share:.0%}" if share >= 0.095 or not share else f"{share:.1%}"
