"""Objectives: the losses of decisions and of finished images. The learner finds one by the name in the settings."""

import importlib
from collections.abc import Sequence
from typing import Any

from actors.learner.averages import Average
from actors.learner.objectives.objective import Objective
from actors.learner.settings import ObjectiveSettings
from actors.policy.kernels import Kernel
from actors.policy.policy import Policy


def make_objective(
    settings: ObjectiveSettings,
    policy: Policy,
    averages: Sequence[Average],
    kernel: Kernel,
    micro_batch: int,
    trainable: list[int],
) -> Objective[Any, Any]:
    """The objective of a recipe. The settings name its class."""
    module, _, attribute = settings.loss.partition(":")
    return getattr(importlib.import_module(module), attribute)(
        settings, policy, averages, kernel, micro_batch, trainable
    )
