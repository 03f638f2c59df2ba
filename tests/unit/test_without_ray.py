"""What runs where Ray is not installed: training in one process, an export, the parts of `bench gpu`."""

import os
import subprocess
import sys

from actors.policy.trained import LORA_FILE
from system.bench.gpu.parts import PARTS
from tests.helpers.paths import ROOT
from tests.helpers.recipes import tiny_recipe

CODE = """
import sys
from importlib import import_module
from pathlib import Path

from system.export.export import export
from system.recipe.load import load_config
from tests.helpers.training import trained_locally

recipe, out, *parts = sys.argv[1:]
export(trained_locally(load_config(recipe, ["name=bare", "steps=1"])), Path(out))
for part in parts:
    import_module(f"system.bench.gpu.{part}")
"""


def test_what_needs_no_ray_runs_where_it_is_not_installed(sd3_folder, tmp_path):
    """With a package in Ray's place that cannot be imported."""
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "ray.py").write_text("raise ImportError('there is no Ray')")
    recipe = tiny_recipe(sd3_folder, tmp_path)
    env = os.environ | {"PYTHONPATH": f"{hidden}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-c", CODE, str(recipe), str(tmp_path / "out"), *PARTS]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / LORA_FILE).is_file()
