"""The families as tests see them: how to build a tiny one, and how to call its own pipeline the way we sample."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusers import (
    Flux2KleinPipeline,
    Flux2Pipeline,
    FluxPipeline,
    QwenImagePipeline,
    StableDiffusion3Pipeline,
    ZImagePipeline,
)
from torch import Tensor

from actors.policy.policy import Policy
from system.bench.gpu.tiny.flux import build_flux
from system.bench.gpu.tiny.flux2 import build_flux2, build_flux2_klein
from system.bench.gpu.tiny.qwen import build_qwen
from system.bench.gpu.tiny.sd3 import build_sd3
from system.bench.gpu.tiny.z_image import TARGETS, build_z_image


@dataclass(frozen=True)
class Case:
    pipeline: Any
    build: Callable[[Path], Path]
    guidances: tuple[float, ...]
    """Off first, on last."""
    call: Callable[[float], dict[str, Any]]
    """Guidance as the pipeline's own arguments."""
    settings: dict[str, Any] = field(default_factory=dict)
    absent: tuple[str, ...] = ()
    """Parts that the folder lacks and `from_pretrained` must be told of."""
    given: Callable[[Tensor], Tensor] = lambda start: start
    """Our noise as the pipeline's `latents`."""
    shown: Callable[[Policy, Tensor], Tensor] = lambda policy, latent: latent
    """Our final latents as the pipeline's own output."""

    def __str__(self) -> str:
        return self.pipeline.__name__.removesuffix("Pipeline")

    def arguments(self, prompts: list[str], guidance: float, steps: int) -> dict[str, Any]:
        """Keyword arguments of the pipeline for the images that tiny settings ask of us."""
        length = self.settings.get("max_sequence_length", 1)
        return {
            "prompt": list(prompts),  # Z-Image's pipeline changes it
            "num_inference_steps": steps,
            "height": 16,
            "width": 16,
            "max_sequence_length": length,
            **self.call(guidance),
        }


def _qwen_guidance(guidance: float) -> dict[str, Any]:
    return {"true_cfg_scale": guidance, "negative_prompt": [" "] * 2} if guidance > 1 else {"true_cfg_scale": 1.0}


FAMILIES = (
    Case(
        StableDiffusion3Pipeline,
        build_sd3,
        (1.0, 4.5),
        lambda guidance: {"guidance_scale": guidance},
        absent=("text_encoder_3", "tokenizer_3"),
    ),
    Case(
        FluxPipeline,
        build_flux,
        (1.0, 3.5),
        lambda guidance: {"guidance_scale": guidance},
        settings={"max_sequence_length": 12},
    ),
    Case(
        Flux2Pipeline,
        build_flux2,
        (1.0, 4.0),
        lambda guidance: {"guidance_scale": guidance},
        settings={"max_sequence_length": 24},
        given=lambda start_MLD: start_MLD.mT.unflatten(2, (2, 2)),
    ),
    Case(
        Flux2KleinPipeline,
        build_flux2_klein,
        (1.0, 4.0),
        lambda guidance: {"guidance_scale": guidance},
        settings={"max_sequence_length": 24},
        given=lambda start_MLD: start_MLD.mT.unflatten(2, (2, 2)),
        shown=lambda policy, latent_MLD: policy.family.unpack(latent_MLD),
    ),
    Case(
        ZImagePipeline,
        build_z_image,
        (0.0, 3.0),
        lambda guidance: {"guidance_scale": guidance},
        settings={"max_sequence_length": 60, "lora": {"rank": 4, "alpha": 8, "targets": list(TARGETS)}},
    ),
    Case(QwenImagePipeline, build_qwen, (1.0, 4.0), _qwen_guidance, settings={"max_sequence_length": 60}),
)
