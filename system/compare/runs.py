"""`tempflow compare`: runs every recipe and seed with the same budget. A stopped comparison can be continued."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from services.base.errors import UserError
from services.base.plain import plain
from system.capacity.counts import steps_within
from system.checks.checks import By, refuse
from system.compare.result import Result, condense, key_of
from system.recipe.load import load_config
from system.recipe.model import RunConfig
from system.run.files import RunFiles
from system.run.outputs import make_output_folder
from system.training import train_run

FORM = 'write it as "shapes learner.lr=5e-4"'


@dataclass(frozen=True)
class Contender:
    """A recipe, its overrides, and its name in the comparison."""

    name: str
    """The contender's name in tables, legends and file names."""
    recipe: str
    overrides: tuple[str, ...]

    @classmethod
    def parse(cls, text: str, shared: Sequence[str] = ()) -> Contender:
        """Parse `RECIPE key=value …`, split as in a shell. The name is given as name=…, or else is the recipe's.

        Args:
            shared: overrides that come before the contender's own.

        Raises:
            UserError: a quote is not closed, or the text is empty.
        """
        recipe, *overrides = _split(text)
        names = [override.removeprefix("name=") for override in overrides if override.startswith("name=")]
        name = names[-1] if names else Path(recipe).stem
        own = [override for override in overrides if not override.startswith("name=")]
        return cls(name, recipe, (*shared, *own))

    def config(self, seed: int, budget: int, evals: int, runs: Path) -> RunConfig:
        """The recipe for one seed: as many steps as the budget (in NFE) allows, with about `evals` evaluations."""
        place = [f"name={self.name}-seed{seed}", f"output={runs}", "checkpoint.folder=null"]
        load = [*self.overrides, f"seed={seed}", *place]
        steps = steps_within(load_config(self.recipe, load), budget)
        choices = (max(1, steps // evals), math.ceil(steps / evals))
        # The last step is always evaluated. This choice keeps the evaluation before it from being too close.
        every = max(choices, key=lambda every: ((steps - 1) % every + 1) / every)
        return load_config(self.recipe, [*load, f"steps={steps}", f"eval.every={every}"])


def _split(text: str) -> list[str]:
    """Split a text into words as a shell does.

    Raises:
        UserError: a quote is not closed, or there are no words.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UserError(f"`{text}` is not a recipe with overrides ({error}); {FORM}") from error
    if not words:
        raise UserError(f"`{text}` is not a recipe with overrides; {FORM}")
    return words


def parse_contenders(texts: Sequence[str]) -> list[Contender]:
    """Parse all contenders, whose names must differ. A text `key=value` is an override of every contender.

    Such overrides come before a contender's own.

    Raises:
        UserError: there is no contender, two have the same name, or a name is given for all.
    """
    for_all = [text for text in texts if "=" in text.partition(" ")[0]]
    overrides = [override for text in for_all for override in _split(text)]
    if any(override.startswith("name=") for override in overrides):
        raise UserError("name=… must belong to one contender: put it in quotes together with its recipe")
    contenders = [Contender.parse(text, overrides) for text in texts if text not in for_all]
    if not contenders:
        raise UserError("nothing to compare: name at least one recipe")
    names = [contender.name for contender in contenders]
    if len(set(names)) < len(names):
        raise UserError(f"two contenders are named {max(names, key=names.count)}; give one another name=…")
    return contenders


def read_results(folder: Path) -> list[Result]:
    """Read all results in the folder of a comparison.

    Raises:
        UserError: there are no results, or one cannot be read.
    """
    results = [Result.load(path) for path in sorted(folder.glob("*.json"))]
    if not results:
        raise UserError(f"--output: no results in `{folder}`; name recipes to compare, or the folder of a comparison")
    return sorted(results, key=lambda result: (result.seed, result.contender))


def run_all(
    contenders: Sequence[Contender],
    seeds: Sequence[int],
    budget: int,
    evals: int,
    output: Path,
    console: Console,
    local: bool = False,
) -> tuple[list[Result], int]:
    """Run every contender with every seed, seed by seed. The results of finished runs are read, not repeated.

    Args:
        local: run each in this process instead of on Ray.

    Returns:
        The results so far, and the exit code of the last run, which is not 0 if that run was stopped.

    Raises:
        UserError: a recipe is wrong, or a result or run folder belongs to another recipe. Nothing was started then.
    """
    make_output_folder(output, "--output")
    configs = {
        (seed, contender.name): contender.config(seed, budget, evals, output / "runs")
        for seed in seeds
        for contender in contenders
    }
    _check_comparable([configs[seeds[0], contender.name] for contender in contenders], local)
    for config in configs.values():
        _check_own(config, output)
    results: list[Result] = []
    for number, ((_, name), config) in enumerate(configs.items(), 1):
        path = output / f"{config.name}.json"
        if not path.exists():
            console.print(plain(f"{config.name}, {number} of {len(configs)}: {config.steps} steps"), style="bold")
            code = train_run(config, resume=True, console=console, local=local)
            if code:
                return results, code
            condense(Path(config.output) / config.name, name, key_of(config)).save(path)
        results.append(Result.load(path))
    return results, 0


def _check_own(config: RunConfig, output: Path) -> None:
    """Check that an earlier result or run folder of this name has the same recipe and budget.

    Raises:
        UserError: it has another recipe or budget.
    """
    path, folder = output / f"{config.name}.json", RunFiles(Path(config.output) / config.name)
    found = path if path.exists() else folder.path
    if path.exists():
        key = Result.load(path).key
    elif folder.begun:
        key = key_of(folder.read_config())
    else:
        return
    if key != key_of(config):
        raise UserError(f"{found} belongs to another recipe or budget; delete it, or give another name=… or --output")


def _check_comparable(configs: Sequence[RunConfig], local: bool) -> None:
    """Check before anything starts that all recipes can run and can be compared.

    Raises:
        UserError: a recipe is wrong, has no held-out prompts, or has other scorers than the first recipe.
    """
    names = [scorer.name for scorer in configs[0].scorers]
    for config in configs:
        refuse(config, By.LOCAL if local else By.TRAIN)
        if config.data.heldout is None:
            raise UserError(f"{config.name}: a comparison needs held-out prompts; set data.heldout")
        if sorted(scorer.name for scorer in config.scorers) != sorted(names):
            raise UserError(
                f"{config.name} has other scorers than {configs[0].name} ({', '.join(names)}); give both the same"
            )
