"""Settings of learning: advantage, objective, optimizer."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Strict, Tag

from services.base.settings import Gpus, Settings, name_or

Beta = Annotated[float, Field(ge=0, lt=1)]


class AdvantageSettings(Settings):
    """How rewards become advantages."""

    group: Literal["seed", "prompt", "prompt_step"] = "seed"
    """Who is compared with whom. `seed`: the K siblings of one state (TempFlow-GRPO, G²RPO); `prompt_step`: all actions
    of a prompt at a step (its ablation; BranchGRPO's depth); `prompt`: all actions of a prompt (Flow-GRPO)."""
    std: Literal["group", "batch"] = "group"
    """Divide by the group's own standard deviation, or by that of all rewards of the step (Flow-GRPO)."""
    leaves: Literal["mean", "each"] = "mean"
    """An action's reward is the mean of its leaves'; or the first leaves of a group are compared, then the second ones,
    and an action's advantages are added (G²RPO, whose leaves are granularities)."""
    keep: int | None = Field(None, ge=1)
    """Keep the advantages of this many best and as many worst actions of a group, drop the others (the width pruning
    of BranchGRPO); all if not given."""
    epsilon: float = Field(1e-4, gt=0)
    """Added to the standard deviation."""
    clip: float = Field(5.0, gt=0)
    """Advantages are clipped to ± this."""


class _ObjectiveSettings(Settings):
    optimizer_steps: int = Field(1, ge=1)
    """Optimizer steps that one training step's tasks are split into."""
    kl: float = Field(0.0, ge=0)
    """β of the term that holds the policy to the base without its adapter."""

    @property
    def passes(self) -> int:
        """Transformer passes of the update a row: a forward, a backward (which counts 2), and those held to."""
        return 3 + bool(self.kl)


class _OnDecisionsSettings(_ObjectiveSettings):
    clip_range: float = Field(1e-4, gt=0)
    kl_dt: bool = True
    """KL of the Normals that are drawn from, over 2s² (TempFlow-GRPO); false leaves |dt| out of s² (Flow-GRPO). The
    CPS kernel has no variance: its term is mean (μ − μ_ref)² in both."""


class GrpoSettings(_OnDecisionsSettings):
    """The clipped GRPO objective on decisions."""

    name: Literal["grpo"] = "grpo"
    noise_weights: bool = True
    """Weight each step by its injected noise s_i (TempFlow-GRPO)."""


class GuardSettings(_OnDecisionsSettings):
    """GRPO-Guard: normalised ratios, and steps weighted by 1 / |dt|."""

    name: Literal["grpo_guard"] = "grpo_guard"


class _OnSamplesSettings(_ObjectiveSettings):
    noise_levels: int = Field(6, ge=1)
    """Noise levels drawn for each image, one from each of so many runs of neighbouring steps (a step at least)."""
    share: float = Field(0.9, gt=0, le=1)
    """Share of the schedule, from its start, that noise levels are drawn from."""

    def levels(self, num_steps: int) -> list[list[int]]:
        """The runs of sampling steps that noise levels are drawn from."""
        steps = list(range(max(1, round(self.share * num_steps))))
        runs = min(self.noise_levels, len(steps))
        return [steps[len(steps) * j // runs : len(steps) * (j + 1) // runs] for j in range(runs)]


class AwmSettings(_OnSamplesSettings):
    """Advantage-weighted flow matching on finished images."""

    name: Literal["awm"] = "awm"
    clip_range: float = Field(1.0, gt=0)
    power: float = Field(0.25, gt=0)
    """p of the generalised Huber loss; 1 is the squared error."""
    ema_weight: float = Field(1.0, ge=0)
    """Of the term that holds the policy to its own moving average (learner.ema)."""

    @property
    def passes(self) -> int:
        return super().passes + bool(self.ema_weight)


class NftSettings(_OnSamplesSettings):
    """DiffusionNFT: implicit positive and negative policies, on images sampled from an older one."""

    name: Literal["nft"] = "nft"
    beta: float = Field(1.0, gt=0)
    """How far the implicit policies lie from the old one."""
    scale: float = Field(5.0, gt=0)
    """Of the policy's loss."""
    advantage_clip: float = Field(5.0, gt=0)
    """r = clip(A / (2 · advantage_clip) + ½, 0, 1)."""
    old_rate: float = Field(0.001, ge=0)
    """The old policy keeps min(old_rate · step, old_most) of itself after each training step."""
    old_most: float = Field(0.5, ge=0, lt=1)
    noise_levels: int = Field(9, ge=1)

    @property
    def passes(self) -> int:
        return super().passes + 1

    def old_decay(self, step: int) -> float:
        """What the old policy keeps of itself after training step `step`, counted from 1."""
        return min(self.old_rate * step, self.old_most)


ObjectiveSettings = Annotated[
    Annotated[GrpoSettings, Tag("grpo")]
    | Annotated[GuardSettings, Tag("grpo_guard")]
    | Annotated[AwmSettings, Tag("awm")]
    | Annotated[NftSettings, Tag("nft")],
    Discriminator(name_or("grpo")),
]
OnDecisions = GrpoSettings | GuardSettings
OnSamples = AwmSettings | NftSettings


class EmaSettings(Settings):
    """An exponential moving average of the adapter, used for evaluation and for `lora/`."""

    decay: float = Field(0.9, gt=0, lt=1)
    """Upper bound of the decay min((1 + n) / (10 + n), decay) at update n."""
    every: int = Field(8, ge=1)
    """Optimizer steps between updates."""


class DecaySettings(Settings):
    """A learning rate that falls in a straight line, and stays at its end."""

    steps: int = Field(ge=1)
    """Training steps that it takes; they do not follow from the length of the run, which may change."""
    to: float = Field(0.0, ge=0, le=1)
    """Share of learner.lr at the end."""


class LearnerSettings(Settings):
    """The learner."""

    ranks: int = Field(1, ge=1)
    """Processes that share the tasks of a training step; the resources below are each one's."""
    shard: bool = False
    """Each rank holds a part of the transformer (FSDP2), for models that outgrow one GPU and for full fine-tuning; an
    adapter stays whole. Else each rank holds all of it."""
    lr: float = Field(3e-4, gt=0)
    """Learning rate of AdamW."""
    lr_decay: DecaySettings | None = None
    """How the learning rate falls; it is constant if not given."""
    betas: Annotated[tuple[Beta, Beta], Strict(False)] = (0.9, 0.999)
    """Decay rates of AdamW's two moments."""
    weight_decay: float = Field(1e-4, ge=0)
    """Weight decay of AdamW."""
    eps: float = Field(1e-8, gt=0)
    """AdamW's term against a division by zero."""
    max_grad_norm: float = Field(1.0, gt=0)
    """A gradient whose norm is larger is scaled down to this norm."""
    micro_batch: int = Field(8, ge=1)
    """Decisions of one forward and backward."""
    max_staleness: int = Field(0, ge=0)
    """How many policy versions experience is older than the policy that learns from it (fewer at a run's start), so
    that generation goes on while the learner learns; 0 is on-policy. Old log-probs come from the version that
    generated."""
    max_drift: float = Field(0.05, gt=0)
    """A run stops when the mean |Δ log p| between rollout and learner exceeds this at any step."""
    ema: EmaSettings | None = None
    """The moving average that is evaluated and saved; none if not given."""
    num_cpus: float = Field(1, ge=0)
    """CPUs that Ray reserves for one rank."""
    num_gpus: Gpus = 0
    """GPUs that Ray reserves for one rank: a fraction of one, or a whole number."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Labels of the Ray nodes that ranks may be placed on; any node if empty. Colocated ranks go with the rollout
    workers."""
    threads: int = Field(1, ge=1)
    """CPU threads. Part of the arithmetic: another count gives other last bits."""
    update_timeout_s: float = Field(3600, gt=0)
    """Seconds after which an update counts as lost."""

    def rate(self, version: int) -> float:
        """Learning rate of the update of policy version `version`."""
        if self.lr_decay is None:
            return self.lr
        return self.lr * (1 - (1 - self.lr_decay.to) * min(1.0, version / self.lr_decay.steps))
