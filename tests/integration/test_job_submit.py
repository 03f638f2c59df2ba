"""`ray job submit`, `logs` and `stop` as the README shows them, on a real Ray head with token authentication."""

import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from tests.helpers.command_line import RUN_TIMEOUT_S, environment
from tests.helpers.paths import ROOT
from tests.helpers.ray_head import Head
from tests.helpers.run_folders import metrics

pytestmark = pytest.mark.slow

AGENT_TIMEOUT_S = 120


def ray_job(ray_head: Head, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """`ray job …` against the head, as somebody who has its token and tempflow on the PATH."""
    binaries = Path(sys.executable).parent
    verb, *rest = arguments
    return subprocess.run(
        [binaries / "ray", "job", verb, "--address", f"http://{ray_head.dashboard}", *rest],
        env=environment() | {"PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}", "RAY_AUTH_MODE": "token"},
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT_S,
    )


def submit(ray_head: Head, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """`ray job submit`, again while the head's agent is still starting."""
    deadline = time.monotonic() + AGENT_TIMEOUT_S
    while "No available agent" in (done := ray_job(ray_head, "submit", *arguments)).stderr:
        assert time.monotonic() < deadline, done.stderr
    return done


@pytest.mark.parametrize("entrypoint", [["tempflow"], [sys.executable, "-m", "system"]], ids=["installed", "checkout"])
def test_a_job_trains_and_leaves_its_run_folder(recipe, ray_head, tmp_path, entrypoint):
    working = tmp_path / "working"
    working.mkdir()
    shutil.copy(recipe, working / "tiny.yaml")
    if entrypoint != ["tempflow"]:
        for room in ("system", "actors", "services", "configs"):
            ignore = shutil.ignore_patterns("assets", "__pycache__")
            shutil.copytree(ROOT / room, working / room, ignore=ignore)
        shutil.copy(ROOT / "tempflow_entry.py", working)
        (working / "system" / "__init__.py").write_text('__version__ = "the checkout"\n')
    train = [*entrypoint, "train", "tiny.yaml", "steps=1", "name=job"]
    done = submit(ray_head, "--working-dir", working, "--", *train)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout
    lines = (tmp_path / "runs" / "job" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1]
    made_by = yaml.safe_load((tmp_path / "runs" / "job" / "config.yaml").read_text())["tempflow"]
    assert (made_by["version"] == "the checkout") == (entrypoint != ["tempflow"])


def test_a_stopped_job_leaves_a_checkpoint_and_goes_on_when_it_is_submitted_again(recipe, ray_head, tmp_path):
    working, run = tmp_path / "working", tmp_path / "runs" / "stopped"
    working.mkdir()
    shutil.copy(recipe, working / "tiny.yaml")
    train = ["--working-dir", working, "--", "tempflow", "train", "tiny.yaml", "name=stopped", "checkpoint.every=1000"]
    started = submit(ray_head, "--submission-id", "first", "--no-wait", *train, "steps=1000")
    assert started.returncode == 0, started.stdout + started.stderr
    deadline = time.monotonic() + RUN_TIMEOUT_S
    while not (run / "metrics.jsonl").exists() or len(metrics(run)) < 4:
        assert "RUNNING" in (said := ray_job(ray_head, "status", "first").stdout) or "PENDING" in said, said
        assert time.monotonic() < deadline
        time.sleep(0.5)
    with ThreadPoolExecutor(1) as threads:
        followed = threads.submit(ray_job, ray_head, "logs", "--follow", "first")
        stopped = ray_job(ray_head, "stop", "first")
        assert stopped.returncode == 0, stopped.stdout + stopped.stderr
        said = followed.result().stdout
    assert "stopped by SIGTERM; continue with --resume" in said
    at = metrics(run)[-1]["step"]
    assert (run / "checkpoints" / f"step_{at:06d}" / "manifest.json").exists()

    resumed = submit(ray_head, *train, f"steps={at + 2}", "--resume")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert [line["step"] for line in metrics(run)] == list(range(at + 3))


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
