"""Settings of the policy and of the SDE kernel."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from services.base.settings import Listed, Settings, name_or


class LoraSettings(Settings):
    """The trained adapter. Defaults are those of Flow-GRPO for SD3.5-Medium."""

    rank: int = Field(32, ge=1)
    alpha: int = Field(64, ge=1)
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
    """a: SD3.5-M 0.7, FLUX.1-dev 0.9, Qwen-Image 1.2."""


class CPSSettings(Settings):
    """Coefficient-preserving sampling, the kernel of Flow-GRPO-Fast."""

    name: Literal["cps"] = "cps"
    noise_level: float = Field(0.8, gt=0, lt=1)
    """a; the share of noise that is drawn anew is sin(aπ/2)."""


class DanceSettings(Settings):
    """The kernel of DanceGRPO, of constant diffusion."""

    name: Literal["dance"] = "dance"
    noise_level: float = Field(0.3, gt=0)
    """η."""


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
    width: int = Field(512, gt=0)
    num_steps: int = Field(10, ge=2)
    """T, the sampling steps of training."""
    guidance: float = Field(4.5, ge=0)
    """In sampling and training: classifier-free for SD3 and Qwen-Image, where at most 1 means off; an input of the
    model for FLUX.1-dev."""
    max_sequence_length: int = Field(256, ge=1)
    """Text tokens of the T5 (or its zero block where the folder has no T5)."""
    dtype: Literal["fp32", "bf16"] = "bf16"
    """Compute type of the base. The adapter (or, in full fine-tuning, the learner's master copy of every weight), the
    optimizer's state and the sampler's arithmetic are fp32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    gradient_checkpointing: bool = False
    compile: bool = False
    """`torch.compile` the transformer; rollout and learner compile one shape each."""
    lora: LoraSettings | None = LoraSettings()
    """The trained adapter; null trains every weight of the transformer."""
    adapter: str | None = None
    """Where training starts: the `lora/` (or `transformer/`) folder of an earlier run; fresh if not given. The KL term
    still compares with the base."""
