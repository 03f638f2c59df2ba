"""Settings of learning: advantage, objective, optimizer."""

from typing import Literal

from pydantic import Field

from services.settings import Settings


class AdvantageSettings(Settings):
    """How rewards become advantages."""

    group: Literal["seed", "prompt", "prompt_step"] = "seed"
    """Who is compared with whom. `seed`: the K siblings of one state (TempFlow-GRPO); `prompt_step`: all actions of a
    prompt at a step (its ablation); `prompt`: all actions of a prompt (Flow-GRPO)."""
    std: Literal["group", "batch"] = "group"
    """Divide by the group's own standard deviation, or by that of all rewards of the step (Flow-GRPO)."""
    epsilon: float = Field(1e-4, gt=0)
    """Added to the standard deviation."""
    clip: float = Field(5.0, gt=0)
    """Advantages are clipped to ± this."""


class ObjectiveSettings(Settings):
    """The clipped GRPO objective on decisions."""

    name: Literal["grpo"] = "grpo"
    noise_weights: bool = True
    """Weight each step by its injected noise s_i (TempFlow-GRPO)."""
    clip_range: float = Field(1e-4, gt=0)
    kl: float = Field(0.0, ge=0)
    """β of the KL term to the base without its adapter."""
    optimizer_steps: int = Field(1, ge=1)
    """Optimizer steps that one training step's decisions are split into, by task."""


class EmaSettings(Settings):
    """An exponential moving average of the adapter, used for evaluation and for `lora/`."""

    decay: float = Field(0.9, gt=0, lt=1)
    """Upper bound of the decay min((1 + n) / (10 + n), decay) at update n."""
    every: int = Field(8, ge=1)
    """Optimizer steps between updates."""


class LearnerSettings(Settings):
    """The learner."""

    lr: float = Field(3e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(1e-4, ge=0)
    eps: float = Field(1e-8, gt=0)
    max_grad_norm: float = Field(1.0, gt=0)
    micro_batch: int = Field(8, ge=1)
    """Decisions of one forward and backward."""
    max_drift: float = Field(0.05, gt=0)
    """A run stops when the mean |Δ log p| between rollout and learner exceeds this at any step."""
    ema: EmaSettings | None = None
    num_cpus: float = Field(1, ge=0)
    num_gpus: float = Field(0, ge=0)
    threads: int = Field(1, ge=1)
    """CPU threads. Part of the arithmetic: another count gives other last bits."""
    update_timeout_s: float = Field(3600, gt=0)
