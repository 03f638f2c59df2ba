"""The figures of the sampling steps: the spread of rewards, the noise and the loss weight of each."""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from system.report.canvas import BLUE, GREEN, INK, ORANGE, PURPLE, Panel, draw, second_axis
from system.report.data import Run, by_sampling_step

FEWEST_STEPS_TO_CORRELATE = 5


def branches(run: Run) -> list[Panel]:
    """The reward spread of siblings and the injected noise by branch step, and the loss weights."""
    lines = [recorded for recorded in run.steps if isinstance(recorded.get("branch/std"), list)]
    spread, noise = by_sampling_step(lines, "branch/std"), by_sampling_step(lines, "branch/noise_level")
    drawn = np.flatnonzero(~np.isnan(spread))
    panels = [_spread(lines, spread, noise, drawn)] if len(drawn) else []
    weight = by_sampling_step(run.steps, "branch/weight")
    if np.isfinite(weight).any():
        panels.append(_weights(weight))
    return panels


def _spread(lines: list[dict], spread: np.ndarray, noise: np.ndarray, drawn: np.ndarray) -> Panel:
    third = len(lines) // 3

    def plot(axis: Axes) -> None:
        axis.bar(drawn, spread[drawn], color=BLUE, alpha=0.4, width=0.72, label="reward std, all steps")
        for chosen, colour, label in ((lines[:third], GREEN, "first third"), (lines[-third:], PURPLE, "last third")):
            part = by_sampling_step(chosen, "branch/std") if third else np.array([])
            shown = np.flatnonzero(~np.isnan(part))
            if len(shown):
                axis.plot(shown, part[shown], "o-", color=colour, ms=3, linewidth=1.2, label=label)
        axis.set_ylim(bottom=0)
        axis.set_xlabel("sampling step i (0 starts from pure noise)")
        axis.set_ylabel("reward std within a group")
        if np.isfinite(noise).any():
            twin = second_axis(axis, "noise level s (std in the latent)")
            twin.plot(np.arange(len(noise)), noise, "D--", color=ORANGE, ms=3.5, linewidth=1.2, label="noise level s")
            twin.set_ylim(bottom=0)
        axis.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True))

    caption = (
        "Mean standard deviation of the rewards within a group, by the step at which its branches leave the trunk, "
        f"and the noise s injected there{_correlation(spread, noise, drawn)}."
    )
    top = int(drawn[np.argmax(spread[drawn])])
    alt = f"Reward std by sampling step: largest at step {top} with {spread[top]:.3g}; {_list(spread)}."
    return Panel("Reward spread by branch step", caption, alt, draw("spread", plot))


def _correlation(spread: np.ndarray, noise: np.ndarray, drawn: np.ndarray) -> str:
    both = [i for i in drawn if i < len(noise) and not math.isnan(noise[i])]
    if len(both) < FEWEST_STEPS_TO_CORRELATE or np.std(spread[both]) == 0 or np.std(noise[both]) == 0:
        return ""
    return f" (correlation over the steps: {np.corrcoef(spread[both], noise[both])[0, 1]:.2f})".replace("-", "−")


def _weights(weight: np.ndarray) -> Panel:
    def plot(axis: Axes) -> None:
        axis.bar(np.arange(len(weight)), np.nan_to_num(weight), color=ORANGE, alpha=0.65, width=0.72)
        axis.axhline(1, color=INK, linewidth=0.8, linestyle=":")
        axis.set_ylim(bottom=0)
        axis.set_xlabel("sampling step i (0 starts from pure noise)")
        axis.set_ylabel("loss weight w (factor)")
        axis.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True))

    caption = (
        "Weight of each sampling step's decisions in the loss; the dotted line is the weight 1 of an unweighted loss."
    )
    return Panel("Loss weight by step", caption, f"Loss weights: {_list(weight)}.", draw("weight", plot))


def _list(values: np.ndarray) -> str:
    return ", ".join(f"{i}: {value:.3g}" for i, value in enumerate(values) if not math.isnan(value))
