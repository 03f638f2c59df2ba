"""The model of a recipe: every setting of a run, its default and the combinations that are refused."""

from typing import Any, Literal

from pydantic import Field, model_validator

from actors.learner.settings import AdvantageSettings, LearnerSettings
from actors.learner.weight_sets import used_for
from actors.methods import DEFAULT_METHOD, AnyObjective, find_method
from actors.policy.settings import KernelSettings, PolicySettings
from actors.reward.settings import RewardSettings
from actors.rollout.plans.settings import PlanSettings
from actors.rollout.settings import RolloutSettings
from services.base.settings import Listed, Settings
from services.scoring.settings import ScorerSettings
from services.serving.settings import GatewaySettings
from system.recipe.compose import lay_over

DEFAULTS = find_method(DEFAULT_METHOD)


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
    """Seconds until the cluster must have placed every role and the models must be loaded."""


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
    method: str = DEFAULT_METHOD
    """A file of actors/methods. It says what `plan`, `kernel`, `advantage` and `objective` are; the recipe's own values
    of these keys take precedence."""
    policy: PolicySettings
    kernel: KernelSettings = DEFAULTS.kernel
    plan: PlanSettings = DEFAULTS.plan
    advantage: AdvantageSettings = DEFAULTS.advantage
    objective: AnyObjective = DEFAULTS.objective
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

    @model_validator(mode="before")
    @classmethod
    def _over_its_method(cls, raw: Any) -> Any:
        """A recipe's own keys over those of its method.

        Raises:
            UserError: there is no such method.
        """
        if not isinstance(raw, dict) or not isinstance(method := raw.get("method", DEFAULT_METHOD), str):
            return raw
        return lay_over(find_method(method).defaults, raw)

    @model_validator(mode="after")
    def _fits_together(self) -> "RunConfig":
        """Refuse combinations that make no sense; each room knows those that it speaks of."""
        prompts = self.data.prompts_per_step
        self.plan.check_group(self.advantage.group)
        self.objective.check_plan(self.plan.name, self.plan.gives)
        self.objective.check(self.kernel, self.learner, prompts)
        self.advantage.check(self.plan.leaves_per_action, self.plan.has_baselines)
        self.learner.check(prompts, self.policy, self.placement == "colocated", self.rollout.workers)
        self.rollout.check(has_adapter=self.policy.lora is not None)
        names = [scorer.name for scorer in self.scorers]
        if len(set(names)) < len(names):
            raise ValueError(f"scorers: two are named {max(names, key=names.count)}; give each a name of its own")
        if not any(scorer.weight for scorer in self.scorers):
            raise ValueError("scorers: none has a weight; give at least one a weight other than 0")
        return self

    @property
    def evaluates_an_average(self) -> bool:
        """Whether the weights that are evaluated and saved differ from those that are sampled from."""
        weight_sets = self.objective.weight_sets(self.learner.ema)
        return used_for("evaluation", weight_sets) is not used_for("sampling", weight_sets)

    @property
    def eval_steps(self) -> int:
        """T of held-out images."""
        return self.eval.num_steps or self.policy.num_steps

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each scorer that enters the training reward."""
        return {scorer.name: scorer.weight for scorer in self.scorers if scorer.weight}
