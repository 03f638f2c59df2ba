"""The settings of evaluation: which held-out prompts, how their images are sampled, and who scores them."""

import re
from typing import Annotated

from pydantic import Field

from actors.policy.settings import PolicySettings
from actors.rollout.sampling import Sampling
from services.base.settings import Listed, Settings

NAME = re.compile("[a-z][a-z0-9_]*")
DEFAULT_SET = "heldout"
"""The name of the set that `data.heldout` makes. Its metrics and files have no name of a set."""

ScorerNames = Annotated[Listed[str], Field(min_length=1)] | None


class EvalSet(Settings):
    """One set of held-out prompts, beside the prompts of `data.heldout`."""

    prompts: str
    """The file of the prompts. `package:system.prompt_sets/NAME.jsonl` is a set of ours: `counting`, `colour`,
    `position` and `text` for any model, and `shapes` for the miniature."""
    prompt_column: str = "prompt"
    """The column with the prompts."""
    category_column: str = "category"
    """Scores are also reported for each value of this column, if the file has it."""
    images_per_prompt: int = Field(1, ge=1)
    """Images of each prompt, each from its own noise. Groupwise scorers, such as `diversity`, need at least 2."""
    scorers: ScorerNames = None
    """The names of the scorers for this set. If not given, all scorers of the recipe are used."""


class EvalSettings(Settings):
    """Evaluation on held-out prompts. Its images are deterministic: they start from the same noise each time."""

    every: int = Field(10, ge=1)
    """Training steps between evaluations. The policy is always evaluated before the first step and after the last."""
    prompts: int = Field(512, ge=1)
    """Number of prompts of each set, taken from the top of its file."""
    images_per_prompt: int = Field(1, ge=1)
    """Images of each prompt of data.heldout, each from its own noise. Groupwise scorers, such as `diversity`, need at
    least 2."""
    scorers: ScorerNames = None
    """The names of the scorers for data.heldout. If not given, all scorers of the recipe are used."""
    sets: dict[str, EvalSet] = Field(default_factory=dict)
    """Further sets of held-out prompts, by a name in lower case."""
    best: str | None = None
    """The score that chooses the best checkpoint: a scorer for data.heldout, such as `pickscore`, or a set and a
    scorer, such as `counting/geneval`. If not given, it is the training reward on data.heldout."""
    patience: int | None = Field(None, ge=1)
    """The run ends early after this many evaluations in a row without a new best score (`best`), so that a run that has
    collapsed does not keep its GPUs. If not given, all `steps` are made."""
    batch: int = Field(24, ge=1)
    """Number of images in one request to a rollout worker. Images of one prompt are never split."""
    height: int | None = Field(None, gt=0)
    """Height of held-out images in pixels. If not given, policy.height is used."""
    width: int | None = Field(None, gt=0)
    """Width of held-out images in pixels. If not given, policy.width is used."""
    num_steps: int | None = Field(None, ge=1)
    """Sampling steps T of held-out images. If not given, policy.num_steps is used."""
    guidance: float | None = Field(None, ge=0)
    """Guidance of held-out images. If not given, policy.guidance is used."""
    negative_prompt: str | None = None
    """The negative prompt of classifier-free guidance. If not given, that of the model's pipeline is used."""
    adapter_scale: float = Field(1.0, ge=0)
    """Held-out images are sampled with this multiple of the adapter."""
    grid: int = Field(16, ge=0)
    """Number of images of each set that each evaluation saves as PNG files."""

    def sampling(self, policy: PolicySettings) -> Sampling:
        """How held-out images are sampled."""
        return Sampling(
            height=self.height or policy.height,
            width=self.width or policy.width,
            num_steps=self.num_steps or policy.num_steps,
            guidance=policy.guidance if self.guidance is None else self.guidance,
            negative_prompt=self.negative_prompt,
            adapter_scale=self.adapter_scale,
        )

    def chosen_by(self) -> tuple[str, str] | None:
        """The set and the scorer of `best`; None for the training reward."""
        if self.best is None:
            return None
        name, _, scorer = self.best.rpartition("/")
        return name or DEFAULT_SET, scorer

    def check(self, sets: dict[str, EvalSet], scorers: list[str], has_adapter: bool) -> None:
        """Refuse names of sets that are not plain, scorers and a `best` that do not exist, and a scale of no adapter.

        Args:
            sets: all sets by name, with that of data.heldout.
            scorers: the names of the recipe's scorers.

        Raises:
            ValueError: the settings do not fit together. The message names them.
        """
        for name in self.sets:
            if not NAME.fullmatch(name) or name == DEFAULT_SET:
                raise ValueError(
                    f"eval.sets: `{name}` cannot name a set; take another name of a-z, 0-9 and _, such as `counting`"
                )
        for name, one in sets.items():
            key = "eval.scorers" if name == DEFAULT_SET else f"eval.sets.{name}.scorers"
            if unknown := [scorer for scorer in one.scorers or () if scorer not in scorers]:
                raise ValueError(f"{key}: no scorer is named `{unknown[0]}`; there are {', '.join(scorers)}")
        if (chosen := self.chosen_by()) is not None:
            name, scorer = chosen
            if name not in sets:
                there = ", ".join(sets) or "none"
                raise ValueError(f"eval.best: there is no set `{name}`; there are {there} (data.heldout is `heldout`)")
            if scorer.partition(".")[0] not in (sets[name].scorers or scorers):
                raise ValueError(f"eval.best: no scorer `{scorer}` scores the set `{name}`; give one that does")
        if self.patience and self.chosen_by() is None and DEFAULT_SET not in sets:
            raise ValueError("eval.patience: no held-out score is known; set data.heldout, or eval.best, or remove it")
        if self.adapter_scale != 1 and not has_adapter:
            raise ValueError("eval.adapter_scale: policy.lora is null, so there is no adapter; set it to 1")
