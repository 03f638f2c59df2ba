"""Settings of generation: the plan and the workers that run it."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from services.settings import Settings


class TrunkSettings(Settings):
    """TempFlow-GRPO: a deterministic trunk a seed, and at each step K stochastic branches completed by ODE."""

    name: Literal["trunk"] = "trunk"
    seeds: int = Field(4, ge=1)
    """Initial noises a prompt, each with a trunk of its own."""
    explorations: int = Field(6, ge=1)
    """K, the branches drawn at one step of one trunk."""
    branch_steps: int | None = Field(None, ge=1)
    """Branch at the first so many steps only; at all but the last if not given."""


class ChainSettings(Settings):
    """Flow-GRPO: every step is stochastic, and all but the last are trained on the final image's reward."""

    name: Literal["chain"] = "chain"
    seeds: int = Field(24, ge=2)
    """Trajectories a prompt (the group size)."""


def _plan_name(value: Any) -> str:
    """Which plan a mapping describes; TempFlow-GRPO's where it does not say."""
    return value.get("name", "trunk") if isinstance(value, dict) else value.name


PlanSettings = Annotated[
    Annotated[TrunkSettings, Tag("trunk")] | Annotated[ChainSettings, Tag("chain")], Discriminator(_plan_name)
]


class RolloutSettings(Settings):
    """The rollout workers."""

    workers: int = Field(1, ge=1)
    micro_batch: int = Field(24, ge=1)
    """Rows of one transformer forward; the halves of classifier-free guidance count as rows."""
    decode_batch: int = Field(24, ge=1)
    """Latents decoded at once."""
    num_cpus: float = Field(1, ge=0)
    num_gpus: float = Field(0, ge=0)
    threads: int = Field(1, ge=1)
    """CPU threads of one worker. Part of the arithmetic: another count gives other last bits."""
    max_bytes_in_flight: int = Field(2**30, ge=1)
    """Generation pauses while this many bytes of images wait for their scores."""
    embedding_bytes: int = Field(2**30, ge=0)
    """Text embeddings that a worker keeps in memory; each distinct prompt is encoded once while it is kept."""
    embedding_folder: str | None = None
    """Where text embeddings are kept as Arrow files, for all workers and later runs; nowhere if not given."""
    offload_text_encoders: bool = False
    """Keep the text encoders on the CPU, and on the GPU only while they encode prompts that are new."""
    task_timeout_s: float = Field(1800, gt=0)
    """A task that takes longer counts as lost."""
