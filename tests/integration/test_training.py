"""Training on a real local Ray: the run of one process, Ctrl-C, the ports, and what a user reads when it fails."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from system.recipe.load import load_config
from tests.helpers.command_line import environment
from tests.helpers.families import FAMILIES
from tests.helpers.holes import write_scorers
from tests.helpers.judging import judged_by_rows
from tests.helpers.processes import listening
from tests.helpers.recipes import ONE_PROCESS, tiny_recipe
from tests.helpers.run_folders import adapter, figures, metrics, wait_for_steps
from tests.helpers.training import checkpoint_files, trained_locally

FULL = ["policy.lora=null", "learner.lr=1e-4", "policy.dtype=bf16", "learner.max_drift=1", "objective.kl=0.01"]


def assert_as_in_one_process(ray: Path, recipe: Path, *overrides: str) -> None:
    """The run folder `ray` has the bits of the run of one process, and its figures for each step."""
    local = trained_locally(load_config(str(recipe), ["name=local", *overrides]))
    last = metrics(local)[-1]["step"]
    files = checkpoint_files(local, last)
    assert "trained.safetensors" in files
    assert checkpoint_files(ray, last) == files
    for one, other in zip(figures(ray), figures(local), strict=True):
        differ = {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}
        assert differ <= {"workers"}, differ


@pytest.fixture
def as_in_one_process(tempflow, ray_head, tmp_path):
    """Train a recipe on Ray and in one process, and compare."""

    def compare(recipe, *overrides: str) -> None:
        done = tempflow("train", recipe, "name=ray", *overrides, address=ray_head.address)
        assert done.returncode == 0, done.stderr
        assert_as_in_one_process(tmp_path / "runs" / "ray", recipe, *overrides)

    return compare


def test_a_split_run_with_holes_is_the_run_of_one_process(with_holes):
    assert metrics(with_holes.path)[-1]["holes"] > 0
    assert_as_in_one_process(with_holes.path, with_holes.recipe, *with_holes.overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(ONE_PROCESS, id="colocated"),
        pytest.param(["placement=colocated"], id="colocated, and a worker", marks=pytest.mark.slow),
        pytest.param(["learner.max_staleness=2"], id="stale", marks=pytest.mark.slow),
        pytest.param(FULL, id="every weight", marks=pytest.mark.slow),
    ],
)
def test_a_run_on_ray_is_the_run_of_one_process(recipe, as_in_one_process, overrides):
    as_in_one_process(recipe, *overrides)


@pytest.mark.slow
def test_rows_sub_scores_and_groups_on_ray_are_those_of_one_process(recipe, as_in_one_process, tmp_path):
    as_in_one_process(recipe, "steps=2", *judged_by_rows(tmp_path))
    tables = [
        pq.read_table(tmp_path / "runs" / name / "experience" / "step_000002.parquet") for name in ("ray", "local")
    ]
    assert {"reward/judge.count", "reward/rank"} <= set(tables[0].column_names)
    assert tables[0].equals(tables[1])


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["split", "colocated"])
@pytest.mark.parametrize("case", FAMILIES[1:], ids=str)
def test_each_familys_run_on_ray_is_the_run_of_one_process(case, tiny_folder, as_in_one_process, tmp_path, placement):
    recipe = tiny_recipe(tiny_folder(case), tmp_path)
    settings = [f"policy.{key}={value}" for key, value in case.settings.items()]
    as_in_one_process(recipe, f"placement={placement}", f"policy.guidance={case.guidances[-1]}", "steps=2", *settings)


@pytest.mark.parametrize("how", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.chaos)])
def test_a_stop_leaves_a_checkpoint_and_no_processes_and_the_resumed_run_has_the_same_bits(
    recipe, in_process, tmp_path, how
):
    """Ctrl-C goes to all processes of a terminal, SIGTERM to the driver. The run is resumed in one process."""
    command = [sys.executable, "-m", "system", "train", str(recipe), "name=stopped", "steps=400", *ONE_PROCESS]
    run = tmp_path / "runs" / "stopped"
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    wait_for_steps(process, run, 3, process.stdout.read)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) > 5
    (os.killpg if how == signal.SIGINT else os.kill)(process.pid, how)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert "--resume" in output
    assert "Traceback" not in output
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    stopped_at = metrics(run)[-1]["step"]
    assert (run / "checkpoints" / f"step_{stopped_at:06d}").is_dir()
    assert (run / "report.html").exists()

    steps = f"steps={stopped_at + 2}"
    assert in_process("train", recipe, "--local", "name=stopped", steps, "--resume").returncode == 0
    assert in_process("train", recipe, "--local", "name=whole", steps).returncode == 0
    assert adapter(run, stopped_at + 2) == adapter(tmp_path / "runs" / "whole", stopped_at + 2)


def test_ctrl_c_while_ray_starts_ends_the_run_with_a_sentence_and_leaves_no_processes(recipe, tmp_path):
    """The dashboard and the agents would die of a SIGINT, and Ray's start would fail or wait for them."""
    command = [sys.executable, "-m", "system", "train", str(recipe), *ONE_PROCESS]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not any("dashboard.py" in command for command in commands_in(tmp_path)):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert "SIGINT: Ray is starting and cannot be interrupted" in output
    assert "stopped by SIGINT; continue with --resume" in output
    assert "Traceback" not in output
    assert not commands_in(tmp_path)


def commands_in(folder: Path) -> list[str]:
    """The command lines of the processes that were started in a folder and still run."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # it has ended
            if process.cwd() == str(folder):
                found.append(" ".join(process.cmdline()))
    return found


def test_a_ray_of_ours_listens_on_loopback_only(ray_head):
    """All but Serve's replicas (docs/architecture.md): their port has no setting, and asks for the token."""
    found = [(title, ip) for title, ip in listening(ray_head.pid) if "ServeReplica" not in title]
    assert len(found) > 5
    assert {ip.removeprefix("::ffff:") for _, ip in found} == {"127.0.0.1"}, found


@pytest.mark.slow
def test_a_pool_that_cannot_be_placed_is_said_in_a_sentence(recipe, tempflow, ray_head):
    too_much = ("scorers.0.num_cpus=99", "ray.start_timeout_s=3")
    done = tempflow("train", recipe, *ONE_PROCESS, *too_much, address=ray_head.address)
    assert done.returncode == 2, done.stderr
    assert "the reward pool has not started (scorer-size: " in done.stderr
    assert "lower the scorers' num_cpus" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_scorer_that_always_raises_is_said_in_a_sentence(recipe, tempflow, ray_head, tmp_path):
    write_scorers(tmp_path)
    failing = ("scorers.0.scorer=broken:Raises", "scorers.0.attempts=1")
    done = tempflow("train", recipe, *ONE_PROCESS, *failing, address=ray_head.address)
    assert done.returncode == 2, done.stderr
    assert "scorer `size`: OSError: the model file is gone" in done.stderr
    assert "Traceback" not in done.stderr
