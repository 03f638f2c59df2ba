"""The model of a recipe: every setting of a run, its default, and the refused combinations."""

from typing import Any, Literal

from pydantic import Field, model_validator

from actors.learner.settings import AdvantageSettings, LeafObjectiveSettings, LearnerSettings
from actors.learner.weight_sets import used_for
from actors.methods import DEFAULT_METHOD, AnyObjective, find_method
from actors.policy.settings import KernelSettings, PolicySettings
from actors.reward.settings import RewardSettings
from actors.rollout.plans.settings import PlanSettings, SamplesSettings
from actors.rollout.sampling import Sampling
from actors.rollout.settings import RolloutSettings
from services.base.settings import Listed, Settings
from services.scoring.settings import ScorerSettings
from services.serving.settings import GatewaySettings
from system.recipe.compose import lay_over
from system.recipe.evaluation import DEFAULT_SET, EvalSet, EvalSettings

DEFAULTS = find_method(DEFAULT_METHOD)


class DataSettings(Settings):
    """The files of prompts: .parquet, .jsonl, .json (an array of objects), .csv, .tsv or .txt (one prompt per line).
    Text is UTF-8.
    """

    train: str
    """The file of the prompts for training."""
    heldout: str | None = None
    """The file of the held-out prompts, which are only evaluated. `eval.sets` may name more. Without any, nothing is
    evaluated."""
    prompt_column: str = "prompt"
    """The column with the prompts."""
    category_column: str = "category"
    """Held-out scores are also reported for each value (text or number) of this column, if the file has it."""
    prompts_per_step: int = Field(48, ge=1)
    """Number of prompts in one training step."""


class CheckpointSettings(Settings):
    """When and where checkpoints are written, and how many are kept."""

    every: int = Field(10, ge=1)
    """Steps between checkpoints. Every evaluated step has a checkpoint, too."""
    keep: int = Field(3, ge=1)
    """How many of the newest checkpoints are kept. The one with the best held-out reward is kept, too."""
    folder: str | None = None
    """A path or a URI (`s3://bucket/prefix`) in which a folder with the run's name is made. If not given, checkpoints
    are in the run folder."""


class WandbSettings(Settings):
    """A run on Weights & Biases. The key is read from the environment variable WANDB_API_KEY, never from a recipe."""

    project: str = "tempflow"
    """The project that the run belongs to."""
    entity: str | None = None
    """The user or team. If not given, the default of the key's owner is used."""
    mode: Literal["online", "offline"] = "online"
    """`offline` writes to the run folder's wandb/, for `wandb sync` later."""
    experience: bool = False
    """Send each step's experience as a table: every image's prompt, scores, reward and advantage."""


class LogSettings(Settings):
    """Loggers that receive the metrics and pictures, in addition to the run folder."""

    train_images_every: int = Field(1, ge=0)
    """Training steps between those whose images `tempflow watch` can show: those of the first task, at most 256 pixels
    wide and high. The run folder keeps 100 such steps, the newest and a selection of the older ones. 0 keeps none."""
    tensorboard: bool = False
    """Write event files to tensorboard/ in the run folder. Needs `pip install 'tempflow[tensorboard]'`."""
    wandb: WandbSettings | None = None
    """Log to Weights & Biases; `{}` uses the defaults. Needs `pip install 'tempflow[wandb]'`."""

    def keeps_images(self, step: int) -> bool:
        """Whether the training images of a step, counted from 1, are kept."""
        return self.train_images_every > 0 and step % self.train_images_every == 0


class RaySettings(Settings):
    """The Ray cluster that runs the roles."""

    start_timeout_s: float = Field(900, gt=0)
    """Seconds within which the cluster must place every role and the models must load."""


class RunConfig(Settings):
    """A recipe with every default filled in."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)
    """The name of the run folder."""
    output: str = "runs"
    """The folder in which run folders are made."""
    seed: int = Field(0, ge=0, lt=2**63)
    """The seed of the prompts' order, of all noise and of the adapter's initial weights."""
    steps: int = Field(ge=1)
    """Number of training steps. Each step generates, scores, updates and broadcasts."""
    placement: Literal["split", "colocated"] = "split"
    """`split`: each role has its own processes and devices. `colocated`: each learner rank shares one process and one
    copy of the base model with a rollout worker. The two take turns, so that no GPU waits for the other role."""
    deterministic: bool = False
    """Use only algorithms that give the same bits each time, in every role. A CPU does so anyway. On a GPU this makes
    a run repeatable bit for bit, but slower."""
    method: str = DEFAULT_METHOD
    """The name of a file in actors/methods. It gives the defaults of `plan`, `kernel`, `advantage` and `objective`;
    the recipe's own values take precedence."""
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
    """The HTTP service that `tempflow serve` starts for the scorers. Training itself does not use it."""
    data: DataSettings
    eval: EvalSettings = EvalSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    log: LogSettings = LogSettings()
    ray: RaySettings = RaySettings()

    @model_validator(mode="before")
    @classmethod
    def _over_its_method(cls, raw: Any) -> Any:
        """Lay a recipe's own keys over the defaults of its method.

        Raises:
            UserError: there is no such method.
        """
        if not isinstance(raw, dict) or not isinstance(method := raw.get("method", DEFAULT_METHOD), str):
            return raw
        return lay_over(find_method(method).defaults, raw)

    @model_validator(mode="after")
    def _fits_together(self) -> "RunConfig":
        """Refuse settings that do not fit together. Each group of settings checks the combinations that concern it."""
        prompts = self.data.prompts_per_step
        self.plan.check_group(self.advantage.group)
        self.objective.check_plan(self.plan.name, self.plan.gives)
        self.objective.check(self.kernel, self.learner, prompts)
        if isinstance(self.objective, LeafObjectiveSettings) and isinstance(self.plan, SamplesSettings):
            self.objective.check_micro_batch(self.learner.micro_batch, self.plan.seeds)
        if self.objective.reference and self.policy.lora is None:
            raise ValueError(
                "objective.reference: only an adapter can take the place of the base; set policy.lora, or remove it"
            )
        self.advantage.check(self.plan.leaves_per_action, self.plan.has_baselines)
        self.learner.check(prompts, self.policy, self.placement == "colocated", self.rollout.workers)
        self.rollout.check(has_adapter=self.policy.lora is not None)
        names = [scorer.name for scorer in self.scorers]
        if len(set(names)) < len(names):
            raise ValueError(f"scorers: two are named {max(names, key=names.count)}; give each a different name")
        if not self.reward_scorers:
            raise ValueError("scorers: none has a weight; give at least one a weight other than 0")
        self.eval.check(self.eval_sets, names, has_adapter=self.policy.lora is not None)
        for scorer in self.scorers:
            if scorer.gate is not None and scorer.gate.scorer not in names:
                raise ValueError(
                    f"scorers: the gate of `{scorer.name}` names `{scorer.gate.score}`, and there is no scorer "
                    f"`{scorer.gate.scorer}`; add it, or name one of {', '.join(names)}"
                )
        return self

    @property
    def evaluates_an_average(self) -> bool:
        """Whether evaluation and saving use other weights than sampling does."""
        weight_sets = self.objective.weight_sets(self.learner.ema)
        return used_for("evaluation", weight_sets) is not used_for("sampling", weight_sets)

    @property
    def eval_sampling(self) -> Sampling:
        """How held-out images are sampled."""
        return self.eval.sampling(self.policy)

    @property
    def eval_sets(self) -> dict[str, EvalSet]:
        """All sets of held-out prompts by name, that of data.heldout first."""
        data, settings = self.data, self.eval
        if data.heldout is None:
            return dict(settings.sets)
        default = EvalSet(
            prompts=data.heldout,
            prompt_column=data.prompt_column,
            category_column=data.category_column,
            images_per_prompt=settings.images_per_prompt,
            scorers=settings.scorers,
        )
        return {DEFAULT_SET: default, **settings.sets}

    @property
    def reward_scorers(self) -> list[ScorerSettings]:
        """The scorers that count in the training reward, at least in one category of prompts."""
        return [scorer for scorer in self.scorers if scorer.is_reward]

    @property
    def training_scorers(self) -> list[ScorerSettings]:
        """The scorers that score training images: those that count in the reward, and those that open their gates."""
        return self._with_gates(self.reward_scorers)

    def scorers_in(self, category: str | None) -> list[ScorerSettings]:
        """The scorers that score the training images of a category of prompts."""
        return self._with_gates([scorer for scorer in self.scorers if scorer.weight_in(category)])

    def _with_gates(self, rewards: list[ScorerSettings]) -> list[ScorerSettings]:
        gates = {scorer.gate.scorer for scorer in rewards if scorer.gate is not None}
        return [scorer for scorer in self.scorers if scorer in rewards or scorer.name in gates]
