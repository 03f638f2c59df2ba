"""Converts a configuration of flow_grpo to a recipe, and lists what has no counterpart.

`docs/from-flow-grpo.md` has the table of keys. A literal of flow_grpo's training scripts is named where it is used.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import floor
from pathlib import Path
from typing import Any

from services.base.errors import UserError
from services.base.plain import printable
from services.base.yaml_text import dump_yaml
from services.scoring.scorer import BUILT_IN
from system.flow_grpo.keys import ENDLESS, MODELS, OTHER_KINDS, PLAIN, PROMPTS, REWARDS, SILENT, STEPS, WITHOUT
from system.flow_grpo.read import Reading, read_function
from system.recipe.compose import LAYERS
from system.recipe.find import FOLDERS, SHIPPED
from system.recipe.load import load_mapping, read_mapping
from system.recipe.model import RunConfig

NO_GPU = "the file does not say how many GPUs there are (gpu_number)"


@dataclass
class Notes:
    """What a recipe's comments say, each with the line of the file, or None."""

    without: list[tuple[int | None, str]] = field(default_factory=list)
    differs: list[tuple[int | None, str]] = field(default_factory=list)
    unread: list[tuple[int | None, str]] = field(default_factory=list)


def convert_file(path: Path, name: str) -> str:
    """The recipe of a function of flow_grpo's configuration file, as YAML with comments.

    Raises:
        UserError: the file cannot be read, or what it trains has no counterpart here.
    """
    recipe, notes = convert(read_function(path, name), path)
    lines = [f"{name} of flow_grpo, converted by `tempflow from-flow-grpo {path.name}:{name}`. It has not been run."]
    for title, said in (
        ("No counterpart:", notes.without),
        ("Different here:", notes.differs),
        ("Not understood; set by hand what these statements change:", notes.unread),
    ):
        if said:
            lines += [title, *(f"  {f'line {line}: ' if line else ''}{text}" for line, text in said)]
    return "".join(f"# {printable(line)}\n" for line in lines) + dump_yaml(recipe)


def convert(reading: Reading, path: Path) -> tuple[dict[str, Any], Notes]:
    """The recipe of what a function assigns: its layers, and the keys that differ from them.

    Raises:
        UserError: as `convert_file`.
    """
    made = _Conversion(reading, path)
    layers = made.layers()
    wanted = made.wanted(layers)
    made.list_the_rest()
    recipe = layers | {"steps": wanted.pop("steps"), "data": wanted.pop("data")}
    if "rewards" not in layers:
        recipe["scorers"] = wanted.pop("scorers")
    if "model" not in layers:
        recipe["policy"] = {"model": wanted["policy.model"]}
    alone = recipe | {"name": "converted", "data": {"train": ""}}
    below = load_mapping(alone, path).model_dump(mode="json")
    for dotted, value in wanted.items():
        if dotted == "scorers" or value != _reach(below, dotted):
            _put(recipe, dotted, value)
    load_mapping(recipe | {"name": "converted"}, path)
    return {key: recipe[key] for key in (*LAYERS, *RunConfig.model_fields) if key in recipe}, made.notes


class _Conversion:
    """Takes the keys of a reading one by one, and notes those that nothing has taken."""

    def __init__(self, reading: Reading, path: Path) -> None:
        self.reading, self.path = reading, path
        self.taken: set[str] = set()
        self.notes = Notes(unread=list(reading.unread))
        self.gpus = _count(reading.variables.get("gpu_number"))
        if (algorithm := self.take("train.algorithm")) is not None:
            raise UserError(
                f"`{path}` trains with {algorithm}, and only GRPO is converted; choose a method of docs/methods.md in "
                "a recipe"
            )
        self.model = self.take("pretrained.model")
        if not isinstance(self.model, str):
            raise UserError(f"`{path}`: `pretrained.model` is missing or was not understood; assign a text to it")
        if OTHER_KINDS.search(self.model):
            raise UserError(f"`{path}` trains `{self.model}`; tempflow trains models that make an image from a text")
        batch, mini = self.count("sample.train_batch_size"), self.count("sample.mini_num_image_per_prompt")
        self.batch = batch and batch * (mini or 1)
        """Images that a GPU samples at once."""
        self.prompts = self._prompts_per_step()

    def take(self, key: str) -> Any:
        """The value of a key; None if it has none."""
        self.taken.add(key)
        return self.reading.values.get(key)

    def given(self, key: str) -> bool:
        """Whether the file itself sets a key, and not base.get_config()."""
        return self.reading.lines.get(key) is not None and key in self.reading.values

    def without(self, key: str, why: str) -> None:
        self.notes.without.append((self.reading.lines.get(key), f"{key} = {self.reading.values.get(key)!r}: {why}"))

    def differs(self, key: str, how: str) -> None:
        self.notes.differs.append((self.reading.lines.get(key), f"{key} = {self.reading.values.get(key)!r}: {how}"))

    def layers(self) -> dict[str, Any]:
        """The layers of the recipe."""
        layers = {}
        stem = self.model.rpartition("/")[2].lower()
        if layer := next((layer for begin, layer in MODELS.items() if stem.startswith(begin)), None):
            layers["model"] = layer
        else:
            self.differs("pretrained.model", "no layer is known for it; choose one with `model:`")
        layers["method"] = "flow_grpo_fast" if self._window() else "flow_grpo"
        rewards = self.reading.values.get("reward_fn")
        if isinstance(rewards, dict) and len(rewards) == 1 and list(rewards.values()) == [1]:
            (name,) = rewards
            if _is_layer(name):
                layers["rewards"] = name
        layers["hardware"] = {1: "1gpu", 16: "16gpu"}.get(self.gpus or 0, "8gpu")
        return layers

    def wanted(self, layers: dict[str, Any]) -> dict[str, Any]:
        """Every key that the file decides, dotted, with its value."""
        plain = {ours: self.take(theirs) for theirs, ours in PLAIN.items()}
        wanted = {ours: value for ours, value in plain.items() if value is not None}
        wanted |= dict(self._model(layers)) | dict(self._plan()) | dict(self._learning()) | dict(self._hardware())
        return wanted | {"steps": self._steps(), "data": self._data()} | self._scorers(layers)

    def list_the_rest(self) -> None:
        """Note the keys that nothing has taken."""
        for key, value in self.reading.values.items():
            if key in self.taken or key in SILENT or not self.given(key):
                continue
            neutral, why = WITHOUT.get(key, (object(), "no script of flow_grpo that tempflow knows reads it"))
            if value != neutral:
                self.without(key, why)
        self.notes.without.sort(key=lambda note: note[0] or 0)

    def _window(self) -> int:
        """The steps of the stochastic window; 0 if every step is stochastic."""
        sizes = [self.take(key) for key in ("sample.sde_window_size", "sample.train_num_steps") if self.given(key)]
        return next((size for size in sizes if isinstance(size, int) and size > 0), 0)

    def _model(self, layers: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        if size := self.take("resolution"):
            yield "policy.height", size
            yield "policy.width", size
        precision = self.take("mixed_precision")
        if precision == "fp16":
            self.differs("mixed_precision", "bf16 is used; the trained weights and the sampler's arithmetic are fp32")
        yield "policy.dtype", "fp32" if precision == "no" else "bf16"
        if layers.get("model") in ("sd35_medium", "flux_dev"):
            yield "policy.max_sequence_length", 128  # a literal in train_sd3.py and train_flux.py
        if self.take("use_lora") is False:
            yield "policy.lora", None
        elif layers.get("model") == "flux_dev":
            yield "policy.lora.rank", 64  # literals in train_flux.py
            yield "policy.lora.alpha", 128
        guidance = self.reading.values.get("sample.guidance_scale")
        if self.take("train.cfg") is False and isinstance(guidance, int | float) and guidance > 1:
            self.without("train.cfg", "the learner uses the guidance of sampling")
        evaluated = self.take("sample.eval_guidance_scale")
        if self.given("sample.eval_guidance_scale") and evaluated != guidance:
            yield "eval.guidance", evaluated

    def _plan(self) -> Iterator[tuple[str, Any]]:
        steps, kind = self.count("sample.num_steps"), self.take("sample.sde_type")
        yield "kernel.name", "cps" if kind == "cps" else "flow_sde"
        if kind not in (None, "sde", "cps"):
            self.without("sample.sde_type", "flow_sde is used")
        if (over_all := self.take("sample.global_std")) is not None:
            yield "advantage.std", "batch" if over_all else "group"
        size, share = self._window(), self.take("train.timestep_fraction")
        around, first = self.take("sample.sde_window_range"), self.take("sample.train_num_steps")
        if not size:
            trained = int(steps * share) if steps and isinstance(share, int | float) else None
            if steps and trained is not None and trained < steps - 1:
                yield "plan.trained_share", max(1, floor(10_000 * trained / (steps - 1))) / 10_000
            return
        yield "plan.size", size
        if first and steps:  # the older script: the window begins at one of the steps 0 … T // 2
            yield "plan.within", min(steps - 1, steps // 2 + size)
            yield "plan.shared_noise", True
        elif isinstance(around, list) and around[:1] == [0] and len(around) == 2:
            yield "plan.within", around[1]
        elif self.given("sample.sde_window_range"):
            self.without("sample.sde_window_range", "the window stays within the first plan.within steps")
        if self.given("train.timestep_fraction") and share != 1 and not first:
            self.without("train.timestep_fraction", "every step of the window is trained")

    def _learning(self) -> Iterator[tuple[str, Any]]:
        betas = [self.take("train.adam_beta1"), self.take("train.adam_beta2")]
        if None not in betas:
            yield "learner.betas", betas
        if self.take("train.ema"):
            yield "learner.ema", {"decay": 0.9, "every": 8}  # literals in the scripts
        batches, accumulated = map(self.count, ("sample.num_batches_per_epoch", "train.gradient_accumulation_steps"))
        if batches and accumulated:
            steps = max(1, batches // accumulated)
            if self.prompts and self.prompts < steps:
                self.differs("sample.num_batches_per_epoch", f"a step has {self.prompts} prompts, so as many updates")
            yield "objective.optimizer_steps", min(steps, self.prompts or steps)
        guidance = self.reading.values.get("sample.guidance_scale")
        if self.batch and isinstance(guidance, int | float):
            guided = guidance > 1 and "flux" not in self.model.lower()
            yield "rollout.micro_batch", self.batch * (2 if guided else 1)

    def _hardware(self) -> Iterator[tuple[str, Any]]:
        """One GPU scores; each other one has a rollout worker and a rank."""
        if self.gpus is None:
            self.notes.differs.append((None, f"hardware: 8 GPUs, because {NO_GPU}"))
        elif self.gpus > 1:
            said = f"hardware: {self.gpus} GPUs; {self.gpus - 1} of them have a rollout worker and a rank, one scores"
            self.notes.differs.append((None, said))
            yield "rollout.workers", self.gpus - 1
            yield "learner.ranks", min(self.gpus - 1, self.prompts or self.gpus)

    def _prompts_per_step(self) -> int | None:
        """Prompts of a training step: what all GPUs sample, in groups; None if the file does not say it."""
        batches, group = self.count("sample.num_batches_per_epoch"), self.count("sample.num_image_per_prompt")
        if prompts := self.count("sample.unique_prompt_per_epoch"):
            return prompts
        if not (self.batch and batches and group and self.gpus):
            self.notes.differs.append((None, f"data.prompts_per_step: set it, because {NO_GPU}"))
            return None
        images = self.batch * batches * self.gpus
        if images % group:
            self.differs("sample.num_batches_per_epoch", f"{images} images are not whole groups of {group}")
        return max(1, images // group)

    def _steps(self) -> int:
        epochs = self.count("num_epochs")
        if epochs and epochs < ENDLESS and self.given("num_epochs"):
            return epochs
        self.notes.differs.append((None, f"steps: {STEPS}, because flow_grpo's runs end by hand; set your own"))
        return STEPS

    def _data(self) -> dict[str, Any]:
        folder, kind = self.take("dataset"), self.take("prompt_fn")
        if not isinstance(folder, str) or not folder:
            folder = "dataset"
            self.notes.differs.append((self.reading.lines.get("dataset"), "data: name your own files of prompts"))
        if not isinstance(kind, str) or kind not in PROMPTS:
            self.differs("prompt_fn", "data: name your own files of prompts")
            kind = "general_ocr"
        train, heldout = PROMPTS[kind]
        data = {"train": f"{folder}/{train}", "heldout": f"{folder}/{heldout}"}
        if kind == "geneval":
            data["category_column"] = "tag"
        return data | ({"prompts_per_step": self.prompts} if self.prompts else {})

    def _scorers(self, layers: dict[str, Any]) -> dict[str, Any]:
        """The scorers: the changes to those of a layer, or a list if there is no layer for them."""
        rewards = self.take("reward_fn")
        if not isinstance(rewards, dict) or not rewards:
            raise UserError(
                f"`{self.path}`: `reward_fn` is missing or was not understood; assign names and weights to it"
            )
        if "rewards" in layers:
            scorers = _layer_scorers(layers["rewards"])
        else:
            scorers = [self._scorer(str(name), weight) for name, weight in rewards.items()]
        if not (scorers := [scorer for scorer in scorers if scorer]):
            raise UserError(
                f"`{self.path}`: tempflow has no scorer for {', '.join(map(str, rewards))}; see docs/scorers.md"
            )
        if self.gpus == 1:  # the scorers share a quarter of the GPU
            on_gpu = [scorer for scorer in scorers if scorer.get("num_gpus")]
            share = {"replicas": 1, "num_gpus": floor(250 / max(1, len(on_gpu))) / 1000}
            scorers = [scorer | share if scorer in on_gpu else scorer for scorer in scorers]
            if "rewards" in layers:
                return {"scorers": {scorer["name"]: share for scorer in on_gpu}}
        return {} if "rewards" in layers else {"scorers": scorers}

    def _scorer(self, name: str, weight: Any) -> dict[str, Any]:
        """The scorer of one reward; empty if there is none."""
        if _is_layer(name):
            known = _layer_scorers(name)[0]
        elif name in BUILT_IN or name in REWARDS:
            known = {"name": name} | REWARDS.get(name, {"scorer": name})
        else:
            self.without("reward_fn", f"tempflow has no scorer `{name}`")
            return {}
        return known | {"weight": weight}

    def count(self, key: str) -> int | None:
        """The value of a key that counts something; None if it does not."""
        return _count(self.take(key))


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _is_layer(name: Any) -> bool:
    """Whether rewards of this name are a layer that comes with tempflow."""
    return isinstance(name, str) and name.isidentifier() and (SHIPPED / FOLDERS["rewards"] / f"{name}.yaml").is_file()


def _layer_scorers(name: str) -> list[dict[str, Any]]:
    """The scorers of a layer that comes with tempflow, the trained one first."""
    return read_mapping(SHIPPED / FOLDERS["rewards"] / f"{name}.yaml", "a rewards layer")["scorers"]


def _reach(value: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _put(recipe: dict[str, Any], dotted: str, value: Any) -> None:
    *holders, key = dotted.split(".")
    for holder in holders:
        recipe = recipe.setdefault(holder, {})
    recipe[key] = value
