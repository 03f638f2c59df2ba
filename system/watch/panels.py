"""The figures of curves that the page and the terminal show of a run."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from system.watch.columns import Columns, Curve


def panels(columns: Columns, trained: Sequence[str]) -> list[dict[str, Any]]:
    """The figures of curves. One without any value is left out.

    Each score has its own figure, because one scale would make the curves of all but one of them flat. The `place`
    of a figure is the section of the page that shows it: `scores`, `roles` or `health`.

    Args:
        trained: the scorers of the training reward.
    """
    scorers = [key for key in columns.keys("reward/", 2) if key.endswith("/mean")]
    heldout = {f"{key[5:]}{'' if key[5:].split('.')[0] in trained else ' (not trained on)'}": key
               for key in columns.keys("eval/", 1)}  # fmt: skip
    idle = {key.removeprefix("idle/"): key for key in sorted(columns.keys("idle/"))}
    scores = [("Training reward", "mean of the step's images", {key.split("/")[1]: key}) for key in scorers]
    scores += [("Held-out score", "mean over held-out prompts", {label: key}) for label, key in heldout.items()]
    health = [
        ("Flat groups", "share of groups without a spread of rewards", {"flat": "advantage/flat_groups"}),
        ("Holes", "actions without a reward", {"holes": "holes"}),
        ("Ratio", "largest |ρ − 1| of the update", {"max |ρ − 1|": "ratio/max_deviation"}),
        ("Clipped", "share of actions that the clip cuts", {"clipped": "ratio/clip_fraction"}),
        ("Gradient norm", "before clipping", {"gradient norm": "grad_norm"}),
        ("KL to the reference", "", {"KL": "kl"}),
        ("Drift", "|log p(rollout) − log p(learner)|", {"mean": "drift/mean", "max": "drift/max"}),
    ]
    roles = [
        ("Seconds of a step", "by stage; scoring overlaps with generation",
         {key: f"seconds/{key}" for key in ("step", "generate", "score", "update", "eval")}),
        ("Idle shares", "share of the step in which a role waited", idle),
    ]  # fmt: skip
    panels = []
    for place, wanted in (("scores", scores), ("health", health), ("roles", roles)):
        for title, note, keys in wanted:
            curves = {label: columns.curve(key) for label, key in keys.items()}
            series = [{"label": label, **asdict(curve)} for label, curve in curves.items() if _tells(title, curve)]
            if series:
                panels.append({"place": place, "title": title, "note": note, "series": series})
    return panels


def _tells(title: str, curve: Curve) -> bool:
    """Whether a curve is worth a place: it has a value, and holes and KL are not always 0."""
    return bool(curve.steps) and (title not in ("Holes", "KL to the reference") or any(curve.values))
