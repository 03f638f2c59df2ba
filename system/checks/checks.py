"""The list of all checks, and two ways to use it: stop at the first problem, or show every finding.

A check is a function of a recipe. It yields findings or raises a UserError, and it changes nothing. It imports heavy
libraries, such as PyTorch and Ray, only when it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from enum import Flag, auto

from services.base.errors import UserError
from system.checks import machine, pool, recipe
from system.checks.finding import Finding
from system.recipe.model import RunConfig


class By(Flag):
    """The commands that run a check."""

    TRAIN = auto()
    """`tempflow train`, and `tempflow compare` for each of its recipes. These checks take less than a second each. A
    run with such a problem cannot work."""
    LOCAL = auto()
    """`tempflow train --local`: like TRAIN, but in one process without Ray."""
    EVAL = auto()
    """`tempflow eval`: like TRAIN, but without a learner."""
    DRY_RUN = auto()
    """`tempflow train --dry-run`: checks of the recipe alone, which may be meant for another machine. A check may take
    seconds."""
    DOCTOR = auto()
    """`tempflow doctor`: also makes estimates, and runs checks that load a scorer or ask another service."""


RUNS = By.TRAIN | By.LOCAL | By.EVAL
ALL = RUNS | By.DRY_RUN | By.DOCTOR

RecipeCheck = Callable[[RunConfig], Iterable[Finding]]
MachineCheck = Callable[[RunConfig | None], Iterable[Finding]]

RECIPE_CHECKS: tuple[tuple[RecipeCheck, By], ...] = (
    (recipe.loggers, By.TRAIN | By.LOCAL | By.DRY_RUN | By.DOCTOR),
    (recipe.training_devices, By.TRAIN | By.LOCAL | By.DRY_RUN | By.DOCTOR),
    (recipe.one_process, By.LOCAL),
    (recipe.evaluation_devices, By.EVAL),
    (recipe.plan, ALL),
    (recipe.policy, ALL),
    (recipe.adapters, ALL),
    (recipe.scorers, ALL),
    (recipe.prompts, By.TRAIN | By.LOCAL | By.DRY_RUN | By.DOCTOR),
    (recipe.weights, By.DRY_RUN | By.DOCTOR),  # imports PyTorch and builds the model without its weights: 9 s
    (recipe.scores, By.DOCTOR),  # loads each scorer's model, or asks its service
    (pool.shared, By.DOCTOR),  # attaches to the cluster
)
MACHINE_CHECKS: tuple[tuple[MachineCheck, By], ...] = (
    (machine.python, By.DOCTOR),
    (machine.torch, By.DOCTOR),
    (machine.cpus, By.TRAIN | By.DOCTOR),
    (machine.gpus, By.TRAIN | By.DOCTOR),
    (machine.cards, RUNS | By.DOCTOR),
    (machine.memory, By.TRAIN | By.DOCTOR),  # takes seconds if there is a GPU
    (machine.local_memory, By.LOCAL),  # takes seconds if there is a GPU
    (machine.cluster, By.TRAIN | By.DOCTOR),  # `connect` repeats it; here it runs before the run folder is made
    (machine.host_memory, By.DOCTOR),  # takes seconds
    (machine.shared_memory, By.DOCTOR),
    (machine.disks, By.DOCTOR),
    (machine.extras, By.DOCTOR),
    (machine.token_files, By.DOCTOR),
)


def refuse(config: RunConfig, command: By) -> None:
    """Run a command's checks. Those of the recipe come first, because a mistake there fails on every machine.

    Raises:
        UserError: the first problem.
    """
    for look, commands in (*RECIPE_CHECKS, *MACHINE_CHECKS):
        if command in commands:
            for finding in look(config):
                if finding.level == "problem":
                    raise UserError(finding.says)


def diagnose(config: RunConfig | None) -> Iterator[Finding]:
    """All findings of doctor's checks on this machine and, if one is given, in the recipe.

    A check that raises does not stop the others. A problem that several checks find is reported once.
    """
    said = set()
    for finding in _all_findings(config):
        if finding.level != "problem" or finding.says not in said:
            yield finding
            said.add(finding.says)


def _all_findings(config: RunConfig | None) -> Iterator[Finding]:
    for look, commands in MACHINE_CHECKS:
        if By.DOCTOR in commands:
            yield from _findings(look, config)
    for look_, commands in RECIPE_CHECKS if config else ():
        if By.DOCTOR in commands:
            yield from _findings(look_, config)


def _findings(look: Callable[..., Iterable[Finding]], config: RunConfig | None) -> Iterator[Finding]:
    try:
        yield from look(config)
    except UserError as error:
        yield Finding("problem", look.__name__.replace("_", " "), str(error))
