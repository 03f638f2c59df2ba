"""The models that numbers are compared on: a tiny random one of each family, and the embedded miniature."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actors.policy.settings import LoraSettings, PolicySettings
from system.bench.gpu.tiny.flux import build_flux
from system.bench.gpu.tiny.flux2 import build_flux2, build_flux2_klein
from system.bench.gpu.tiny.qwen import build_qwen
from system.bench.gpu.tiny.qwen21 import build_qwen21
from system.bench.gpu.tiny.sd3 import build_sd3
from system.bench.gpu.tiny.z_image import TARGETS, build_z_image
from system.recipe.load import load_config


@dataclass(frozen=True)
class Tiny:
    """A family's tiny pipeline, of images of 16×16 pixels if `more` does not give another size."""

    build: Callable[[Path], Path]
    """Saves the pipeline in a folder."""
    guidance: float
    """A guidance that the family takes as switched on."""
    more: dict[str, Any] = field(default_factory=dict)
    """Further settings of the policy."""
    fixed_size: bool = False
    """Whether it has positions for 16×16 pixels only."""


TINY = {
    "StableDiffusion3Pipeline": Tiny(build_sd3, 4.5, fixed_size=True),
    "FluxPipeline": Tiny(build_flux, 3.5, {"max_sequence_length": 12}),
    "Flux2Pipeline": Tiny(build_flux2, 4.0, {"max_sequence_length": 24}),
    "Flux2KleinPipeline": Tiny(build_flux2_klein, 4.0, {"max_sequence_length": 24}),
    "ZImagePipeline": Tiny(
        build_z_image, 3.0, {"max_sequence_length": 60, "lora": LoraSettings(rank=4, alpha=8, targets=TARGETS)}
    ),
    "QwenImagePipeline": Tiny(build_qwen, 4.0, {"max_sequence_length": 60}),
    "QwenImage21Pipeline": Tiny(build_qwen21, 4.0, {"max_sequence_length": 60, "height": 64, "width": 32}),
}
"""The tiny pipelines by pipeline class, as in `actors.policy.families.registry.FAMILIES`."""
MINIATURE = "miniature"
MODELS = (*TINY, MINIATURE)


def settings_of(model: str, folder: Path, **changes: Any) -> PolicySettings:
    """Settings of one of MODELS, with guidance on where it is a tiny one, which is built below `folder` if need be."""
    if model == MINIATURE:
        return load_config("shapes").policy.model_copy(update=changes)
    tiny = TINY[model]
    if not (folder / model).exists():
        tiny.build(folder / model)
    own: dict[str, Any] = {
        "model": str(folder / model),
        "height": 16,
        "width": 16,
        "num_steps": 5,
        "guidance": tiny.guidance,
        "max_sequence_length": 1,
        "lora": LoraSettings(rank=4, alpha=8),
    }
    return PolicySettings(**(own | tiny.more | changes))
