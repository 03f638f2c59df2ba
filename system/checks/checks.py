"""The one list of checks, and the two ways to use it: refuse the first problem, or show everything.

A check is a function of a recipe that yields findings or raises a UserError; it changes nothing. It imports heavy
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
    """The commands that make a check."""

    TRAIN = auto()
    """`tempflow train`, and `tempflow compare` for each of its recipes. A check takes less than a second, and a run
    with its problem cannot work."""
    LOCAL = auto()
    """`tempflow train --local`: as for TRAIN, in one process without Ray."""
    EVAL = auto()
    """`tempflow eval`: as for TRAIN, without a learner."""
    DRY_RUN = auto()
    """`tempflow train --dry-run`: all about the recipe, on whichever machine. A check may take seconds."""
    DOCTOR = auto()
    """`tempflow doctor`: also estimates, and checks that load a scorer or ask another service."""


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
    (recipe.adapter, ALL),
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
    (machine.memory, By.TRAIN | By.DOCTOR),  # seconds, where there is a GPU
    (machine.cluster, By.TRAIN | By.DOCTOR),  # `connect` makes it again; here it comes before the run folder
    (machine.shared_memory, By.DOCTOR),
    (machine.disks, By.DOCTOR),
    (machine.extras, By.DOCTOR),
    (machine.token_files, By.DOCTOR),
)


def refuse(config: RunConfig, command: By) -> None:
    """Make a command's checks, those of the recipe first: a mistake there is one on every machine.

    Raises:
        UserError: the first problem.
    """
    for look, commands in (*RECIPE_CHECKS, *MACHINE_CHECKS):
        if command in commands:
            for finding in look(config):
                if finding.level == "problem":
                    raise UserError(finding.says)


def diagnose(config: RunConfig | None) -> Iterator[Finding]:
    """Everything that doctor's checks find on this machine and, if there is a recipe, in the recipe.

    A check that raises does not end the others. A problem that several checks run into is said once.
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
