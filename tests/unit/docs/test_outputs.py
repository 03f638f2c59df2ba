"""What pages show as the output of a command is what the command prints.

Compared are the memory and the cost of a step in the first run, and the excerpt of a composed recipe. They follow from
the recipes alone, on every machine. Output of runs has times in it and is not compared.
"""

import re

from tests.helpers.command_line import Cli
from tests.helpers.paths import ROOT


def shown(page: str, first: str) -> list[str]:
    """The lines of the indented block of a page that has `first` in its first line."""
    blocks = re.findall(r"(?:^    .*\n)+", (ROOT / "docs" / page).read_text(), re.MULTILINE)
    (block,) = (block for block in blocks if first in block.partition("\n")[0])
    return [line[4:] for line in block.splitlines()]


def test_the_first_run_shows_what_a_step_costs(in_process: Cli):
    printed = in_process("train", "shapes", "--dry-run")
    assert printed.returncode == 0
    lines = [line.rstrip() for line in printed.stdout.splitlines()]
    wanted = shown("tutorials/first-run.md", "shapes on CPUs")
    at = lines.index(wanted[0])
    assert lines[at : at + len(wanted)] == wanted


def test_the_page_of_recipes_shows_where_values_came_from(in_process: Cli):
    command, *wanted = shown("recipes.md", "$ tempflow config")
    printed = in_process(*command.split()[2:])
    assert printed.returncode == 0
    lines = iter(" ".join(line.split()) for line in printed.stdout.splitlines())
    for line in wanted:
        if line.strip() != "...":
            assert " ".join(line.split()) in lines, line
