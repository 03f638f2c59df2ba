"""Two thousand steps, or an hour, with a random kill every half minute or so: nothing piles up, and nothing is left."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from tests.helpers.command_line import environment
from tests.helpers.disturbed_runs import Run
from tests.helpers.processes import family
from tests.helpers.run_folders import metrics

STEPS, EVAL_EVERY = 2000, 200
MOST_S = 3600
KILL_S = (15, 45)
LEARNER = "ray::LearnerWorker"
VICTIMS = ("ray::RolloutWorker", "scorer-size", LEARNER)
ROLES = (*VICTIMS, "ray::ServeController")
MAY_GROW_MB, MAY_GROW_FILES = 40, 20

CENSUS = """
import json
from system.launch.environment import listen_on_loopback
listen_on_loopback()
import ray
ray.init(log_to_driver=False)
alive = [actor for actor in ray._private.state.actors().values() if actor["State"] != "DEAD"]
ours = [actor for actor in alive if not actor["ActorClassName"].startswith(("ServeController", "ProxyActor"))]
groups = [group for group in ray.util.placement_group_table().values() if group["state"] != "REMOVED"]
total, free = ray.cluster_resources(), ray.available_resources()
used = total["object_store_memory"] - free.get("object_store_memory", 0)
print(json.dumps({"actors": len(ours), "groups": len(groups), "store_mb": used / 1e6}))
"""


def census(address: str) -> dict[str, float]:
    """What a cluster holds: actors other than Serve's own, placement groups, MB of objects."""
    asked = [sys.executable, "-c", CENSUS]
    done = subprocess.run(asked, env=environment(address), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def newest_checkpoint(run: Path) -> str:
    return max((str(manifest) for manifest in run.glob("checkpoints/*/manifest.json")), default="")


class Seen(NamedTuple):
    """Of the run, right before a kill."""

    step: int
    driver_mb: float
    roles_mb: float
    files: int
    """The driver's open ones."""


def memory_mb(process: psutil.Process) -> float:
    try:
        return process.memory_info().rss / 1e6
    except psutil.NoSuchProcess:
        return 0.0


@pytest.mark.chaos
@pytest.mark.slow
def test_a_soak_with_random_kills_leaks_nothing(recipe, ray_head, request):
    """The learner is spared until there is a checkpoint since its last death: three deaths without one end a run."""
    overrides = [f"steps={STEPS}", f"eval.every={EVAL_EVERY}", "checkpoint.every=5", "rollout.task_timeout_s=20"]
    before = census(ray_head.address)
    run = Run(recipe, "soak", overrides, ray_head.address)
    run.start()
    request.addfinalizer(run.end)
    run.wait_for_steps(5)
    driver, chance, kills = psutil.Process(run.process.pid), random.Random(0), dict.fromkeys(VICTIMS, 0)
    seen: list[Seen] = []
    restored = ""
    while run.process.poll() is None and time.monotonic() - run.started < MOST_S:
        time.sleep(chance.uniform(*KILL_S))
        newest = newest_checkpoint(run.path)
        kind = chance.choice(VICTIMS if newest != restored else VICTIMS[:-1])
        if run.process.poll() is None and (found := family(ray_head.pid, kind)):
            try:
                files, driver_mb = driver.num_fds(), driver.memory_info().rss / 1e6
            except psutil.NoSuchProcess:
                break
            roles_mb = sum(map(memory_mb, family(ray_head.pid, *ROLES)))
            seen.append(Seen(metrics(run.path)[-1]["step"], driver_mb, roles_mb, files))
            chance.choice(found).kill()
            kills[kind] += 1
            restored = newest if kind == LEARNER else restored
    if run.process.poll() is None:
        run.process.terminate()
    took_s = time.monotonic() - run.started
    assert run.process.wait(120) in (0, 130), run.output.read_text()

    lines = metrics(run.path)
    print(f"{len(lines) - 1} steps, {took_s:.0f} s, kills {kills}")
    print(*seen[:: max(1, len(seen) // 12)], sep="\n")
    assert [line["step"] for line in lines] == list(range(len(lines)))
    assert len(lines) == STEPS + 1 or took_s >= MOST_S
    assert sum(line.get("holes", 0) for line in lines) == 0
    assert all(kills.values()), kills
    quarter = len(seen) // 4
    early, late = seen[quarter : 2 * quarter], seen[-quarter:]
    for column, may_grow in (("driver_mb", MAY_GROW_MB), ("roles_mb", 4 * MAY_GROW_MB), ("files", MAY_GROW_FILES)):
        least = [min(getattr(row, column) for row in part) for part in (early, late)]
        assert least[1] < least[0] + may_grow, column

    assert not family(ray_head.pid, *VICTIMS)
    after = census(ray_head.address)
    assert (after["actors"], after["groups"]) == (before["actors"], before["groups"])
    assert after["store_mb"] < before["store_mb"] + 1
    assert len(list((run.path / "checkpoints").glob("step_*"))) <= 4
    assert not list(run.path.rglob("*.tmp"))
