"""Settings of learning: advantage, objective, optimizer."""

import importlib
import re
from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import AfterValidator, Field, Strict

from actors.learner.weight_sets import Use, WeightSet
from actors.policy.settings import CPSSettings, KernelSettings, PolicySettings
from actors.trajectory import Tree
from services.base.errors import UserError
from services.base.settings import Gpus, Settings

Beta = Annotated[float, Field(ge=0, lt=1)]

RewardFunction = Callable[[Tree, np.ndarray], np.ndarray]
"""Gives the reward of each action (N, K) from a task's tree and the reward of each leaf (M,); NaN marks a hole."""


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
    """Divide by the group's own standard deviation, or by that of all rewards of the step (Flow-GRPO)."""
    leaves: Annotated[str, AfterValidator(_mean_each_or_path)] = "mean"
    """`mean`: an action's reward is the mean of its leaves'. `each`: the first leaves of a group are compared, then the
    second ones, and an action's advantages are added (G²RPO, whose leaves are granularities). `module:function`: a
    function of a task's tree and its leaves' rewards gives the reward of each action (TP-GRPO)."""
    keep: int | None = Field(None, ge=1)
    """Keep the advantages of this many best and as many worst actions of a group, drop the others (the width pruning
    of BranchGRPO); all if not given."""
    epsilon: float = Field(1e-4, gt=0)
    """Added to the standard deviation."""
    clip: float = Field(5.0, gt=0)
    """Advantages are clipped to ± this."""

    @property
    def reward_function(self) -> RewardFunction | None:
        """The function that `leaves` names; None for `mean` and `each`.

        Raises:
            UserError: it cannot be imported.
        """
        module, _, attribute = self.leaves.partition(":")
        if not attribute:
            return None
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise UserError(f"advantage.leaves: {self.leaves}: {error}; check the import path") from error

    def check(self, leaves_per_action: int, has_baselines: bool) -> None:
        """Refuse leaves that the plan does not have, or that the rule would not tell apart.

        Raises:
            ValueError: names the key and the fix.
            UserError: `leaves` names a function that cannot be imported.
        """
        if self.leaves == "each" and leaves_per_action < 2:
            raise ValueError("advantage.leaves: each needs several leaves an action; set plan.strides to two or more")
        if has_baselines != (self.reward_function is not None):
            raise ValueError(
                f"advantage.leaves: {self.leaves} does not go with plan.baselines; only a function, module:function, "
                "tells an action's leaves from its baseline, and it needs one: set plan.baselines to "
                f"{str(not has_baselines).lower()}"
            )


class ObjectiveSettings(Settings):
    """What every objective says of itself; each adds its `name`."""

    loss: ClassVar[str]
    """The class in `actors.learner.objectives` that computes the loss, as `module:Class`. It needs Torch; settings do
    not."""
    trains_on: ClassVar[Literal["decisions", "images"]]
    """What a plan has to give."""
    compares_with_old: ClassVar[bool] = True
    """Whether its loss compares with the policy before the update, so that later minibatches need its values first."""

    name: str
    optimizer_steps: int = Field(1, ge=1)
    """Optimizer steps that one training step's tasks are split into."""
    kl: float = Field(0.0, ge=0)
    """β of the term that holds the policy to the base without its adapter."""

    @property
    def passes(self) -> int:
        """Transformer passes of the update for one row: a forward, a backward (which counts 2), and those of the
        weights that the loss compares with."""
        return 3 + bool(self.kl)

    def rows(self, items: int, num_steps: int) -> int:
        """Rows of the update for so many decisions or images of a task."""
        return items

    def task_passes(self, rows: int, stale: bool) -> float:
        """Transformer passes of the update for so many rows; `stale` where an older policy version generated them."""
        read_back = 1.0 if stale else (self.optimizer_steps - 1) / self.optimizer_steps
        return rows * (self.passes + read_back * self.compares_with_old)

    def weight_sets(self, ema: "EmaSettings | None") -> tuple[WeightSet, ...]:
        """The weight sets that the learner keeps, one for each use at most; `ema` is the recipe's own."""
        return (ema.weight_set(),) if ema else ()

    def check_plan(self, plan_name: str, plan_trains: str) -> None:
        """Refuse a plan whose tasks hold nothing to train on.

        Raises:
            ValueError: names both.
        """
        if self.trains_on == plan_trains:
            return
        fix = "set plan.name to samples" if self.trains_on == "images" else "choose a plan that has decisions"
        raise ValueError(
            f"objective.name: {self.name} trains on {self.trains_on}, and plan.name = {plan_name} gives {plan_trains}; "
            f"{fix}"
        )

    def check(self, kernel: KernelSettings, learner: "LearnerSettings", prompts_per_step: int) -> None:
        """Refuse what this objective cannot be trained with.

        Raises:
            ValueError: names the key, the reason and the fix.
        """
        if self.optimizer_steps > prompts_per_step:
            raise ValueError(
                f"objective.optimizer_steps: {prompts_per_step} prompts a step cannot be split into "
                f"{self.optimizer_steps}; raise data.prompts_per_step or lower it"
            )


class DecisionObjectiveSettings(ObjectiveSettings):
    """An objective of the log-probs of actions."""

    trains_on = "decisions"

    clip_range: float = Field(1e-4, gt=0)
    kl_dt: bool = True
    """KL of the Normals that are drawn from, over 2s² (TempFlow-GRPO); false leaves |dt| out of s² (Flow-GRPO). The
    CPS kernel has no variance: its term is mean (μ − μ_ref)² in both."""


class GrpoSettings(DecisionObjectiveSettings):
    """The clipped GRPO objective on decisions."""

    loss = "actors.learner.objectives.grpo:Grpo"

    name: Literal["grpo"] = "grpo"
    noise_weights: bool = True
    """Weight each step by its injected noise s_i (TempFlow-GRPO)."""

    def check(self, kernel: KernelSettings, learner: "LearnerSettings", prompts_per_step: int) -> None:
        """Refuses noise weights on the CPS kernel, whose gradient scales with the noise by itself."""
        super().check(kernel, learner, prompts_per_step)
        if isinstance(kernel, CPSSettings) and self.noise_weights:
            raise ValueError(
                "objective.noise_weights: the gradient of the CPS kernel's log p scales with the injected noise "
                "already; set objective.noise_weights to false, or kernel.name to flow_sde"
            )


class LeafObjectiveSettings(ObjectiveSettings):
    """An objective of the velocity at noised copies of finished images."""

    trains_on = "images"

    noise_levels: int = Field(6, ge=1)
    """Noise levels drawn for each image, one from each of so many runs of neighbouring steps (a step at least)."""
    share: float = Field(0.9, gt=0, le=1)
    """Share of the schedule, from its start, that noise levels are drawn from."""

    def levels(self, num_steps: int) -> list[list[int]]:
        """The runs of sampling steps that noise levels are drawn from."""
        steps = list(range(max(1, round(self.share * num_steps))))
        runs = min(self.noise_levels, len(steps))
        return [steps[len(steps) * j // runs : len(steps) * (j + 1) // runs] for j in range(runs)]

    def rows(self, items: int, num_steps: int) -> int:
        """Each image is trained on once for each noise level."""
        return items * len(self.levels(num_steps))


class EmaSettings(Settings):
    """An exponential moving average of the adapter, used for evaluation, `lora/` and `best/`."""

    decay: float = Field(0.9, gt=0, lt=1)
    """Upper bound of the decay min((1 + n) / (10 + n), decay) at update n."""
    every: int = Field(8, ge=1)
    """Optimizer steps between updates."""

    def weight_set(self, *more_uses: Use) -> WeightSet:
        """EMA with warm-up, as in Flow-GRPO: decay min((1 + n) / (10 + n), decay) at optimizer step n."""
        uses: frozenset[Use] = frozenset(("evaluation", *more_uses))
        return WeightSet("ema", "optimizer_step", lambda n: min((1 + n) / (10 + n), self.decay), uses, self.every)


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
    optimizer: Literal["adamw", "adamw_offload"] = "adamw"
    """`adamw_offload` is AdamW with its two moments in the memory of the CPU. It needs 8 bytes of GPU memory less for
    each trained parameter and gives the same bits. Each optimizer step copies the moments to the GPU and back. It is
    meant for full fine-tuning; the moments of an adapter are small."""
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
    that workers generate while the learner learns; 0 is on-policy. Old log-probs come from the version that
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

    def check(self, prompts_per_step: int, policy: PolicySettings, colocated: bool, workers: int) -> None:
        """Refuse ranks that cannot be placed or kept busy, and what a policy cannot be trained with.

        Args:
            colocated: each rank shares a process with a rollout worker.
            workers: rollout workers that the run begins with.

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
                f"learner.ranks: {self.ranks} colocated ranks need as many rollout.workers, and there are {workers}"
            )
        if self.shard and (self.ranks == 1 or colocated):
            raise ValueError(
                "learner.shard: a sharded learner has at least 2 ranks, in processes of their own; "
                "set learner.ranks and placement: split"
            )
        if self.shard and policy.compile:
            raise ValueError("learner.shard: a sharded transformer is not compiled; set policy.compile to false")
        if self.max_staleness and colocated:
            raise ValueError(
                "learner.max_staleness: colocated roles take turns, so no experience is made ahead; "
                "set placement: split, or max_staleness to 0"
            )
        if self.max_staleness and policy.lora is None:
            raise ValueError(
                "learner.max_staleness: the learner keeps the trained weights of each version, which is meant for "
                "adapters; set policy.lora, or max_staleness to 0"
            )
