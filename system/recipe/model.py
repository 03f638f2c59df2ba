"""The model of a recipe: every setting of a run, its default and the combinations that are refused."""

from typing import Literal

from pydantic import Field, model_validator

from actors.learner.settings import (
    AdvantageSettings,
    AwmSettings,
    GrpoSettings,
    GuardSettings,
    LearnerSettings,
    NftSettings,
    ObjectiveSettings,
)
from actors.policy.settings import CPSSettings, FlowSDESettings, KernelSettings, PolicySettings
from actors.reward.settings import RewardSettings
from actors.rollout.plans.settings import PlanSettings, SamplesSettings, TreeSettings, TrunkSettings
from actors.rollout.settings import RolloutSettings
from services.base.settings import Listed, Settings
from services.scoring.settings import ScorerSettings
from services.serving.settings import GatewaySettings


class DataSettings(Settings):
    """Where the prompts come from: .parquet, .jsonl, .json (an array of objects), .csv, .tsv or .txt (a prompt a line).
    Text is UTF-8.
    """

    train: str
    """The prompts that are trained on."""
    heldout: str | None = None
    """The prompts that are only evaluated; without them nothing is evaluated."""
    prompt_column: str = "prompt"
    """The column that holds the prompts."""
    category_column: str = "category"
    """Held-out scores are also reported by the values of this column (texts or numbers), where the file has it."""
    prompts_per_step: int = Field(48, ge=1)
    """Prompts of one training step."""


class EvalSettings(Settings):
    """Scores on held-out prompts: deterministic images, the same noise each time."""

    every: int = Field(10, ge=1)
    """Steps between evaluations; the first and the last state are always evaluated."""
    prompts: int = Field(512, ge=1)
    """Held-out prompts, from the top of the file."""
    batch: int = Field(24, ge=1)
    """Prompts of one request to a rollout worker."""
    num_steps: int | None = Field(None, ge=1)
    """T of held-out images; that of training (policy.num_steps) if not given."""
    grid: int = Field(16, ge=0)
    """Images kept as a picture."""


class CheckpointSettings(Settings):
    """When the run's state is written, where to, and how many are kept."""

    every: int = Field(10, ge=1)
    """Steps between two; an evaluated step has one, too."""
    keep: int = Field(3, ge=1)
    """The newest so many, and the one with the best held-out reward."""
    folder: str | None = None
    """A path or a URI (`s3://bucket/prefix`) that gets a folder of the run's name; the run folder if not given."""


class WandbSettings(Settings):
    """A run on Weights & Biases; the key is WANDB_API_KEY of the environment, never in a recipe."""

    project: str = "tempflow"
    """The project that the run belongs to."""
    entity: str | None = None
    """The user or team; the key's own if not given."""
    mode: Literal["online", "offline"] = "online"
    """`offline` writes to the run folder's wandb/, for `wandb sync` later."""


class LogSettings(Settings):
    """Where metrics and held-out pictures go beside the run folder."""

    tensorboard: bool = False
    """Events in the run folder's tensorboard/; `pip install 'tempflow[tensorboard]'`."""
    wandb: WandbSettings | None = None
    """`{}` for the defaults; `pip install 'tempflow[wandb]'`."""


class RaySettings(Settings):
    """The Ray cluster that runs the roles."""

    start_timeout_s: float = Field(900, gt=0)
    """Until the cluster can place every role and the models are loaded."""


class RunConfig(Settings):
    """A recipe with every default filled in."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)
    """The run folder's name."""
    output: str = "runs"
    """The folder that holds run folders."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of the prompts' order, of all noise and of the adapter's first weights."""
    steps: int = Field(ge=1)
    """Training steps: generate, score, update, broadcast."""
    placement: Literal["split", "colocated"] = "split"
    """`split`: each role in processes, and on devices, of its own. `colocated`: each rank of the learner and a rollout
    worker take turns in one process over one copy of the base, so that no GPU waits for the other role."""
    deterministic: bool = False
    """Only use algorithms that give the same bits each time, in every role. A CPU does so anyway; on a GPU it makes a
    run repeatable bit for bit, and slower."""
    policy: PolicySettings
    kernel: KernelSettings = FlowSDESettings()
    plan: PlanSettings = TrunkSettings()
    advantage: AdvantageSettings = AdvantageSettings()
    objective: ObjectiveSettings = GrpoSettings()
    learner: LearnerSettings = LearnerSettings()
    rollout: RolloutSettings = RolloutSettings()
    scorers: Listed[ScorerSettings] = Field(min_length=1)
    reward: RewardSettings = RewardSettings()
    serve: GatewaySettings = GatewaySettings()
    """The HTTP side that `tempflow serve` gives the scorers. Training itself does not use it."""
    data: DataSettings
    eval: EvalSettings = EvalSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    log: LogSettings = LogSettings()
    ray: RaySettings = RaySettings()

    @model_validator(mode="after")
    def _fits_together(self) -> "RunConfig":
        self._groups_fit()
        self._methods_fit()
        self._roles_fit()
        names = [scorer.name for scorer in self.scorers]
        if len(set(names)) < len(names):
            raise ValueError(f"scorers: two are named {max(names, key=names.count)}; give each a name of its own")
        if not any(scorer.weight for scorer in self.scorers):
            raise ValueError("scorers: none has a weight; give at least one a weight other than 0")
        return self

    def _groups_fit(self) -> None:
        """Refuse groups in which nothing is compared, or what cannot be."""
        plan, group = self.plan, self.advantage.group
        if group == "seed" and not isinstance(plan, TrunkSettings):
            instead = "prompt_step" if isinstance(plan, TreeSettings) else "prompt"
            raise ValueError(
                f"advantage.group = seed compares the branches of one state, and plan.name = {plan.name} has none; "
                f"set advantage.group to {instead}"
            )
        if isinstance(plan, TrunkSettings):
            compared = plan.explorations * (1 if group == "seed" else plan.seeds)
            if group != "prompt" and compared < 2:
                raise ValueError(
                    f"advantage.group = {group} compares {compared} branch with itself; "
                    "set plan.explorations to at least 2"
                )
        if isinstance(plan, TreeSettings) and group == "prompt":
            raise ValueError(
                "advantage.group = prompt compares nodes of all depths of a tree; set advantage.group to prompt_step"
            )

    def _methods_fit(self) -> None:
        """Refuse mixtures of plan, kernel, advantage and objective that make no sense."""
        objective, kernel = self.objective, self.kernel
        if isinstance(kernel, CPSSettings) and isinstance(objective, GrpoSettings) and objective.noise_weights:
            raise ValueError(
                "objective.noise_weights: the gradient of the CPS kernel's log p scales with the injected noise "
                "already; set objective.noise_weights to false, or kernel.name to flow_sde"
            )
        if isinstance(kernel, CPSSettings) and isinstance(objective, GuardSettings):
            raise ValueError(
                "objective.name: grpo_guard normalises a Normal log-density, and the CPS kernel has none; "
                "set kernel.name to flow_sde or dance"
            )
        of_images = isinstance(objective, AwmSettings | NftSettings)
        if of_images != isinstance(self.plan, SamplesSettings):
            trains, needs = ("images", "samples") if of_images else ("decisions", "another than samples")
            raise ValueError(f"objective.name: {objective.name} trains on {trains}; its plan.name is {needs}")
        if isinstance(objective, AwmSettings) and objective.ema_weight and not self.learner.ema:
            raise ValueError("objective.ema_weight: there is no moving average; set learner.ema, or the weight to 0")
        if objective.optimizer_steps > self.data.prompts_per_step:
            raise ValueError(
                f"objective.optimizer_steps: {self.data.prompts_per_step} prompts a step cannot be split into "
                f"{objective.optimizer_steps}; raise data.prompts_per_step or lower it"
            )
        if self.advantage.leaves == "each" and len(getattr(self.plan, "strides", ())) < 2:
            raise ValueError("advantage.leaves: each needs several leaves an action; set plan.strides to two or more")

    def _roles_fit(self) -> None:
        """Refuse roles that cannot be placed or kept busy."""
        ranks = self.learner.ranks
        if self.data.prompts_per_step < ranks:
            raise ValueError(
                f"learner.ranks: {self.data.prompts_per_step} prompts a step cannot be shared by {ranks} ranks; "
                "raise data.prompts_per_step or lower learner.ranks"
            )
        if self.rollout.max_workers is not None and self.rollout.max_workers < self.rollout.workers:
            raise ValueError(
                f"rollout.max_workers: {self.rollout.max_workers} is less than rollout.workers = {self.rollout.workers}"
            )
        if self.placement == "colocated" and ranks > self.rollout.workers:
            raise ValueError(
                f"learner.ranks: {ranks} colocated ranks need as many rollout.workers, and there are "
                f"{self.rollout.workers}"
            )
        if self.learner.shard and (ranks == 1 or self.placement == "colocated"):
            raise ValueError(
                "learner.shard: a sharded learner has at least 2 ranks, in processes of their own; "
                "set learner.ranks and placement: split"
            )
        if self.learner.max_staleness and self.placement == "colocated":
            raise ValueError(
                "learner.max_staleness: colocated roles take turns, so no experience is made ahead; "
                "set placement: split, or max_staleness to 0"
            )
        if self.learner.max_staleness and self.policy.lora is None:
            raise ValueError(
                "learner.max_staleness: the learner keeps the trained weights of each version, which is meant for "
                "adapters; set policy.lora, or max_staleness to 0"
            )
        if self.learner.max_staleness and isinstance(self.objective, NftSettings):
            raise ValueError(
                "learner.max_staleness: DiffusionNFT compares with the policy that its images came from as it is now; "
                "set max_staleness to 0"
            )
        if self.learner.shard and self.policy.compile:
            raise ValueError("learner.shard: a sharded transformer is not compiled; set policy.compile to false")

    @property
    def evaluates_an_average(self) -> bool:
        """Whether the weights that are evaluated and saved differ from those that are sampled from."""
        return self.learner.ema is not None or isinstance(self.objective, NftSettings)

    @property
    def eval_steps(self) -> int:
        """T of held-out images."""
        return self.eval.num_steps or self.policy.num_steps

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each scorer that enters the training reward."""
        return {scorer.name: scorer.weight for scorer in self.scorers if scorer.weight}
