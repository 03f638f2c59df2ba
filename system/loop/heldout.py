"""The held-out sets of a recipe, with their prompts and their scorers."""

from collections.abc import Sequence
from dataclasses import dataclass

from services.scoring.scorer import Needs, needs_of
from services.scoring.settings import ScorerSettings
from system.loop.prompts import Prompts, check_rows, read_prompts
from system.recipe.evaluation import DEFAULT_SET, EvalSet
from system.recipe.model import RunConfig


@dataclass(frozen=True)
class HeldOut:
    """One set of held-out prompts."""

    name: str
    prompts: Prompts
    count: int
    """The number of prompts that are evaluated, from the top of the file."""
    images_per_prompt: int
    scorers: Sequence[ScorerSettings]

    @property
    def prefix(self) -> str:
        """The part of the set's metric keys that follows `eval` or `eval_holes`."""
        return "" if self.name == DEFAULT_SET else f".{self.name}"


def read_sets(config: RunConfig) -> list[HeldOut]:
    """The sets that a recipe evaluates, that of data.heldout first.

    Raises:
        UserError: a file cannot be read, or a scorer cannot use its rows.
    """
    return [read_set(config, name, one) for name, one in config.eval_sets.items()]


def read_set(config: RunConfig, name: str, one: EvalSet) -> HeldOut:
    """Read one set.

    Raises:
        UserError: the file cannot be read, or a scorer cannot use its rows.
    """
    section = "data" if name == DEFAULT_SET else f"eval.sets.{name}"
    prompts = read_prompts(one.prompts, one.prompt_column, one.category_column, section)
    scorers = scorers_of(config, one)
    check_rows(one.prompts, prompts, scorers)
    return HeldOut(name, prompts, min(config.eval.prompts, len(prompts)), one.images_per_prompt, scorers)


def scorers_of(config: RunConfig, one: EvalSet) -> list[ScorerSettings]:
    """The scorers of a set.

    Groupwise scorers are left out if a prompt has only one image, because it has no others to be compared with.
    Relative ones are always left out: the mean of their scores says nothing, and would choose the best checkpoint by
    chance.
    """
    named = [scorer for scorer in config.scorers if one.scorers is None or scorer.name in one.scorers]
    return [scorer for scorer in named if _has_a_mean(needs_of(scorer), one)]


def _has_a_mean(needs: Needs, one: EvalSet) -> bool:
    return not needs.relative and (one.images_per_prompt > 1 or not needs.groupwise)
