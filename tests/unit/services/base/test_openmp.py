"""How long threads spin is what OpenMP itself says it is, in a process of the command line."""

import os
import subprocess
import sys

import pytest

COMMAND_THAT_COMPUTES = """
from system.commands import main
main.app = lambda: __import__("torch").ones(2).sum()
main.main()
"""


@pytest.mark.parametrize(("set_before", "spins"), [({}, 1000), ({"GOMP_SPINCOUNT": "77"}, 77)])
def test_openmp_spins_as_the_command_line_or_the_user_says(set_before, spins):
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"} | set_before
    environment["OMP_DISPLAY_ENV"] = "verbose"
    command = [sys.executable, "-c", COMMAND_THAT_COMPUTES]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120).stderr
    assert f"GOMP_SPINCOUNT = '{spins}'" in said
