"""`ray job submit` as the README shows it, on a real Ray head with token authentication."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.integration.conftest import ROOT, RUN_TIMEOUT_S, environment

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("entrypoint", [["tempflow"], [sys.executable, "-m", "system"]], ids=["installed", "checkout"])
def test_a_job_trains_and_leaves_its_run_folder(recipe, ray_head, tmp_path, entrypoint):
    working = tmp_path / "working"
    working.mkdir()
    shutil.copy(recipe, working / "tiny.yaml")
    if entrypoint != ["tempflow"]:
        for room in ("system", "actors", "services", "configs"):
            ignore = shutil.ignore_patterns("assets", "__pycache__")
            shutil.copytree(ROOT / room, working / room, ignore=ignore)
        (working / "system" / "__init__.py").write_text('__version__ = "the checkout"\n')
    binaries = Path(sys.executable).parent
    env = environment() | {"PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}", "RAY_AUTH_MODE": "token"}
    submit = [
        binaries / "ray",
        "job",
        "submit",
        "--address",
        f"http://{ray_head.dashboard}",
        "--working-dir",
        working,
        "--",
    ]
    done = subprocess.run(
        [*submit, *entrypoint, "train", "tiny.yaml", "steps=1", "name=job"],
        env=env,
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout
    lines = (tmp_path / "runs" / "job" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1]
    made_by = yaml.safe_load((tmp_path / "runs" / "job" / "config.yaml").read_text())["tempflow"]
    assert (made_by["version"] == "the checkout") == (entrypoint != ["tempflow"])


def test_a_job_needs_the_token(ray_head, tmp_path):
    env = environment() | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "wrong" * 8}
    ray = Path(sys.executable).parent / "ray"
    done = subprocess.run(
        [ray, "job", "list", "--address", f"http://{ray_head.dashboard}"],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
