"""The families as tests see them: how to build a tiny one, and how to call its own pipeline the way we sample."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import (
    Flux2KleinPipeline,
    Flux2Pipeline,
    FluxPipeline,
    QwenImage21Pipeline,
    QwenImagePipeline,
    StableDiffusion3Pipeline,
    ZImagePipeline,
)
from torch import Tensor

from actors.policy.families.qwen_image21 import TextProcessor
from actors.policy.policy import Policy
from system.bench.gpu.tiny.flux import build_flux
from system.bench.gpu.tiny.flux2 import build_flux2, build_flux2_klein
from system.bench.gpu.tiny.qwen import build_qwen
from system.bench.gpu.tiny.qwen21 import build_qwen21
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
    made: Callable[[Path], dict[str, Any]] = lambda folder: {}
    """Parts that `from_pretrained` is given, because it would need a package that tests do without."""
    given: Callable[[Tensor], Tensor] = lambda start: start
    """Our noise as the pipeline's `latents`."""
    shown: Callable[[Policy, Tensor], Tensor] = lambda policy, latent: latent
    """Our final latents as the pipeline's own output."""
    seen: Callable[[np.ndarray], np.ndarray] = lambda images_NHWC: images_NHWC
    """The pipeline's images in [0, 1] as ours show them."""

    def __str__(self) -> str:
        return self.pipeline.__name__.removesuffix("Pipeline")

    def loaded(self, folder: Path) -> Any:
        """The stock pipeline of a folder."""
        pipe = self.pipeline.from_pretrained(folder, **dict.fromkeys(self.absent), **self.made(folder))
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def arguments(self, prompt: str, guidance: float, steps: int) -> dict[str, Any]:
        """Keyword arguments of the pipeline for the image that tiny settings ask of us.

        A pipeline gets one prompt at a time: that of Qwen-Image 2.1 gives an image that depends on the other prompts.
        """
        sizes = {"height": 16, "width": 16, "max_sequence_length": 1} | self.settings
        known = inspect.signature(self.pipeline.__call__).parameters
        return {
            "prompt": prompt,
            "num_inference_steps": steps,
            **{name: value for name, value in sizes.items() if name in known},
            **self.call(guidance),
        }


def _qwen_guidance(guidance: float) -> dict[str, Any]:
    return {"true_cfg_scale": guidance, "negative_prompt": " "} if guidance > 1 else {"true_cfg_scale": 1.0}


def _on_white(images_NHWC: np.ndarray) -> np.ndarray:
    opacity_NHW1 = images_NHWC[..., 3:]
    return images_NHWC[..., :3] * opacity_NHW1 + 1 - opacity_NHW1


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
    Case(
        QwenImage21Pipeline,
        build_qwen21,
        (1.0, 4.0),
        _qwen_guidance,
        settings={"max_sequence_length": 60, "height": 64, "width": 32},
        made=lambda folder: {"processor": TextProcessor.from_pretrained(folder, subfolder="processor")},
        seen=_on_white,
    ),
)
