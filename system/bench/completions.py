"""Cheaper completions are a bias: how well their rewards rank siblings as full completions do."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from actors.policy.policy import Policy
from actors.reward.pool import Scores
from actors.rollout.plans import make_plan
from actors.rollout.plans.settings import TrunkSettings
from actors.rollout.worker import Generator
from actors.trajectory import Task
from services.scoring.scorer import load_scorer
from system.config import RunConfig
from system.prompts import read_prompts, rows_of_step

STRIDES = (1.0, 2.0, 3.0, 100.0)
"""Full, half, a third; and one step to the end."""


def bench_completions(config: RunConfig, rounds: int) -> dict[str, Any]:
    """For each stride and solver, over `rounds` training steps' prompts on the untrained policy: NFE of a task, and
    Spearman's rank correlation with full completion among siblings, a mean over groups, by branch step.
    """
    assert isinstance(config.plan, TrunkSettings)
    torch.set_num_threads(config.rollout.threads)
    generator = Generator(Policy(config.policy, config.seed), config.kernel, config.rollout)
    generator.load(generator.policy.export(0))
    scorers = {scorer.name: load_scorer(scorer) for scorer in config.scorers if scorer.weight}
    prompts = read_prompts(config.data.train, config.data.prompt_column, config.data.category_column)
    figures: dict[str, Any] = {"prompts": rounds * config.data.prompts_per_step, "scorers": list(config.weights)}
    for solver in ("euler", "dpm2"):
        settings = config.plan.model_copy(update={"strides": STRIDES, "solver": solver, "strata": None})
        plan = make_plan(settings, config.policy.num_steps)
        found: dict[float, list[list[float]]] = {stride: [] for stride in STRIDES[1:]}
        for step in range(rounds):
            for row in rows_of_step(len(prompts), config.data.prompts_per_step, step, config.seed):
                task = Task(0, prompts[row], (config.seed, step, row), 0)
                _, images_MHWC, tree, _ = generator.generate(task, plan)
                texts = [task.prompt] * len(images_MHWC)
                scores = Scores({name: score(images_MHWC, texts) for name, score in scorers.items()})
                reward_M = scores.combined(config.weights)
                full_NK = tree.reduce(reward_M, 0)
                for place, stride in enumerate(STRIDES[1:], 1):
                    found[stride].append(
                        _by_step(full_NK, tree.reduce(reward_M, place), tree.step_N, plan.trained_steps)
                    )
        for stride, by_task in found.items():
            alone = make_plan(settings.model_copy(update={"strides": (stride,)}), config.policy.num_steps)
            by_step = np.nanmean(by_task, axis=0)
            figures[f"{solver}, stride {stride:g}"] = {
                "nfe_a_task": alone.nfe,
                **{f"rank correlation, step {i}": float(r) for i, r in zip(plan.trained_steps, by_step, strict=True)},
            }
    return figures


def _by_step(full_NK: np.ndarray, cheap_NK: np.ndarray, step_N: np.ndarray, steps: list[int]) -> list[float]:
    """Mean rank correlation of the groups of each branch step; groups that either cannot tell apart are left out."""
    means = []
    for i in steps:
        pairs = zip(full_NK[step_N == i], cheap_NK[step_N == i], strict=True)
        known = [spearman(full_K, cheap_K) for full_K, cheap_K in pairs if np.ptp(full_K) > 0 and np.ptp(cheap_K) > 0]
        means.append(float(np.mean(known)) if known else float("nan"))
    return means


def spearman(first_K: np.ndarray, second_K: np.ndarray) -> float:
    """Rank correlation; ties share their mean rank."""
    return float(np.corrcoef(_ranks(first_K), _ranks(second_K))[0, 1])


def _ranks(values_K: np.ndarray) -> np.ndarray:
    _, inverse_K, count = np.unique(values_K, return_inverse=True, return_counts=True)
    ends = np.cumsum(count)
    return (ends - (count - 1) / 2)[inverse_K]
