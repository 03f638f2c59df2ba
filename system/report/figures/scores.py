"""The figures of scores: training rewards, held-out scores and their weight in the advantages."""

from collections.abc import Callable, Collection, Sequence

import numpy as np
from matplotlib.axes import Axes

from system.report.canvas import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    Panel,
    cost_axis,
    draw,
    line,
    link_steps,
    training_axis,
)
from system.report.data import Run
from system.report.figures.common import first_and_last, shares_panel
from system.report.step_images import shown_steps

SMOOTHING_STEPS = 5
FEWEST_STEPS_TO_SMOOTH = 10


def curves(run: Run) -> list[Panel]:
    """Training reward and held-out scores over training steps, one panel per scorer."""
    trained = _trained_scores(run)
    panels = [_score_curve(run, name, i) for i, name in enumerate(score_names(run))]
    steps, values = run.series("reward/mean")
    if sum("." not in name for name in trained) > 1 and steps:
        panels.insert(0, _combined_curve(run, steps, values))
    shares = {name: f"reward/{name}/share" for name in trained if run.series(f"reward/{name}/share")[0]}
    if shares:
        said = "Share of each training scorer in the advantages: the mean size of its summand, over that of all."
        panels.append(shares_panel(run, shares, "Rewards in the advantage", "share", "rewards", said))
    return [*panels, *(_set_curve(run, key, i) for i, key in enumerate(_set_keys(run)))]


def _set_keys(run: Run) -> list[str]:
    """The keys of the mean scores of named held-out sets, as `eval.SET/SCORER`."""
    keys = {key for recorded in run.lines for key in recorded if key.startswith("eval.") and key.count("/") == 1}
    return sorted(key for key in keys if run.series(key)[0])


def _set_curve(run: Run, key: str, index: int) -> Panel:
    name, scorer = key.removeprefix("eval.").split("/")
    held = run.series(key)

    def plot(axis: Axes) -> None:
        axis.plot(*held, "o-", color=ORANGE, linewidth=1.5, ms=4, label=name)
        training_axis(axis, f"mean score of {scorer}")
        cost_axis(axis, *run.series("nfe"))

    caption = f"Mean score of the held-out set {name}, drawn without noise."
    return Panel(f"{scorer} of the set {name}", caption, first_and_last("Held out:", *held), draw(f"set{index}", plot))


def score_names(run: Run) -> list[str]:
    """The scores that have a curve: first the recipe's scorers in its order, then any others."""
    known = {*_trained_scores(run), *run.scorers}
    names = [name for name in run.weights if name in known] + sorted(known - set(run.weights))
    return [name for name in names if run.series(f"reward/{name}/mean")[0] or run.series(f"eval/{name}")[0]]


def _trained_scores(run: Run) -> list[str]:
    """The scorers and sub-scores whose mean over the training images is recorded."""
    parts = [key.split("/") for key in {key for recorded in run.lines for key in recorded}]
    return sorted(part[1] for part in parts if len(part) == 3 and (part[0], part[2]) == ("reward", "mean"))


def score_plot(run: Run, name: str, linked: Collection[int] = ()) -> Callable[[Axes], None]:
    """Draws one score over training steps: that of the training images, the held-out one, and its categories.

    Args:
        linked: steps that lead to their images in the page.
    """
    train, held, categories = run.series(f"reward/{name}/mean"), run.series(f"eval/{name}"), _categories(run, name)

    def plot(axis: Axes) -> None:
        if train[0]:
            _smoothed(axis, *train, BLUE, "training")
        if held[0]:
            axis.plot(*held, "o-", color=ORANGE, linewidth=1.5, ms=4, label="held out", zorder=3)
        for (steps, values), colour in ((train, BLUE), (held, ORANGE)):
            if rings := [point for point in zip(steps, values, strict=True) if point[0] in linked]:
                link_steps(axis, [step for step, _ in rings], [value for _, value in rings], colour)
        for (category, points), colour in zip(categories, (GREEN, PURPLE, GREY), strict=False):
            if points[0]:
                axis.plot(*points, "s--", color=colour, linewidth=1, ms=2.8, label=category)
        training_axis(axis, f"mean score of {name}")
        cost_axis(axis, *run.series("nfe"))

    return plot


def _categories(run: Run, name: str) -> list[tuple[str, tuple[list[int], list[float]]]]:
    """The held-out score of each category over training steps."""
    prefix = f"eval/{name}/"
    keys = sorted({key for recorded in run.lines for key in recorded if key.startswith(prefix)})
    return [(key.removeprefix(prefix), run.series(key)) for key in keys]


def _score_curve(run: Run, name: str, index: int) -> Panel:
    train, held, categories = run.series(f"reward/{name}/mean"), run.series(f"eval/{name}"), _categories(run, name)
    parts = []
    if train[0]:
        parts.append("of each step's training images, drawn with noise" + _smoothing_note(train[0]))
    if held[0]:
        parts.append("of the held-out prompts, drawn without noise" + (", with their categories" if categories else ""))
    alt = " ".join(
        first_and_last(label, *points) for label, points in (("Training:", train), ("Held out:", held)) if points[0]
    )
    role = run.roles.get(name, "training reward" if train[0] else "not trained on")
    title = f"{name}, {'sub-score' if '.' in name else role}"
    plot = score_plot(run, name, shown_steps(run))
    return Panel(title, f"Mean score {', and '.join(parts)}.", alt, draw(f"score{index}", plot))


def _combined_curve(run: Run, steps: list[int], values: list[float]) -> Panel:
    def plot(axis: Axes) -> None:
        _smoothed(axis, steps, values, BLUE, "training")
        training_axis(axis, "weighted sum of scores")
        cost_axis(axis, *run.series("nfe"))

    caption = f"Weighted sum of the training scorers, mean over each step's images{_smoothing_note(steps)}."
    return Panel("Combined reward", caption, first_and_last("Combined reward:", steps, values), draw("combined", plot))


def _smoothed(axis: Axes, steps: list[int], values: list[float], colour: str, label: str) -> None:
    """Draw a line with its running mean, or the line alone if it has few points."""
    if len(steps) < FEWEST_STEPS_TO_SMOOTH:
        line(axis, steps, values, colour, label)
        return
    axis.plot(steps, values, color=colour, alpha=0.3, linewidth=0.9)
    axis.plot(steps, running_mean(values, SMOOTHING_STEPS), color=colour, linewidth=1.6, label=label)


def _smoothing_note(steps: list[int]) -> str:
    return (
        f" (thin; bold is a running mean over {SMOOTHING_STEPS} steps)" if len(steps) >= FEWEST_STEPS_TO_SMOOTH else ""
    )


def running_mean(values: Sequence[float], window: int) -> np.ndarray:
    """The centred running mean. The window shrinks at both ends."""
    half = window // 2
    return np.array([np.mean(values[max(0, i - half) : i + half + 1]) for i in range(len(values))])
