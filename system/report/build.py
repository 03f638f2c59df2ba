"""Writes a run's report.html: one file, no network."""

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from system.report.data import Run, comparisons, read_run
from system.report.figures import branch_spread, curves, health, time_use


@dataclass(frozen=True)
class Pair:
    """One prompt's image before and after, as data URIs, with its scores."""

    prompt: str
    before: str
    after: str
    scores: list[tuple[str, float, float]]


def build_report(run: Path) -> Path:
    """Write `run/report.html` from what the folder holds, however little; returns its path.

    Raises:
        UserError: the folder is not a run, or nothing is recorded in it.
    """
    read = read_run(run)
    environment = Environment(loader=PackageLoader("system.report", "."), autoescape=True, undefined=StrictUndefined)
    page = environment.get_template("report.html.j2").render(
        run=read,
        name=read.config.get("name", run.name),
        comparisons=comparisons(read),
        facts=facts(read),
        pairs=pairs(read),
        figures={
            name: Markup(svg) if svg else None
            for name, svg in (
                ("curves", curves(read)),
                ("branch", branch_spread(read)),
                ("health", health(read)),
                ("time", time_use(read)),
            )
        },
    )
    target = run / "report.html"
    target.write_text(page, encoding="utf-8")
    return target


def facts(run: Run) -> list[tuple[str, str]]:
    """Cost so far and how the run was made, as (label, value)."""
    last = run.lines[-1]
    made_by: dict[str, Any] = run.config.get("tempflow", {})
    values = [
        ("training steps", f"{last['step']} of {run.config.get('steps', '?')}"),
        ("NFE", f"{last['nfe']:,}" if "nfe" in last else ""),
        ("images", f"{last['decodes']:,}" if "decodes" in last else ""),
        ("scores", f"{last['scores']:,}" if "scores" in last else ""),
        ("time in steps", f"{last['elapsed_s'] / 60:.1f} min" if "elapsed_s" in last else ""),
        ("seed", str(run.config.get("seed", ""))),
        ("tempflow", " ".join(str(part)[:12] for part in made_by.values() if part)),
    ]
    return [(label, value) for label, value in values if value]


def pairs(run: Run) -> list[Pair]:
    """The kept pictures of the first and the last evaluation."""
    if not run.evals:
        return []
    first, last = min(run.evals), max(run.evals)
    found = []
    for index in range(len(run.evals[first])):
        before, after = run.picture(first, index), run.picture(last, index)
        if not (before.exists() and after.exists()):
            break
        scores = [
            (name, run.evals[first][name][index].as_py(), run.evals[last][name][index].as_py()) for name in run.scorers
        ]
        found.append(Pair(run.evals[first]["prompt"][index].as_py(), _uri(before), _uri(after), scores))
    return found


def _uri(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
