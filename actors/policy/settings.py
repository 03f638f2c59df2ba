"""Settings of the policy and of the SDE kernel."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from services.base.settings import Listed, Settings, name_or


class LoraSettings(Settings):
    """The trained adapter. Defaults are those of Flow-GRPO for SD3.5-Medium."""

    rank: int = Field(32, ge=1)
    """Rank of the two matrices that are trained beside each weight."""
    alpha: int = Field(64, ge=1)
    """The adapter is scaled by alpha / rank."""
    targets: Listed[str] = (
        "attn.to_q",
        "attn.to_k",
        "attn.to_v",
        "attn.to_out.0",
        "attn.add_q_proj",
        "attn.add_k_proj",
        "attn.add_v_proj",
        "attn.to_add_out",
    )
    """Suffixes of the module names that get an adapter."""


class FlowSDESettings(Settings):
    """The Flow-SDE kernel of Flow-GRPO and TempFlow-GRPO."""

    name: Literal["flow_sde"] = "flow_sde"
    noise_level: float = Field(0.7, gt=0)
    """a, the scale of the injected noise. Published values: SD3.5-M 0.7, FLUX.1-dev 0.9, Qwen-Image 1.2."""


class CPSSettings(Settings):
    """Coefficient-preserving sampling, the kernel of Flow-GRPO-Fast."""

    name: Literal["cps"] = "cps"
    noise_level: float = Field(0.8, gt=0, lt=1)
    """a. The share of the noise that is drawn anew in a step is sin(aπ/2)."""


class DanceSettings(Settings):
    """The kernel of DanceGRPO, of constant diffusion."""

    name: Literal["dance"] = "dance"
    noise_level: float = Field(0.3, gt=0)
    """η, the constant scale of the injected noise."""


KernelSettings = Annotated[
    Annotated[FlowSDESettings, Tag("flow_sde")]
    | Annotated[CPSSettings, Tag("cps")]
    | Annotated[DanceSettings, Tag("dance")],
    Discriminator(name_or("flow_sde")),
]


class PolicySettings(Settings):
    """Which model is trained, and how it samples."""

    model: str
    """A folder in diffusers' layout, a hub id, or `package:NAME/PATH` for a folder inside a package."""
    height: int = Field(512, gt=0)
    """Height of the images in pixels."""
    width: int = Field(512, gt=0)
    """Width of the images in pixels."""
    num_steps: int = Field(10, ge=2)
    """T, the number of sampling steps in training."""
    guidance: float = Field(4.5, ge=0)
    """Guidance in sampling and training. For SD3, FLUX.2 klein base and Qwen-Image it is classifier-free, and 1 or less
    switches it off. For FLUX.1-dev and FLUX.2 [dev] it is an input of the model. For
    Z-Image it counts as in its pipeline: 0 switches it off, and 4 is the 5 of the others."""
    max_sequence_length: int = Field(256, ge=1)
    """Number of text tokens from the large text encoder. For an SD3 without T5, it is the length of the block of zeros
    in place of T5's tokens."""
    dtype: Literal["fp32", "bf16"] = "bf16"
    """The number type in which the model computes, its adapter included. The learner's master copies of the trained
    weights, the optimizer's state and the sampler's arithmetic are fp32."""
    vae_dtype: Literal["fp32", "bf16"] = "fp32"
    """The number type in which the VAE decodes. bf16 needs half of the memory and less than half of the time of a
    decode; pixels then differ from those of fp32 by less than one of 255 levels in the mean, and by a few at most."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """The device on which the model runs. `auto` takes a GPU if the role has one."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward instead of keeping them: less memory, more time."""
    compile: bool = False
    """Compile each block of the transformer with `torch.compile`, for static shapes."""
    attention: (
        Literal[
            "native",
            "_native_cudnn",
            "_native_flash",
            "_native_efficient",
            "_native_math",
            "flash",
            "_flash_3",
            "xformers",
        ]
        | None
    ) = None
    """The attention back end, by its name in diffusers. If not given, PyTorch chooses one. `flash`, `_flash_3` and
    `xformers` need their packages. FLUX, FLUX.2, Qwen-Image and Z-Image have a choice, SD3 has none. Qwen-Image and
    Z-Image mask text, which not every back end can."""
    lora: LoraSettings | None = LoraSettings()
    """The trained adapter. `null` trains every weight of the transformer instead."""
    adapter: str | None = None
    """The `lora/` (or `transformer/`) folder of an earlier run, from which training starts. If not given, training
    starts from the base. The KL term compares with the base in both cases."""
