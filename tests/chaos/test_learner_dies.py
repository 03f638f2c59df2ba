"""SIGKILL for the learner, or one of its ranks, while a run goes on: the weights are those of an undisturbed run."""

import os
import random
import signal
import subprocess
import sys
import time

import psutil
import pytest

from tests.integration.conftest import RUN_TIMEOUT_S, environment
from tests.integration.test_training import adapter, figures, metrics

STEPS = 8
SPLIT: list[str] = []
RANKS, COLOCATED = ["learner.ranks=2"], ["learner.ranks=2", "placement=colocated"]
STALE = ["learner.max_staleness=2"]


def learners(head: int) -> list[psutil.Process]:
    """Processes that hold a rank."""
    found = []
    for process in psutil.Process(head).children(recursive=True):
        try:
            title = " ".join(process.cmdline())
        except psutil.NoSuchProcess:
            continue
        if "ray::LearnerWorker" in title or "ray::ColocatedWorker" in title:
            found.append(process)
    return found


@pytest.mark.parametrize(
    ("overrides", "seed"),
    [
        (RANKS, 0),
        *(
            pytest.param(overrides, seed, marks=pytest.mark.chaos)
            for overrides in (SPLIT, COLOCATED, STALE)
            for seed in (0, 1)
        ),
        *(pytest.param(RANKS, seed, marks=pytest.mark.chaos) for seed in range(1, 6)),
    ],
)
def test_a_killed_rank_costs_time_and_nothing_else(recipe, tempflow, ray_head, tmp_path, overrides, seed):
    overrides = [f"steps={STEPS}", f"eval.every={STEPS}", *overrides]
    whole = tempflow("train", recipe, "name=whole", *overrides, address=ray_head.address)
    assert whole.returncode == 0, whole.stderr

    chance = random.Random(seed)
    run = tmp_path / "runs" / "killed"
    process = subprocess.Popen(
        [sys.executable, "-m", "system", "train", str(recipe), "name=killed", *overrides],
        cwd=tmp_path,
        env=environment(ray_head.address),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + RUN_TIMEOUT_S
    first_step = chance.randrange(1, STEPS - 3)
    while not (run / "metrics.jsonl").exists() or len(metrics(run)) < 1 + first_step:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(chance.uniform(0, metrics(run)[-1].get("seconds/step", 0.1)))
    os.kill(chance.choice(learners(ray_head.pid)).pid, signal.SIGKILL)
    output, _ = process.communicate(timeout=RUN_TIMEOUT_S)
    assert process.returncode == 0, output

    assert adapter(run, STEPS) == adapter(tmp_path / "runs" / "whole", STEPS)
    assert [line["step"] for line in metrics(run)] == list(range(STEPS + 1))
    assert metrics(run)[-1]["learner_restarts"] == 1
    same = ("learner_restarts", "workers_replaced")
    for ours, theirs in zip(figures(run), figures(tmp_path / "runs" / "whole"), strict=True):
        assert {k: v for k, v in ours.items() if k not in same} == {k: v for k, v in theirs.items() if k not in same}
    assert not learners(ray_head.pid)
