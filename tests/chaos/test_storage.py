"""Disks and object stores that are full while a run trains: it says so or spills, and loses nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.command_line import RUN_TIMEOUT_S, environment
from tests.helpers.disturbed_runs import STEPS, Run
from tests.helpers.paths import ROOT
from tests.helpers.run_folders import adapter, metrics

DISK_BYTES = 16 * 2**20
LEFT_BYTES = 2**15
"""More than the checkpoint of step 0 takes, and less than one with weights."""

CROWDED_HEAD = """
import sys
from system.launch.environment import listen_on_loopback
listen_on_loopback()
import numpy as np
import ray
store = 80 * 2**20
context = ray.init(address="local", num_cpus=4, object_store_memory=store, include_dashboard=False)
held = [ray.put(np.ones(2**20)) for _ in range(2 * store // 2**23)]
print(context.address_info["gcs_address"], context.address_info["session_dir"], flush=True)
sys.stdin.read()
ray.shutdown()
"""


@pytest.fixture
def small_disk(tmp_path):
    """A file system with LEFT_BYTES left."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", path]
    if subprocess.run(mount, capture_output=True, timeout=60).returncode:
        pytest.skip("only root may mount a small file system")
    (path / "other data").write_bytes(b"x" * (DISK_BYTES - LEFT_BYTES))
    yield path
    subprocess.run(["umount", path], check=True, timeout=60)


@pytest.fixture
def crowded_ray():
    """A Ray whose object store is filled twice over by somebody else: its address and its session's folder."""
    head = subprocess.Popen(
        [sys.executable, "-c", CROWDED_HEAD],
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    address, session = head.stdout.readline().split()
    yield address, Path(session)
    head.stdin.close()
    head.wait(60)


@pytest.mark.chaos
def test_a_full_disk_costs_checkpoints_and_a_resumed_run_has_the_same_bits(recipe, ray_head, undisturbed, small_disk):
    """The run reaches its end without them, and says what it lacks; with room it continues."""
    whole = undisturbed()
    full = Run(recipe, "full", [f"checkpoint.folder={small_disk / 'runs'}"], ray_head.address)
    full.start()
    full.process.wait(RUN_TIMEOUT_S)
    output = full.output.read_text()
    assert full.process.returncode == 2, output
    assert f"the checkpoint of step {STEPS} cannot be written" in output
    assert "continue with --resume from step 0" in output
    assert "No space left" in (full.path / "logs" / "driver.log").read_text()
    assert [line["step"] for line in metrics(full.path)] == list(range(STEPS + 1))

    (small_disk / "other data").unlink()
    full.start("--resume")
    full.finish()
    newest = small_disk / "runs" / "full" / f"step_{STEPS:06d}"
    assert (newest / "trained.safetensors").read_bytes() == adapter(whole, STEPS)


@pytest.mark.chaos
def test_a_run_whose_checkpoints_have_no_room_at_all_ends_before_anything_is_recorded(recipe, ray_head, small_disk):
    with (small_disk / "other data").open("ab") as file:
        file.write(b"x" * (LEFT_BYTES - 2**12))
    full = Run(recipe, "full", [f"checkpoint.folder={small_disk / 'runs'}"], ray_head.address)
    full.start()
    full.process.wait(RUN_TIMEOUT_S)
    output = full.output.read_text()
    assert full.process.returncode == 2, output
    assert f"no checkpoint can be written to {small_disk / 'runs' / 'full'}" in output
    assert "No space left" in output
    assert "Traceback" not in output
    assert not (full.path / "metrics.jsonl").exists()

    (small_disk / "other data").unlink()
    full.start("--resume")
    full.finish()
    assert [line["step"] for line in metrics(full.path)] == list(range(STEPS + 1))


@pytest.mark.chaos
def test_a_full_run_folder_is_said_in_a_sentence_and_the_resumed_run_has_the_same_bits(
    recipe, ray_head, undisturbed, small_disk
):
    whole = undisturbed()
    with (small_disk / "other data").open("r+b") as file:  # Room to begin, but not for all that a run records.
        file.truncate(DISK_BYTES - 3 * LEFT_BYTES)
    (recipe.parent / "runs").symlink_to(small_disk)
    full = Run(recipe, "full", [], ray_head.address)
    full.start()
    full.process.wait(RUN_TIMEOUT_S)
    output = full.output.read_text()
    assert full.process.returncode == 2, output
    assert "no room for the run" in output
    assert "Traceback" not in output

    (small_disk / "other data").unlink()
    full.start("--resume")
    full.finish()
    full.assert_equals(whole)


@pytest.mark.chaos
def test_a_full_object_store_spills_and_the_run_has_the_same_bits(recipe, undisturbed, crowded_ray):
    address, session = crowded_ray
    whole = undisturbed()
    crowded = Run(recipe, "crowded", [], address)
    crowded.start()
    crowded.finish()
    crowded.assert_equals(whole)
    assert any(file.stat().st_size for file in session.rglob("ray_spilled_objects*/*"))
