"""Cheaper completions are a bias: how their rewards rank siblings, and what gradient they give an NFE.

Shape legend: D entries of all trained parameters, N decisions and K actions of a task, B branch steps, S strides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from actors.learner.learner import Learner
from actors.learner.settings import AdvantageSettings
from actors.policy.policy import Policy
from actors.reward.counted import counted
from actors.reward.scores import scores_of
from actors.rollout.plans import make_plan, trainable_steps
from actors.rollout.plans.settings import TrunkSettings
from actors.rollout.worker import Generator
from actors.trajectory import Decisions, Tree
from services.scoring.loaded import LoadedScorer
from system.loop.advantage import advantages
from system.loop.prompts import prompts_of, rows_for, tasks_of_step
from system.recipe.model import RunConfig

STRIDES = (1.0, 2.0, 3.0, 100.0)
"""Full, half, a third; and one step to the end."""


def bench_completions(config: RunConfig, rounds: int) -> dict[str, Any]:
    """Of each stride and solver, over `rounds` training steps' prompts on the policy that the recipe starts from.

    NFE of a task; by branch step Spearman's rank correlation with full completion among siblings, a mean over groups;
    and the plan's signal an NFE (`Signal.efficiency`), for branches at the first so many steps.
    """
    assert isinstance(config.plan, TrunkSettings)
    torch.set_num_threads(config.rollout.threads)
    policy = Policy(config.policy, config.seed)
    generator = Generator(policy, config.kernel, config.rollout)
    generator.load(policy.export(0))
    trainable = trainable_steps(config.plan, config.policy.num_steps)
    learner = Learner(policy, config.kernel, config.objective, config.learner, trainable)
    scorers = [LoadedScorer(scorer) for scorer in config.training_scorers]
    prompts = prompts_of(config.data, config.data.train)
    tasks = [
        task
        for step in range(rounds)
        for task in tasks_of_step(prompts, config.data.prompts_per_step, step, config.seed, version=0)
    ]
    figures: dict[str, Any] = {"prompts": len(tasks), "scorers": [scorer.name for scorer in config.reward_scorers]}
    for solver in ("euler", "dpm2"):
        settings = config.plan.model_copy(update={"strides": STRIDES, "solver": solver})
        plan = make_plan(settings, config.policy.num_steps)
        alike: list[np.ndarray] = []
        signal = Signal(len(plan.trained_steps), len(STRIDES), sum(p.numel() for p in policy.parameters.values()))
        for task in tasks:
            decisions, images_MHWC, (tree, *_) = generator.generate(task, plan)
            texts = [task.prompt] * len(images_MHWC)
            rows = rows_for(config.scorers, prompts, [task.address[2]]) * len(texts)
            scores = scores_of(scorers, images_MHWC, texts, rows)
            reward_M = counted(config.scorers, scores, prompts.category(task.address[2])).reward
            assert isinstance(decisions, Decisions)
            trees = [replace(tree, leaf_NKL=tree.leaf_NKL[..., [place]]) for place in range(len(STRIDES))]
            alike.append(_rank_correlations(trees, reward_M, plan.trained_steps))
            signal.add(_gradients(learner, config.advantage, decisions, trees, reward_M, plan.trained_steps))
        correlation_SB = np.nanmean(alike, axis=0)
        efficiency_SB = signal.efficiency(_costs(config, settings, learner.objective.settings.passes))
        for place, stride in enumerate(STRIDES):
            alone = make_plan(settings.model_copy(update={"strides": (stride,)}), config.policy.num_steps)
            correlations = zip(plan.trained_steps, correlation_SB[place], strict=True)
            figures[f"{solver}, stride {stride:g}"] = {
                "nfe_a_task": alone.nfe,
                **{f"rank correlation, step {i}": float(r) for i, r in correlations},
                **{f"signal an NFE, {n} steps": float(e) for n, e in enumerate(efficiency_SB[place], 1)},
            }
    return figures


def _rank_correlations(trees: list[Tree], reward_M: np.ndarray, trained_steps: Sequence[int]) -> np.ndarray:
    """How each stride ranks the siblings of a task, compared with full completion, (S, B).

    Args:
        trees: the tree of the task with the leaves of one stride alone, for each stride.
    """
    full = trees[0].reduce(reward_M)
    pairs = [(full, cheap.reduce(reward_M)) for cheap in trees]
    return np.array([rank_correlations(*pair, trees[0].step_N, trained_steps) for pair in pairs])


def _gradients(
    learner: Learner,
    settings: AdvantageSettings,
    decisions: Decisions,
    trees: list[Tree],
    reward_M: np.ndarray,
    trained_steps: Sequence[int],
) -> np.ndarray:
    """The gradient of a task's loss by branch step and stride, (B, S, D)."""
    step_N = trees[0].step_N
    advantage_SNK = [advantages(settings, [tree], [reward_M]).by_task[0] for tree in trees]
    return np.array(
        [
            [_gradient(learner, decisions, a_NK * (step_N == i)[:, None]) for a_NK in advantage_SNK]
            for i in trained_steps
        ]
    )


def _gradient(learner: Learner, decisions: Decisions, advantage_NK: np.ndarray) -> np.ndarray:
    """The gradient of a task's loss, all trained parameters flattened, (D,)."""
    parameters = list(learner.policy.parameters.values())
    for micro in learner.objective.micro_batches(decisions, advantage_NK):
        (learner.objective.loss(micro, None).total / advantage_NK.size).backward()
    gradient_D = torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.flatten().cpu() for p in parameters])
    learner.optimizer.zero_grad(set_to_none=True)
    return gradient_D.numpy()


def _costs(config: RunConfig, settings: TrunkSettings, passes: int) -> np.ndarray:
    """NFE of a task, the learner's passes too, by stride and by the number of branch steps, (S, B)."""

    def cost(stride: float, steps: int) -> float:
        alone = settings.model_copy(update={"strides": (stride,), "branch_steps": steps})
        plan = make_plan(alone, config.policy.num_steps)
        return plan.nfe + passes * plan.decisions

    steps = range(1, len(make_plan(settings, config.policy.num_steps).trained_steps) + 1)
    return np.array([[cost(stride, count) for count in steps] for stride in STRIDES])


class Signal:
    """Sums over tasks of what gradients have in common; those of different prompts are independent, which takes the
    noise out of their products.
    """

    def __init__(self, steps: int, strides: int, size: int) -> None:
        self.sum_BSD = np.zeros((steps, strides, size))
        self.square_SB = np.zeros((strides, steps))
        self.own_SB = np.zeros((strides, steps))

    def add(self, gradient_BSD: np.ndarray) -> None:
        """Take one task's gradients by branch step and stride; the first stride is full completion."""
        self.sum_BSD += gradient_BSD
        until_BSD = gradient_BSD.cumsum(0)
        self.square_SB += (until_BSD**2).sum(-1).T
        self.own_SB += (until_BSD @ until_BSD[-1, 0]).T

    def efficiency(self, cost_SB: np.ndarray) -> np.ndarray:
        """Squared signal-to-noise of an NFE relative to the whole plan, by stride and number of branch steps, (S, B).

        The signal of a plan is its mean gradient along the whole plan's: ⟨E g, E f⟩ over pairs of different prompts.
        Its noise is E‖g‖². How far a budget of NFE takes a policy depends on signal² / (noise · cost), at the
        learning rate that suits it.
        """
        until_BSD = self.sum_BSD.cumsum(0)
        signal_SB = (until_BSD @ until_BSD[-1, 0]).T - self.own_SB
        efficiency_SB = signal_SB**2 / (self.square_SB * cost_SB)
        return efficiency_SB / efficiency_SB[0, -1]


def ranks(values_K: np.ndarray) -> np.ndarray:
    """The rank of each value from 1, (K,); equal values share the mean of their ranks."""
    _, which_K, count = np.unique(values_K, return_inverse=True, return_counts=True)
    return (count.cumsum() - (count - 1) / 2)[which_K]


def rank_correlations(
    full_NK: np.ndarray, cheap_NK: np.ndarray, step_N: np.ndarray, steps: Sequence[int]
) -> list[float]:
    """Spearman's rank correlation by branch step, a mean over groups. Groups without spread on a side are left out."""
    means = []
    for i in steps:
        pairs = zip(full_NK[step_N == i], cheap_NK[step_N == i], strict=True)
        spread = [(full_K, cheap_K) for full_K, cheap_K in pairs if np.ptp(full_K) > 0 and np.ptp(cheap_K) > 0]
        known = [np.corrcoef(ranks(full_K), ranks(cheap_K))[0, 1] for full_K, cheap_K in spread]
        means.append(float(np.mean(known)) if known else float("nan"))
    return means
