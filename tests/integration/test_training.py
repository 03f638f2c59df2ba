"""Training on a real local Ray: bits, resume, the run folder, Ctrl-C, and what the user sees when it goes wrong."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import yaml
from safetensors.numpy import load_file

from tests.helpers.command_line import RUN_TIMEOUT_S, environment
from tests.helpers.paths import ROOT
from tests.helpers.run_folders import adapter, figures, metrics, wait_for_steps


@pytest.mark.parametrize("staleness", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_the_same_seed_gives_the_same_bits_and_so_does_a_resumed_run(recipe, tempflow, ray_head, tmp_path, staleness):
    stale = f"learner.max_staleness={staleness}"
    for arguments in (["name=one"], ["name=two"], ["name=halves", "steps=2"], ["name=halves", "--resume"]):
        done = tempflow("train", recipe, *arguments, stale, address=ray_head.address)
        assert done.returncode == 0, done.stderr
    one, two, halves = (tmp_path / "runs" / name for name in ("one", "two", "halves"))
    assert adapter(one) == adapter(two) == adapter(halves)
    assert figures(one) == figures(two)
    assert [line["step"] for line in metrics(halves)] == [0, 1, 2, 3, 4]
    assert figures(halves) == figures(one)
    assert [line["staleness"] for line in metrics(one)[1:]] == [min(step, staleness) for step in range(4)]
    check_run_folder(one, staleness)
    if staleness:
        return
    other = tempflow("train", recipe, "name=other", "seed=1", address=ray_head.address)
    assert other.returncode == 0
    assert adapter(tmp_path / "runs" / "other") != adapter(one)

    again = tempflow("train", recipe, "name=one", address=ray_head.address)
    assert again.returncode == 2
    assert "--resume" in again.stderr
    changed = tempflow("train", recipe, "name=one", "learner.lr=1e-3", "--resume", address=ray_head.address)
    assert changed.returncode == 2
    assert "other settings: learner.lr was 0.01 and is" in changed.stderr


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_run_whose_checkpoints_are_not_found_is_refused_and_no_record_is_touched(
    recipe, tempflow, ray_head, tmp_path
):
    """A forgotten checkpoint.folder, and then a storage that is not mounted: neither begins the run again."""
    elsewhere, run = tmp_path / "elsewhere", tmp_path / "runs" / "kept"

    def train(*arguments):
        return tempflow("train", recipe, "name=kept", *arguments, address=ray_head.address)

    begun = train(f"checkpoint.folder={elsewhere}", "steps=2")
    assert begun.returncode == 0, begun.stderr
    before = files(run)

    forgotten = train("--resume")
    assert forgotten.returncode == 2
    assert f"there is no checkpoint of it in `{run}/checkpoints`" in forgotten.stderr
    assert f"so add checkpoint.folder={elsewhere}" in forgotten.stderr
    assert len(forgotten.stderr.strip().splitlines()) == 1
    assert files(run) == before

    elsewhere.rename(tmp_path / "mounted")
    unmounted = train(f"checkpoint.folder={elsewhere}", "--resume")
    assert unmounted.returncode == 2
    assert "mount or put back what held them" in unmounted.stderr
    assert files(run) == before
    assert not elsewhere.exists()

    (tmp_path / "mounted").rename(elsewhere)
    (tmp_path / "prompts.txt").write_text((tmp_path / "prompts.txt").read_text().replace("3", "three"))
    replaced = train(f"checkpoint.folder={elsewhere}", "--resume")
    assert replaced.returncode == 2
    assert "began with another content of data.train, data.heldout" in replaced.stderr
    assert files(run) == before

    again = train(f"checkpoint.folder={elsewhere}", "--resume", "--accept-changes")
    assert again.returncode == 0, again.stderr
    assert [line["step"] for line in metrics(run)] == [0, 1, 2, 3, 4]
    assert "continues with another content of data.train" in (run / "logs" / "driver.log").read_text()


def check_run_folder(run: Path, staleness: int) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["tempflow"]["version"]
    assert config["learner"]["betas"] == [0.9, 0.999]
    lines = metrics(run)
    assert {"eval/size", "nfe"} <= lines[0].keys()
    for line in lines[1:]:
        assert (line["ratio/first_deviation"] == 0) == (line["staleness"] == 0)
        assert line["drift/mean"] < 1e-4
        assert line["holes"] == 0
    assert lines[-1]["nfe"] == sum(line["nfe/generate"] + line["nfe/learn"] for line in lines[1:])
    experience = pq.read_table(run / "experience" / "step_000001.parquet")
    assert len(experience) == 3 * 2 * 3 * 3
    assert set(experience["branch_step"].to_pylist()) == {0, 1, 2}
    assert set(experience["policy_version"].to_pylist()) == {0}
    groups = experience.group_by(["prompt_row", "seed", "branch_step"]).aggregate([("advantage", "sum")])
    assert all(abs(total) < 1e-9 for total in groups["advantage_sum"].to_pylist())
    assert (run / "samples" / "step_000004" / "001.png").exists()
    assert len(pq.read_table(run / "eval" / "step_000004.parquet")) == 6
    assert load_file(run / "lora" / "pytorch_lora_weights.safetensors")
    assert "<svg" in (run / "report.html").read_text()
    assert not list(run.rglob("*.tmp"))


@pytest.mark.parametrize("how", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.chaos)])
def test_a_stop_leaves_a_checkpoint_and_no_processes_and_the_resumed_run_has_the_same_bits(
    recipe, tempflow, tmp_path, how
):
    """Ctrl-C goes to all processes of a terminal, SIGTERM to the driver."""
    command = [sys.executable, "-m", "system", "train", str(recipe), "name=stopped", "steps=400"]
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
    assert tempflow("train", recipe, "name=stopped", steps, "--resume").returncode == 0
    assert tempflow("train", recipe, "name=whole", steps).returncode == 0
    assert adapter(run, stopped_at + 2) == adapter(tmp_path / "runs" / "whole", stopped_at + 2)


def test_a_ray_of_ours_listens_on_loopback_only(ray_head):
    """All but Serve's replicas (docs/architecture.md): their port has no setting, and asks for the token."""
    family = [psutil.Process(ray_head.pid), *psutil.Process(ray_head.pid).children(recursive=True)]
    listening = [
        (process.name(), connection.laddr.ip)
        for process in family
        if "ServeReplica" not in " ".join(process.cmdline())
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) > 5
    assert {ip.removeprefix("::ffff:") for _, ip in listening} == {"127.0.0.1"}, listening


BROKEN_SCORERS = """
import numpy as np

class Raises:
    def __call__(self, images_NHWC, prompts):
        raise OSError("the model file is gone")

class SomeNaN:
    def __init__(self, percent):
        self.percent = percent

    def __call__(self, images_NHWC, prompts):
        sums = images_NHWC.sum(axis=(1, 2, 3))
        return np.where(sums % 101 % 100 < self.percent, np.nan, sums / images_NHWC[0].size / 255)
"""


def test_a_pool_that_cannot_be_placed_is_said_in_a_sentence(recipe, tempflow, ray_head):
    done = tempflow("train", recipe, "scorers.0.num_cpus=99", "ray.start_timeout_s=30", address=ray_head.address)
    assert done.returncode == 2, done.stderr
    assert "the reward pool has not started (scorer-size: " in done.stderr
    assert "lower the scorers' num_cpus" in done.stderr
    assert "Traceback" not in done.stderr


def test_failed_scores_are_holes_and_too_many_stop_the_run(recipe, tempflow, ray_head, tmp_path):
    (tmp_path / "broken.py").write_text(BROKEN_SCORERS)
    environment_path = os.pathsep.join([str(ROOT), str(tmp_path)])

    def train(*arguments):
        command = [sys.executable, "-m", "system", "train", str(recipe), *arguments]
        env = environment(ray_head.address) | {"PYTHONPATH": environment_path}
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=RUN_TIMEOUT_S)

    raises = train("name=raises", "scorers.0.scorer=broken:Raises", "scorers.0.attempts=1")
    assert raises.returncode == 2, raises.stderr
    assert "scorer `size`: OSError: the model file is gone" in raises.stderr
    assert "Traceback" not in raises.stderr

    some = ("scorers.0.scorer=broken:SomeNaN", "reward.max_hole_share=0.7")
    everything = train("name=everything", *some, "scorers.0.options={percent: 100}", "data.heldout=null")
    assert everything.returncode == 2, everything.stderr
    assert "54 of 54 images have no reward" in everything.stderr

    for percent in (1, 50):
        holes = train(f"name=nan{percent}", *some, f"scorers.0.options.percent={percent}")
        assert holes.returncode == 0, holes.stderr
        run = tmp_path / "runs" / f"nan{percent}"
        tables = [pq.read_table(file).to_pydict() for file in sorted((run / "experience").iterdir())]
        pairs = [pair for table in tables for pair in zip(table["advantage"], table["reward"], strict=True)]
        without = [advantage for advantage, reward in pairs if reward != reward]
        assert without
        assert abs(len(without) / len(pairs) - percent / 100) < 0.1
        assert sum(line["holes"] for line in metrics(run)[1:]) == len(without)
        assert not any(without)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["policy.model=./nowhere"], "policy.model"),
        (["data.train=gone.parquet"], "no prompt file"),
        (["data.prompt_column=text", "data.train={parquet}"], "no column `text`"),
        (["data.train={broken}"], "not a readable Parquet"),
        (["policy.num_steps=1"], "policy.num_steps"),
        (["plan.explorations=1"], "at least 2"),
        (["learner.lrr=1"], "did you mean `lr`?"),
        (["steps=many"], "`steps` = 'many'"),
        (["scorers.0.scorer=pickscorer"], "neither built in"),
        (["scorers.0.scorer=nowhere:Scorer"], "check the import path"),
        (["scorers.0.options={speed: 3}"], "options"),
        (["data.prompts_per_step=13"], "only 12 prompts"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_2_before_anything_starts(
    recipe, in_process, tmp_path, overrides, message
):
    import pyarrow as pa

    good, broken = tmp_path / "good.parquet", tmp_path / "broken.parquet"
    pq.write_table(pa.table({"prompt": ["a", "b"]}), good)
    broken.write_bytes(b"PAR1 is not enough")
    overrides = [
        text.format(parquet=good, broken=broken) if "{p" in text or "{b" in text else text for text in overrides
    ]
    done = in_process("train", recipe, *overrides, "name=never")
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()
