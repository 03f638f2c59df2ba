"""Writes a run's report.html: one file that needs no network."""

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from services.base.storage import write_atomically
from system.recipe.evaluation import DEFAULT_SET
from system.report.data import PairedScore, Run, paired_scores, read_run, scores, set_scores
from system.report.figures.branches import branches
from system.report.figures.health import health
from system.report.figures.scores import curves
from system.report.figures.time_use import time_use
from system.report.pictures import BeforeAfter, before_after
from system.report.prompts import PromptScores, by_gain, gain_first, score_lines
from system.report.step_images import step_images

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShownSet:
    """A held-out set as the page shows it: pictures and all prompts, from the largest gain to the largest loss."""

    title: str
    """Empty for data.heldout."""
    steps: list[int]
    """The steps of its evaluations."""
    scorers: list[str]
    sorted_by: str
    """The scorer whose change sorts the prompts."""
    pictures: list[BeforeAfter]
    prompts: list[PromptScores]
    lines: list[Markup]
    """A line over all evaluations for each prompt."""


@dataclass(frozen=True)
class Headline:
    """A held-out score before and after training, as the page shows it."""

    name: str
    role: str
    score: str
    change: str
    verdict: str
    """`up` or `down` if the interval excludes 0, else empty."""
    note: str


def pages(package: str) -> Environment:
    """The templates of a package, and the style sheet that all pages share."""
    return Environment(
        loader=ChoiceLoader([PackageLoader(package, "."), PackageLoader("system.report", ".")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def build_report(run: Path) -> Path:
    """Write `run/report.html` from the files in the folder, even if only a few exist. Returns the report's path.

    The page and the log name everything that is left out because it is missing or torn.

    Raises:
        UserError: the folder has no metrics.jsonl, or that file has no readable line.
    """
    read = read_run(run)
    environment = pages("system.report")
    environment.filters |= {f.__name__: f for f in (score, brief, difference, decimals, interval)}
    paired = paired_scores(read)
    shown, torn = shown_sets(read)
    of_steps, torn_steps = step_images(read)
    left_out = [*read.left_out, *torn, *torn_steps]
    for sentence in left_out:
        log.warning("%s: %s", run, sentence)
    page = environment.get_template("report.html.j2").render(
        run=read,
        name=read.config.get("name") or run.resolve().name,
        summary=summary(read),
        headlines=headlines(read, paired),
        paired_scores=paired,
        set_scores=set_scores(read),
        facts=facts(read),
        left_out=left_out,
        shown_sets=shown,
        step_images=of_steps,
        curves=curves(read),
        branches=branches(read),
        health=health(read) if read.steps else [],
        time=time_use(read) if read.steps else [],
    )
    target = run / "report.html"
    write_atomically(target, page.encode())
    return target


def shown_sets(run: Run) -> tuple[list[ShownSet], list[str]]:
    """The held-out sets, that of data.heldout first, and a sentence for each picture that cannot be read.

    The prompts are sorted by the first scorer with a weight in the training reward, or else by the first scorer.
    """
    found, left_out = [], []
    for name, evals in run.all_sets.items():
        pictures, torn = before_after(run, name)
        left_out += torn
        if not (scorers := run.scorers_of(evals)):
            continue
        sorted_by = next((scorer for scorer in scorers if run.weights.get(scorer)), scorers[0])
        prompts = by_gain(evals, scorers, sorted_by)
        found.append(
            ShownSet(
                "" if name == DEFAULT_SET else f"The set {name}",
                sorted(evals),
                scorers,
                sorted_by,
                sorted(pictures, key=lambda shown: gain_first(shown.change(sorted_by))),
                prompts,
                score_lines(prompts, sorted_by),
            )
        )
    return found, left_out


def summary(run: Run) -> str:
    """A one-line summary of the run, from its recipe."""
    policy, plan, kernel = run.section("policy"), run.section("plan"), run.section("kernel")
    data = run.section("data")
    counts = [(plan, "seeds", "seed"), (plan, "explorations", "exploration"), (data, "prompts_per_step", "prompt")]
    settings = [
        f"{section[key]} {noun}{'' if section[key] == 1 else 's'}" for section, key, noun in counts if key in section
    ]
    if "prompts_per_step" in data:
        settings[-1] += " a step"
    if "num_steps" in policy:
        settings.append(f"{policy['num_steps']} sampling steps")
    if "noise_level" in kernel:
        settings.append(f"noise level {kernel['noise_level']}")
    trained = [name for name, weight in run.weights.items() if weight]
    parts = [
        f"{plan['name']} plan" if "name" in plan else "",
        f"on {policy['model']}" if "model" in policy else "",
        f"for the reward {' + '.join(trained)}" if trained else "",
        f"with {', '.join(settings)}" if settings else "",
    ]
    text = " ".join(part for part in parts if part) or "a run without a readable recipe"
    return f"{text[0].upper()}{text[1:]}."


def headlines(run: Run, paired: list[PairedScore]) -> list[Headline]:
    """Each held-out score before and after. While there is only one evaluation, the first score alone."""
    roles = run.roles
    if paired:
        return [
            Headline(
                pair.name,
                roles.get(pair.name, ""),
                f"{score(pair.before, decimals(pair))} → {score(pair.after, decimals(pair))}",
                change(pair),
                verdict(pair),
                f"{pair.pairs:,} prompts, paired",
            )
            for pair in paired
            if pair.category is None
        ]
    found = []
    for step, table in run.evals.items():
        for name in run.scorers:
            known = scores(table, name)[~np.isnan(scores(table, name))]
            mean = score(float(known.mean()) if len(known) else math.nan, 3)
            found.append(Headline(name, roles.get(name, ""), mean, f"at step {step}", "", f"{len(known):,} prompts"))
    return found


def verdict(pair: PairedScore) -> str:
    """The side of 0 on which the whole interval lies: `up` or `down`. Empty if the interval includes 0."""
    if pair.difference - pair.half_interval > 0:
        return "up"
    return "down" if pair.difference + pair.half_interval < 0 else ""


def facts(run: Run) -> list[tuple[str, str]]:
    """The run's cost so far, its seed and its version of tempflow, as (label, value)."""
    made_by, planned = run.section("tempflow"), run.config.get("steps")
    done, elapsed = run.lines[-1]["step"], run.last("elapsed_s")
    counts = {"NFE": "nfe", "images": "decodes", "scores": "scores"}
    values: list[tuple[str, Any]] = [
        ("training steps", f"{done:,} of {planned:,}" if isinstance(planned, int) else f"{done:,}"),
        *((label, f"{run.last(key):,.0f}" if run.last(key) is not None else "") for label, key in counts.items()),
        ("wall time of the steps", "" if elapsed is None else duration(elapsed)),
        ("seed", run.config.get("seed", "")),
        ("tempflow", " ".join(str(made_by[key])[:12] for key in ("version", "commit") if made_by.get(key))),
    ]
    return [(label, str(value)) for label, value in values if value != ""]


def duration(seconds: float) -> str:
    """A duration with at most two units: 8.2 s, 12 min 30 s, 3 h 20 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def decimals(pair: PairedScore) -> int:
    """The number of decimals, from three to six, that shows two digits of the interval."""
    if not pair.half_interval > 0:
        return 3
    return min(6, max(3, 1 - math.floor(math.log10(pair.half_interval))))


def score(value: float, places: int, sign: str = "") -> str:
    """A number with a typographic minus sign; a dash if it is NaN."""
    return "–" if math.isnan(value) else f"{value:{sign}.{places}f}".replace("-", "−")


def brief(value: float | None, sign: str = "") -> str:
    """A number with four significant digits; a dash for a hole."""
    return "–" if value is None or math.isnan(value) else f"{value:{sign}.4g}".replace("-", "−")


def difference(pair: PairedScore) -> str:
    """The mean paired difference with its sign."""
    return score(pair.difference, decimals(pair), "+")


def change(pair: PairedScore) -> str:
    """The mean paired difference and half its interval."""
    return f"{difference(pair)} ± {score(pair.half_interval, decimals(pair))}"


def interval(pair: PairedScore) -> str:
    """Both ends of the 95% interval."""
    if math.isnan(pair.half_interval):
        return "–"
    ends = (pair.difference - pair.half_interval, pair.difference + pair.half_interval)
    return " to ".join(score(end, decimals(pair), "+") for end in ends)
