"""Recipes: YAML files, overrides, and the one model that all of it must fit."""

import difflib
import logging
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, Field, ValidationError, model_validator

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
from services.base.errors import UserError, first_line
from services.base.settings import CREDENTIALS, Listed, Settings
from services.base.storage import Folder
from services.base.text import read_text
from services.base.yaml_text import dump_yaml, load_yaml
from services.scoring.scorer import make_importable
from services.scoring.settings import ScorerSettings
from services.serving.settings import GatewaySettings, PoolSettings

log = logging.getLogger(__name__)


class DataSettings(Settings):
    """Where the prompts come from: .parquet, .jsonl, .json (an array of objects), .csv, .tsv or .txt (a prompt a line).
    Text is UTF-8.
    """

    train: str
    heldout: str | None = None
    prompt_column: str = "prompt"
    category_column: str = "category"
    """Held-out scores are also reported by the values of this column (texts or numbers), where the file has it."""
    prompts_per_step: int = Field(48, ge=1)


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
    """Of the HTTP side that `tempflow serve` gives the scorers; training itself calls them by handle."""
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


Config = TypeVar("Config", bound=Settings)

TAGS = {
    get_args(member)[0].model_fields["name"].default
    for union in (PlanSettings, KernelSettings, ObjectiveSettings)
    for member in get_args(get_args(union)[0])
}
"""Names of the members of unions, which stand in the places of pydantic's errors but not in a recipe's keys."""
NAMELESS = {key: RunConfig.model_fields[key].default.name for key in ("plan", "kernel", "objective")}
"""What a mapping without a name is."""
NAMES = {f"{key}.name" for key in NAMELESS}
"""Keys that choose a plan, a kernel or an objective: another one shares no keys with the one before."""


RUN_RECIPE = "config.yaml"
"""The recipe of a run, in its folder."""
RUN_PARTS = ("metrics.jsonl", "checkpoints", "driver.lock")
"""A folder with one of these is that of a run."""
OF_RUN = "tempflow"
"""The key of that file which is no setting: what began the run."""


def find_recipe(name: str) -> Path:
    """A recipe by path, or by name among those that come with tempflow.

    Raises:
        UserError: there is none; names the nearest.
    """
    path = Path(name)
    if (path / RUN_RECIPE).is_file():
        return path / RUN_RECIPE
    if path.suffix in {".yaml", ".yml"}:
        if path.is_file():
            return path
        raise UserError(f"no recipe at `{name}`; `tempflow recipes` lists those that come with tempflow")
    shipped = shipped_recipes() / f"{name}.yaml"
    if shipped.is_file():
        return shipped
    near = difflib.get_close_matches(name, recipe_names(), 1)
    raise UserError(f"no recipe `{name}`; {f'did you mean `{near[0]}`?' if near else f'there are {recipe_names()}'}")


def recipe_names() -> list[str]:
    """Recipes that come with tempflow."""
    return sorted(path.stem for path in shipped_recipes().glob("*.yaml"))


def shipped_recipes() -> Path:
    """The folder of the recipes that come with tempflow."""
    return Path(str(resources.files("configs")))


def load_config(recipe: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a recipe, apply `key=value` overrides, validate.

    Raises:
        UserError: names the file or override, the key, the value and the nearest valid key.
    """
    raw, source, overridden = _resolve(recipe, overrides)
    return parse_config(RunConfig, raw, source, overridden)


def load_pool(recipe: str, overrides: Sequence[str] = ()) -> PoolSettings:
    """What of a recipe makes its reward pool: `scorers` and `serve`; it need not hold more.

    Raises:
        UserError: as `load_config`.
    """
    raw, source, overridden = _resolve(recipe, overrides)
    of_pool = {key: value for key, value in raw.items() if key in PoolSettings.model_fields}
    return parse_config(PoolSettings, of_pool, source, overridden)


def _resolve(recipe: str, overrides: Sequence[str]) -> tuple[dict[str, Any], str, dict[str, str]]:
    """The mapping of a recipe with overrides applied, where it was read, and each override by the key it set."""
    folder = Path(recipe).parent if Path(recipe).name == RUN_RECIPE else Path(recipe)
    if any((folder / name).exists() for name in RUN_PARTS):
        path, raw = folder / RUN_RECIPE, _of_run(folder)
    else:
        path = find_recipe(recipe)
        raw = _read(path, ())
    make_importable(Path.cwd())
    raw.setdefault("name", path.stem)
    by_name = sorted(overrides, key=lambda override: override.partition("=")[0] not in NAMES)
    return raw, str(path), {_apply(raw, override): override for override in by_name}


def _of_run(folder: Path) -> dict[str, Any]:
    """The mapping of the recipe in a run folder, or of its newest checkpoint where that is torn.

    The run is where it lies now, which may be elsewhere than where it began.

    Raises:
        UserError: it is in neither.
    """
    from system.run.checkpoint import Checkpoints

    file, raw = folder / RUN_RECIPE, None
    try:
        raw = read_mapping(file, "a recipe")
    except (UserError, OSError) as error:
        log.warning("%s, so the recipe of the newest checkpoint is read", first_line(error))
    by = raw.pop(OF_RUN, None) if raw else None
    if raw is None or not isinstance(by, dict) or "run" not in by:  # its last key
        kept = Checkpoints(Folder.at(str(folder / "checkpoints")), keep=1).recipe()
        if kept is None:
            raise UserError(
                f"`{folder}` has no whole {RUN_RECIPE} and no checkpoint with the recipe of the run; give the recipe "
                "and overrides that it began with, and checkpoint.folder=… if it had one"
            )
        raw = load_yaml(kept, f"the checkpoints in `{folder}`")
        by = raw.pop(OF_RUN, None)
    make_importable(*(by.get("folders") or []))
    return raw | {"name": folder.absolute().name, "output": str(folder.absolute().parent)}


def _read(path: Path, children: tuple[Path, ...]) -> dict[str, Any]:
    """The mapping of a recipe laid over that of the recipe which it `extends`. Scorers beside either are found.

    A run that is extended gives its settings, but neither its name nor its place.
    """
    if path.parent != shipped_recipes():
        make_importable(path.parent)
    raw = read_mapping(path, "a recipe")
    if raw.pop(OF_RUN, None):
        raw.pop("name", None)
        raw.pop("output", None)
    parent = raw.pop("extends", None)
    if parent is None:
        return raw
    if path in children:
        raise UserError(f"{path}: `extends` leads back to this recipe")
    return _over(_read(find_recipe(str(parent)), (*children, path)), raw)


def read_mapping(path: Path, what: str) -> dict[str, Any]:
    """The keys and values of a YAML file.

    Raises:
        UserError: it cannot be read or holds something else; names the file and `what` it should be.
    """
    raw = load_yaml(read_text(path), str(path))
    if not isinstance(raw, dict):
        raise UserError(f"{path}: {what} is a mapping of keys to values")
    return raw


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Mappings are merged key by key; any other value of `above`, a list too, takes the place of that below.

    So does a mapping with another `name`: another plan, kernel or objective shares no keys with the old one.
    """
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            name = old.get("name", NAMELESS.get(key))
            value = _over(old, value) if value.get("name", name) == name else value
        merged[key] = value
    return merged


def parse_config(
    model: type[Config], raw: dict[str, Any], source: str, overrides: dict[str, str] | None = None
) -> Config:
    """Validate a resolved mapping; errors name `source`, or the override that set the key."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise UserError(_explain(error, model, source, overrides or {})) from error


def _apply(raw: dict[str, Any], override: str) -> str:
    """Set one dotted key; returns the key."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"`{override}`: an override has the form key=value, such as learner.lr=1e-4")
    node: Any = raw
    *parents, last = key.split(".")
    for place, part in enumerate(parents):
        slot = _slot(node, part, override, parents[:place])
        node = node.setdefault(slot, {}) if isinstance(node, dict) else node[slot]
    slot, value = _slot(node, last, override, parents), load_yaml(text, f"`{override}`: the value")
    if key in NAMES and value != node.get("name", NAMELESS[parents[0]]):
        node.clear()
    node[slot] = value
    return key


def _slot(node: Any, part: str, override: str, above: Sequence[str]) -> str | int:
    """The key or index that a part of a dotted key names."""
    if isinstance(node, dict):
        return part
    if isinstance(node, list) and part.isascii() and part.isdigit() and int(part) < len(node):
        return int(part)
    raise UserError(f"`{override}`: `{'.'.join(above)}` has no `{part}` to set")


def _explain(error: ValidationError, model: type[BaseModel], source: str, overrides: dict[str, str]) -> str:
    """The first problem as one sentence; an unknown key first, which may be the one that is missing, misspelt."""
    problem = min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    place = [part for part in problem["loc"] if part not in TAGS]
    key = ".".join(str(part) for part in place)
    origin = next((text for known, text in overrides.items() if f"{key}.".startswith(f"{known}.")), None)
    origin = origin or next((text for known, text in overrides.items() if known.startswith(f"{key}.")), source)
    if problem["type"] == CREDENTIALS:
        holder = f"{key}.{problem['msg']}".removeprefix(".")
        return f"{source}: `{holder}`: a URL holds credentials; give them in the environment or a file instead"
    if problem["type"] == "value_error" and not key:
        return f"{origin}: {problem['ctx']['error']}"
    if problem["type"] == "extra_forbidden":
        beside, last = _keys_beside(problem, model), str(place[-1])
        near = difflib.get_close_matches(last, beside, 1, cutoff=0.6)
        near = near or [key for key in _dotted(model) if key.endswith(f".{last}")][:1] if len(place) == 1 else near
        near = near or difflib.get_close_matches(last, beside, 1, cutoff=0.4)
        hint = f"did you mean `{near[0]}`?" if near else f"known are {', '.join(beside)}"
        origin = "an override" if origin in overrides.values() else origin  # whose value may be a secret
        return f"{origin}: unknown key `{key}`; {hint}"
    if problem["type"] == "missing":
        return f"{origin}: `{key}` is missing"
    if problem["type"] == "union_tag_invalid":
        context = problem["ctx"]
        return f"{origin}: `{key}.name` = {context['tag']!r}: it is one of {context['expected_tags']}"
    if problem["type"] == "union_tag_not_found":
        return f"{origin}: `{key}` = {problem['input']!r}: it is a mapping; choose by name, with {key}.name=…"
    said = str(problem["ctx"]["error"]) if problem["type"] == "value_error" else problem["msg"]
    return f"{origin}: `{key}` = {problem['input']!r}: {said[:1].lower()}{said[1:]}"


def _dotted(model: Any, above: str = "") -> Iterator[str]:
    """The dotted keys of all settings below a model."""
    for name, field in model.model_fields.items():
        yield f"{above}{name}"
        for kind in (field.annotation, *get_args(field.annotation)):
            kind = get_args(kind)[0] if get_origin(kind) is Annotated else kind
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _dotted(kind, f"{above}{name}.")


def _keys_beside(problem: Any, model: Any) -> list[str]:
    """Valid keys of the settings that hold the key in question."""
    for part in problem["loc"][: len(problem["loc"]) - 1]:
        model = _descend(model, part)
    kinds = [model, *get_args(model)]
    found = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return list(found[0].model_fields) if found else []


def _descend(model: Any, part: Any) -> Any:
    """The model class below `model` at a key, an index or a union's tag."""
    if isinstance(model, type) and issubclass(model, BaseModel) and part in model.model_fields:
        return model.model_fields[part].annotation
    options = [get_args(option)[0] if get_origin(option) is Annotated else option for option in get_args(model)]
    options = [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]
    if isinstance(part, int):
        return options[0] if options else None
    return next((option for option in options if option.model_fields["name"].default == part), model)


def dump_config(config: RunConfig) -> str:
    """The resolved recipe as YAML."""
    return dump_yaml(config.model_dump(mode="json"))
