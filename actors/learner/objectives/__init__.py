"""Objectives: the loss of decisions, or of finished images. No actor knows any of them."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from actors.learner.averages import Average, ema
from actors.learner.objectives.awm import Awm
from actors.learner.objectives.grpo import Grpo
from actors.learner.objectives.guard import GrpoGuard
from actors.learner.objectives.nft import Nft
from actors.learner.objectives.objective import Objective
from actors.learner.settings import (
    AwmSettings,
    EmaSettings,
    GrpoSettings,
    GuardSettings,
    NftSettings,
    ObjectiveSettings,
)
from actors.policy.kernels import Kernel
from actors.policy.policy import Policy


def make_averages(
    settings: ObjectiveSettings, smooth: EmaSettings | None, parameters: Mapping[str, Tensor]
) -> dict[str, Average]:
    """The averages a run keeps: `ema`, of optimizer steps, for evaluation and for objectives that ask for it; and
    `old`, of training steps, which is sampled from.
    """
    averages = {"ema": ema(smooth, parameters)} if smooth else {}
    if isinstance(settings, NftSettings):
        averages["old"] = Average(parameters, settings.old_decay)
    return averages


def make_objective(
    settings: ObjectiveSettings,
    policy: Policy,
    averages: Mapping[str, Average],
    kernel: Kernel,
    micro_batch: int,
    trainable: list[int],
) -> Objective[Any, Any]:
    """The objective of a recipe."""
    match settings:
        case GrpoSettings():
            return Grpo(settings, policy, averages, kernel, micro_batch, trainable)
        case GuardSettings():
            return GrpoGuard(settings, policy, averages, kernel, micro_batch)
        case AwmSettings():
            return Awm(settings, policy, averages, micro_batch)
        case NftSettings():
            return Nft(settings, policy, averages, micro_batch)
