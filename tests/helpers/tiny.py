"""The settings of a policy of any of the tiny pipelines, and how to give its adapter weights."""

from pathlib import Path

from actors.policy.settings import LoraSettings, PolicySettings
from system.bench.gpu.work import stir

__all__ = ["stir", "tiny_settings"]


def tiny_settings(folder: Path, **changes) -> PolicySettings:
    """Settings of a policy of any of the tiny pipelines."""
    defaults = {
        "model": str(folder),
        "height": 16,
        "width": 16,
        "num_steps": 5,
        "guidance": 1.0,
        "max_sequence_length": 1,
        "dtype": "fp32",
        "device": "cpu",
        "lora": LoraSettings(rank=4, alpha=8),
    }
    return PolicySettings(**(defaults | changes))
