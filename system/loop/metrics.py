"""The metrics of one training step; docs/metrics.md explains each key."""

from typing import Any

import numpy as np

from actors.learner.stats import UpdateStats
from actors.reward.scores import gathered
from system.loop.experience import Experience
from system.recipe.model import RunConfig


def describe_rewards(config: RunConfig, experience: Experience) -> dict[str, Any]:
    """The metrics of scores, rewards and generation. Sub-scores are named SCORER.SUB."""
    line: dict[str, Any] = {"reward/mean": float(np.nanmean(np.concatenate(experience.rewards)))}
    for name, values in gathered(experience.scores).items():
        asked = sum(score.images for score in experience.scores if name.partition(".")[0] in score.by_scorer)
        known = values[~np.isnan(values)]
        line |= {
            f"reward/{name}/mean": float(known.mean()) if len(known) else float("nan"),
            f"reward/{name}/std": float(known.std()) if len(known) else float("nan"),
            f"reward/{name}/holes": asked - len(known),
        }
    for scorer in config.training_scorers:
        latency_s = [taken for score in experience.scores for taken in score.latency_s.get(scorer.name, [])]
        line[f"seconds/request/{scorer.name}"] = float(np.mean(latency_s)) if latency_s else float("nan")
    combined = experience.combined
    line |= {f"reward/{name}/flat_groups": share for name, share in combined.flat_groups.items()}
    if len(config.reward_scorers) > 1:
        line |= {f"reward/{name}/share": share for name, share in combined.shares.items()}
    return line | {
        "images/not_finite": sum(score.not_finite for score in experience.scores),
        "advantage/flat_groups": experience.advantages.flat_groups,
        "holes": experience.advantages.holes,
        "branch/std": branch_std(config.policy.num_steps, experience),
        "retries/scores": sum(score.retries for score in experience.scores),
        "bytes/images_peak": experience.peak_bytes,
        "nfe/generate": experience.cost.nfe,
        "nfe/padding": experience.cost.padding,
    }


def describe_update(stats: UpdateStats) -> dict[str, Any]:
    """The metrics of the update."""
    return {
        "loss": stats.loss,
        "kl": stats.kl,
        "grad_norm": stats.grad_norm,
        "grad_rms": stats.grad_rms,
        "ratio/mean": stats.ratio_mean,
        "ratio/max_deviation": stats.ratio_max_deviation,
        "ratio/first_deviation": stats.first_ratio_deviation,
        "ratio/clip_fraction": stats.clip_fraction,
        "drift/mean": _worst(stats.drift_mean),
        "drift/max": _worst(stats.drift_max),
        "drift/by_step": stats.drift_mean,
        "nfe/learn": stats.nfe,
    }


def _worst(by_step: list[float]) -> float:
    """The largest value; NaN if all are NaN."""
    known = [value for value in by_step if not np.isnan(value)]
    return max(known, default=float("nan"))


def describe_time(
    config: RunConfig, experience: Experience, stats: UpdateStats, seconds: dict[str, float], workers: int
) -> dict[str, float]:
    """Seconds by stage, and the share of the step for which each role's processes waited.

    The time of evaluation does not count as part of the step.

    Args:
        workers: rollout workers at the end of the step.
    """
    replicas = sum(scorer.replicas.max for scorer in config.training_scorers)
    busy = {
        "rollout": experience.cost.seconds / max(1, workers),
        "reward": experience.scoring_s / replicas,
        "learner": stats.seconds,
    }
    working = seconds["step"] - seconds.get("eval", 0.0)
    line = {f"seconds/{stage}": value for stage, value in seconds.items()}
    line["seconds/score"] = experience.scoring_s
    return line | {f"idle/{role}": max(0.0, 1 - value / working) for role, value in busy.items()}


def branch_std(num_steps: int, experience: Experience) -> list[float]:
    """The std of the rewards of siblings, averaged over the decisions of each sampling step, T numbers.

    Where K = 1, a decision has no siblings, and the seeds of a task are compared instead. A step without
    rewards has NaN.
    """
    stds, steps = [np.zeros(0)], [np.zeros(0, np.int64)]
    for task, reward_M in zip(experience.generated, experience.rewards, strict=True):
        reward_NK, step_N = task.tree.reduce(reward_M), task.tree.step_N
        if reward_NK.shape[1] == 1:
            step_N = np.unique(step_N)
            reward_NK = _side_by_side([reward_NK[task.tree.step_N == i, 0] for i in step_N])
        known_N = ~np.isnan(reward_NK).all(axis=1)
        stds.append(np.nanstd(reward_NK[known_N], axis=1))
        steps.append(step_N[known_N])
    std_N, step_N = np.concatenate(stds), np.concatenate(steps)
    count_T = np.bincount(step_N, minlength=num_steps)
    sum_T = np.bincount(step_N, std_N, minlength=num_steps)
    return np.where(count_T > 0, sum_T / np.maximum(count_T, 1), np.nan).tolist()


def _side_by_side(groups: list[np.ndarray]) -> np.ndarray:
    """Groups of rewards as the rows of one array. Shorter groups are filled with NaN."""
    rows = np.full((len(groups), max(map(len, groups), default=0)), np.nan)
    for row, group in zip(rows, groups, strict=True):
        row[: len(group)] = group
    return rows
