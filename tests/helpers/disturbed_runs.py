"""Training runs that are disturbed at a random moment, and what is left of them."""

import random
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from system.recipe.load import load_config
from system.recipe.model import RunConfig
from tests.helpers.command_line import RUN_TIMEOUT_S, environment
from tests.helpers.run_folders import adapter, figures, metrics, wait_for_steps

STEPS = 8
TOLD = ("learner_restarts", "workers_replaced", "retries/scores", "workers")
"""Keys of the metrics that may tell of a fault."""


@dataclass
class Run:
    """`tempflow train` in a process, on the Ray at `address` or on one of its own."""

    recipe: Path
    name: str
    overrides: list[str]
    address: str | None
    env: Mapping[str, str] = field(default_factory=dict)
    """Of the driver, beside that of the address."""

    @property
    def path(self) -> Path:
        return self.recipe.parent / "runs" / self.name

    @property
    def output(self) -> Path:
        """What the driver prints. A file: nobody reads a pipe during the run, and a full one would stop it."""
        return self.recipe.parent / f"{self.name}.out"

    @property
    def settings(self) -> list[str]:
        """All overrides of the recipe."""
        return [f"name={self.name}", f"steps={STEPS}", f"eval.every={STEPS}", *self.overrides]

    def config(self) -> RunConfig:
        return load_config(str(self.recipe), self.settings)

    def start(self, *arguments: str) -> None:
        self.started = time.monotonic()
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "system", "train", str(self.recipe), *self.settings, *arguments],
                cwd=self.recipe.parent,
                env=environment(self.address) | self.env,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def wait_for_steps(self, steps: int) -> None:
        wait_for_steps(self.process, self.path, steps, self.output.read_text)

    def wait_for_a_moment(self, chance: random.Random) -> None:
        """Until some time after a random step."""
        self.wait_for_steps(chance.randrange(1, STEPS - 3))
        time.sleep(chance.uniform(0, metrics(self.path)[-1].get("seconds/step", 0.1)))

    def end(self) -> None:
        """Kill the driver, if it still runs."""
        self.process.kill()
        self.process.wait(60)

    def finish(self) -> float:
        """Wait for the end; returns the seconds since the start."""
        assert self.process.wait(RUN_TIMEOUT_S) == 0, self.output.read_text()
        return time.monotonic() - self.started

    def assert_equals(self, other: Path) -> None:
        """The same bits and the same figures for each step as in another run folder, and each step once."""
        assert adapter(self.path, STEPS) == adapter(other, STEPS)
        assert [line["step"] for line in metrics(self.path)] == list(range(STEPS + 1))
        for ours, theirs in zip(figures(self.path), figures(other), strict=True):
            assert {k: v for k, v in ours.items() if k not in TOLD} == {
                k: v for k, v in theirs.items() if k not in TOLD
            }


def one_quick(cases: Iterable[Any]) -> list[Any]:
    """Parameters of a test, all but the first for `make test-all` only."""
    first, *others = cases
    rest = [case if isinstance(case, tuple) else (case,) for case in others]
    return [first, *(pytest.param(*case, marks=pytest.mark.chaos) for case in rest)]
