"""What a GPU must be able to do for a policy, by its compute capability. No Torch."""

from __future__ import annotations

import re
from collections.abc import Sequence

from actors.policy.settings import PolicySettings

Capability = tuple[int, int]
"""CUDA's compute capability, such as (9, 0)."""

BF16: Capability = (8, 0)
"""Ampere is the first generation with bf16 (CUDA C++ Programming Guide, "Compute Capabilities")."""
ATTENTION: dict[str, Capability] = {"_native_flash": BF16, "_native_cudnn": BF16, "flash": BF16, "_flash_3": (9, 0)}
"""The least capability of a back end, by the documentation of PyTorch (the first two) and flash-attention."""


def card_fault(policy: PolicySettings, capability: Capability, built_for: Sequence[str]) -> str | None:
    """Why a GPU cannot run a policy, as the end of a sentence about the GPU; None if it can.

    Args:
        built_for: the architectures of the build of PyTorch, as `torch.cuda.get_arch_list()` gives them.
    """
    has = "{}.{}".format(*capability)
    if built_for and not any(_runs_on(one, capability) for one in built_for):
        return (
            f"has compute capability {has}, and PyTorch was built for {', '.join(built_for)}; install a build of "
            "PyTorch for this GPU"
        )
    in_bf16 = [f"policy.{key}" for key in ("dtype", "vae_dtype") if getattr(policy, key) == "bf16"]
    if in_bf16 and capability < BF16:
        return f"does not compute in bf16 (its compute capability is {has}); set {' and '.join(in_bf16)} to fp32"
    least = ATTENTION.get(policy.attention or "")
    if least and capability < least:
        return (
            f"has compute capability {has}, and policy.attention={policy.attention} needs "
            f"{'{}.{}'.format(*least)}; name another back end, or remove the setting"
        )
    return None


def _runs_on(built_for: str, capability: Capability) -> bool:
    """Whether a GPU runs code of an architecture: `sm_86` is for 8.6 and later 8.x, `compute_80` for all from 8.0."""
    found = re.match(r"(sm|compute)_(\d+)(\d)", built_for)
    if found is None:
        return True  # another maker's name
    of = int(found[2]), int(found[3])
    return of <= capability and (found[1] == "compute" or of[0] == capability[0])
