"""The settings of learning: advantage rule, objective, optimizer and ranks."""

import re
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, Strict

from actors.learner.weight_sets import Use, WeightSet
from actors.policy.settings import CPSSettings, KernelSettings, PolicySettings
from actors.trajectory import RewardFunction
from services.base.errors import UserError
from services.base.importing import imported
from services.base.settings import Gpus, Settings

Beta = Annotated[float, Field(ge=0, lt=1)]


def _mean_each_or_path(text: str) -> str:
    if text not in ("mean", "each") and not re.fullmatch(r"\w+(\.\w+)*:\w+", text):
        raise ValueError("it is `mean`, `each` or the path of a function, `module:function`")
    return text


class AdvantageSettings(Settings):
    """How rewards become advantages."""

    group: Literal["seed", "prompt", "prompt_step"] = "seed"
    """Who is compared with whom. `seed`: the K siblings of one state (TempFlow-GRPO, G²RPO); `prompt_step`: all actions
    of a prompt at a step (its ablation; BranchGRPO's depth); `prompt`: all actions of a prompt (Flow-GRPO)."""
    std: Literal["group", "batch"] = "group"
    """Advantages are divided by the standard deviation of their group, or by that of all rewards of the step
    (Flow-GRPO)."""
    leaves: Annotated[str, AfterValidator(_mean_each_or_path)] = "mean"
    """How the leaves of an action are reduced. `mean`: the action's reward is the mean of its leaves' rewards. `each`:
    the first leaves of a group are compared with each other, then the second ones, and so on; the action's advantages
    are added (G²RPO, whose leaves are granularities). `module:function`: a function of a task's tree and of the rewards
    of its leaves gives the reward of each action; if it needs `plan.baselines`, it is marked with
    `actors.trajectory.reads_baselines` (TP-GRPO)."""
    keep: int | None = Field(None, ge=1)
    """Only this many of the best and as many of the worst actions of a group keep their advantages; the others get 0
    (the width pruning of BranchGRPO). If not given, all keep them."""
    epsilon: float = Field(1e-4, gt=0)
    """A number that is added to the standard deviation."""
    clip: float = Field(5.0, gt=0)
    """Advantages are clipped to ± this number."""

    @property
    def reward_function(self) -> RewardFunction | None:
        """The function that `leaves` names; None for `mean` and `each`.

        Raises:
            UserError: the function cannot be imported.
        """
        module, _, attribute = self.leaves.partition(":")
        if not attribute:
            return None
        try:
            return getattr(imported(module), attribute)
        except (ImportError, AttributeError) as error:
            raise UserError(f"advantage.leaves: {self.leaves}: {error}; check the import path") from error

    def check(self, leaves_per_action: int, has_baselines: bool) -> None:
        """Refuse a rule that the leaves of the plan do not fit.

        Raises:
            ValueError: names the key and the fix.
            UserError: `leaves` names a function that cannot be imported.
        """
        if self.leaves == "each" and leaves_per_action < 2:
            raise ValueError(
                "advantage.leaves: `each` needs several leaves for each action; set plan.strides to two or more"
            )
        reads_baselines = getattr(self.reward_function, "reads_baselines", False)
        if reads_baselines and not has_baselines:
            raise ValueError(
                f"advantage.leaves: {self.leaves} reads baselines; set plan.baselines to true (plan.name = window)"
            )
        if has_baselines and not reads_baselines:
            raise ValueError(
                f"advantage.leaves: {self.leaves} does not tell baselines from other leaves; set plan.baselines to "
                "false, or name a function that is marked with actors.trajectory.reads_baselines"
            )


class ObjectiveSettings(Settings):
    """The settings that all objectives share. Each objective adds its `name`."""

    loss: ClassVar[str]
    """The class in `actors.learner.objectives` that computes the loss, as `module:Class`. It needs Torch; settings do
    not."""
    trains_on: ClassVar[Literal["decisions", "images"]]
    """What a plan must give for this objective."""
    compares_with_old: ClassVar[bool] = True
    """Whether the loss compares with the policy before the update, the old policy."""

    name: str
    optimizer_steps: int = Field(1, ge=1)
    """Number of optimizer steps in one pass over the tasks of a training step, which are split evenly among them."""
    epochs: int = Field(1, ge=1)
    """Number of passes over the tasks of a training step, each with `optimizer_steps` optimizer steps. All passes
    compare with the policy before the first one. Images cost more than updates, so more passes may learn more from
    them, as long as the policy stays close to the one that made them."""
    kl: float = Field(0.0, ge=0)
    """β, the weight of the KL term, which holds the policy close to the base."""
    reference: str | None = None
    """The folder of an adapter, such as the `lora/` of a run, that takes the place of the base in the KL term. It must
    have the rank and the targets of policy.lora. If not given, the policy is held close to the base."""

    @property
    def trains_guided(self) -> bool:
        """Whether the trained velocity is the guided one, from which images are sampled."""
        return True

    @property
    def passes(self) -> int:
        """The transformer passes of the update for one row: a forward, a backward (which counts 2), and a forward of
        the reference if the loss compares with it."""
        return 3 + self.compares_with_reference

    @property
    def compares_with_reference(self) -> bool:
        """Whether the loss needs the velocity of the reference: of the base, or of `reference`."""
        return bool(self.kl)

    def rows(self, items: int, num_steps: int) -> int:
        """The number of rows of the update for `items` decisions or images of a task."""
        return items

    def task_passes(self, rows: int, stale: bool) -> float:
        """The transformer passes of the update for `rows` rows. `stale`: an older policy version generated them."""
        return rows * (self.epochs * self.passes + self.read_back(stale))

    def read_back(self, stale: bool) -> float:
        """The share of the rows whose old values are computed before the update, by one more forward.

        The first optimizer step needs none, because its own values are the old ones, unless an older policy version
        generated the rows (`stale`).
        """
        if not self.compares_with_old:
            return 0.0
        return 1.0 if stale else (self.optimizer_steps - 1) / self.optimizer_steps

    def weight_sets(self, ema: "EmaSettings | None") -> tuple[WeightSet, ...]:
        """The weight sets that the learner keeps. Each use has one set at most. `ema` is the setting of the recipe."""
        return (ema.weight_set(),) if ema else ()

    def check_plan(self, plan_name: str, plan_trains: str) -> None:
        """Refuse a plan that does not give what this objective trains on.

        Raises:
            ValueError: names both.
        """
        if self.trains_on == plan_trains:
            return
        fix = "set plan.name to samples" if self.trains_on == "images" else "choose a plan that has decisions"
        raise ValueError(
            f"objective.name: {self.name} trains on {self.trains_on}, but plan.name = {plan_name} gives {plan_trains}; "
            f"{fix}"
        )

    def check(self, kernel: KernelSettings, learner: "LearnerSettings", prompts_per_step: int) -> None:
        """Refuse settings that this objective cannot be trained with.

        Raises:
            ValueError: names the key, the reason and the fix.
        """
        if self.optimizer_steps > prompts_per_step:
            raise ValueError(
                f"objective.optimizer_steps: {prompts_per_step} prompts a step cannot be split into "
                f"{self.optimizer_steps}; raise data.prompts_per_step or lower it"
            )
        if self.reference and not self.compares_with_reference:
            raise ValueError(
                "objective.reference: the loss compares with no reference; set objective.kl above 0, or remove it"
            )


class DecisionObjectiveSettings(ObjectiveSettings):
    """An objective that compares the log-probabilities of actions."""

    trains_on = "decisions"

    kl_dt: bool = True
    """Which variance the KL term divides (μ − μ_ref)² by. true: 2s², as in the KL divergence of the two Normal
    distributions (TempFlow-GRPO). false: the same without the factor |dt| in s² (Flow-GRPO). The CPS kernel has no
    variance, so its KL term is mean (μ − μ_ref)² in both cases."""


class ClippedSettings(DecisionObjectiveSettings):
    """An objective that clips the ratio of an action's probabilities under the policy and under the old policy."""

    clip_range: float = Field(1e-4, gt=0)
    """How far a ratio may move from 1 before its gradient is cut off."""


class GrpoSettings(ClippedSettings):
    """The clipped GRPO objective on decisions."""

    loss = "actors.learner.objectives.grpo:Grpo"

    name: Literal["grpo"] = "grpo"
    noise_weights: bool = True
    """Whether the loss of step i is weighted by the noise s_i that is injected at this step (TempFlow-GRPO)."""

    def check(self, kernel: KernelSettings, learner: "LearnerSettings", prompts_per_step: int) -> None:
        """Refuse noise weights with the CPS kernel, because the gradient of its log p already scales with the noise."""
        super().check(kernel, learner, prompts_per_step)
        if isinstance(kernel, CPSSettings) and self.noise_weights:
            raise ValueError(
                "objective.noise_weights: the gradient of the CPS kernel's log p already scales with the injected "
                "noise; set objective.noise_weights to false, or kernel.name to flow_sde"
            )


class LeafObjectiveSettings(ObjectiveSettings):
    """An objective that trains the velocity at noised copies of finished images."""

    trains_on = "images"

    noise_levels: int = Field(6, ge=1)
    """Number of noise levels for each image. The steps are split into this many runs of neighbouring steps (at
    most one for each step), and one level is drawn from each run."""
    share: float = Field(0.9, gt=0, le=1)
    """The share of the schedule, counted from its start, from which noise levels are drawn."""
    guided: bool = True
    """Whether the trained velocity has classifier-free guidance, as it has where images are sampled. If false, the
    velocity for the prompt alone is trained, in one forward instead of two."""

    @property
    def trains_guided(self) -> bool:
        """What the setting says."""
        return self.guided

    def levels(self, num_steps: int) -> list[list[int]]:
        """The runs of neighbouring sampling steps. One noise level is drawn from each."""
        steps = list(range(max(1, round(self.share * num_steps))))
        runs = min(self.noise_levels, len(steps))
        return [steps[len(steps) * j // runs : len(steps) * (j + 1) // runs] for j in range(runs)]

    def trained_images(self, images: int) -> int:
        """How many of the images of a task are trained on, if all have rewards that differ."""
        return images

    def compared_images(self, images: int) -> int:
        """How many of the images of a task the loss compares with each other. They share noise and noise levels."""
        return 1

    def rows(self, items: int, num_steps: int) -> int:
        """Each trained image has one row for each noise level."""
        return self.trained_images(items) * len(self.levels(num_steps))

    def check_micro_batch(self, micro_batch: int, images: int) -> None:
        """Refuse micro-batches that would part images that are compared with each other.

        Raises:
            ValueError: names the number that fits.
        """
        if micro_batch % (together := self.compared_images(images)):
            raise ValueError(
                f"learner.micro_batch: {micro_batch} rows would part images that {self.name} compares with each other; "
                f"set a multiple of {together}"
            )


class EmaSettings(Settings):
    """An exponential moving average of the trained weights, which is used for evaluation, `lora/` and `best/`."""

    decay: float = Field(0.9, gt=0, lt=1)
    """The upper bound of the decay. After optimizer step n the decay is min((1 + n) / (10 + n), decay)."""
    every: int = Field(8, ge=1)
    """Number of optimizer steps after which the average changes."""

    def weight_set(self, *more_uses: Use) -> WeightSet:
        """The weight set of this average, with the warm-up of Flow-GRPO."""
        uses: frozenset[Use] = frozenset(("evaluation", *more_uses))
        return WeightSet("ema", "optimizer_step", lambda n: min((1 + n) / (10 + n), self.decay), uses, self.every)


class DecaySettings(Settings):
    """A learning rate that falls linearly and then stays at its last value."""

    steps: int = Field(ge=1)
    """Number of training steps in which the rate falls. It does not follow from the length of the run, which may
    change."""
    to: float = Field(0.0, ge=0, le=1)
    """The last value, as a share of learner.lr."""


class LearnerSettings(Settings):
    """The learner: its ranks, its optimizer and what it keeps."""

    ranks: int = Field(1, ge=1)
    """Number of processes that share the tasks of a training step. Each one gets the resources below."""
    shard: bool = False
    """Whether each rank holds only a part of the transformer (FSDP2): for models that do not fit on one GPU, and for
    full fine-tuning. An adapter stays whole. If false, each rank holds the whole transformer."""
    optimizer: Literal["adamw", "adamw_offload"] = "adamw"
    """`adamw_offload` is AdamW with its two moments in the memory of the CPU. It needs 8 bytes of GPU memory less for
    each trained parameter and gives the same bits. Each optimizer step copies the moments to the GPU and back. It is
    meant for full fine-tuning; the moments of an adapter are small."""
    lr: float = Field(3e-4, gt=0)
    """Learning rate of AdamW."""
    lr_decay: DecaySettings | None = None
    """How the learning rate falls. If not given, it is constant."""
    betas: Annotated[tuple[Beta, Beta], Strict(False)] = (0.9, 0.999)
    """The decay rates of AdamW's two moments."""
    weight_decay: float = Field(1e-4, ge=0)
    """Weight decay of AdamW."""
    eps: float = Field(1e-8, gt=0)
    """The ε of AdamW, which prevents a division by zero."""
    max_grad_norm: float = Field(1.0, gt=0)
    """A gradient whose norm is larger is scaled down to this norm."""
    micro_batch: int = Field(8, ge=1)
    """Number of decisions, or of noised images, in one forward and backward."""
    max_staleness: int = Field(0, ge=0)
    """How many policy versions older the experience is than the policy that learns from it (fewer at the start of a
    run). With 0, training is on-policy. Above 0, workers generate while the learner learns, and old log-probabilities
    come from the version that generated the experience."""
    max_drift: float = Field(0.05, gt=0)
    """The run stops if the mean |Δ log p| between rollout and learner is larger than this at any sampling step."""
    ema: EmaSettings | None = None
    """The moving average that is evaluated and saved. If not given, there is none."""
    num_cpus: float = Field(1, ge=0)
    """CPUs that Ray reserves for one rank."""
    num_gpus: Gpus = 0
    """GPUs that Ray reserves for one rank: a fraction of one GPU, or a whole number."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Labels that a Ray node must have for a rank to be placed on it. If empty, any node will do. Colocated ranks are
    placed by `rollout.labels`."""
    threads: int = Field(1, ge=1)
    """CPU threads of each rank. They are part of the arithmetic: another number changes the last bits of the
    weights."""
    update_timeout_s: float = Field(3600, gt=0)
    """Seconds after which an update counts as lost, and the learner is started again."""

    def rate(self, version: int) -> float:
        """The learning rate of the update that starts from policy version `version`."""
        if self.lr_decay is None:
            return self.lr
        return self.lr * (1 - (1 - self.lr_decay.to) * min(1.0, version / self.lr_decay.steps))

    def check(self, prompts_per_step: int, policy: PolicySettings, colocated: bool, workers: int) -> None:
        """Refuse ranks that cannot be placed or kept busy, and settings that do not fit the policy.

        Args:
            colocated: whether each rank shares a process with a rollout worker.
            workers: the number of rollout workers that the run begins with.

        Raises:
            ValueError: names the key, the reason and the fix.
        """
        if prompts_per_step < self.ranks:
            raise ValueError(
                f"learner.ranks: {prompts_per_step} prompts a step cannot be shared by {self.ranks} ranks; "
                "raise data.prompts_per_step or lower learner.ranks"
            )
        if colocated and self.ranks > workers:
            raise ValueError(
                f"learner.ranks: {self.ranks} colocated ranks need as many rollout workers, and there are {workers}; "
                "raise rollout.workers or lower learner.ranks"
            )
        if self.shard and (self.ranks == 1 or colocated):
            raise ValueError(
                "learner.shard: a sharded learner needs at least 2 ranks in processes of their own; "
                "set learner.ranks to 2 or more, and placement to split"
            )
        if self.shard and policy.compile:
            raise ValueError("learner.shard: a sharded transformer is not compiled; set policy.compile to false")
        if self.max_staleness and colocated:
            raise ValueError(
                "learner.max_staleness: colocated roles take turns, so no experience is made ahead; "
                "set placement to split, or learner.max_staleness to 0"
            )
        if self.max_staleness and policy.lora is None:
            raise ValueError(
                "learner.max_staleness: the learner keeps the trained weights of each version, which is possible for "
                "adapters only; set policy.lora, or learner.max_staleness to 0"
            )
