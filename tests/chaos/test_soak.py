"""Two thousand steps with a random kill every half minute or so: nothing piles up, and nothing is left."""

import json
import random
import subprocess
import sys
import time

import psutil
import pytest

from tests.chaos.runs import Run, family
from tests.integration.conftest import environment
from tests.integration.test_training import metrics, wait_for_steps

STEPS, EVAL_EVERY = 2000, 200
MOST_S = 3600
KILL_S = (15, 45)
VICTIMS = ("ray::RolloutWorker", "scorer-size", "ray::LearnerWorker")
MAY_GROW_MB, MAY_GROW_FILES = 40, 20

CENSUS = """
import json
import ray
ray.init(log_to_driver=False)
alive = [actor for actor in ray._private.state.actors().values() if actor["State"] != "DEAD"]
groups = [group for group in ray.util.placement_group_table().values() if group["state"] != "REMOVED"]
total, free = ray.cluster_resources(), ray.available_resources()
used = total["object_store_memory"] - free.get("object_store_memory", 0)
print(json.dumps({"actors": len(alive), "groups": len(groups), "store_mb": used / 1e6}))
"""


def census(address: str) -> dict[str, float]:
    """What a cluster holds: actors, placement groups, MB of objects."""
    asked = [sys.executable, "-c", CENSUS]
    done = subprocess.run(asked, env=environment(address), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.chaos
@pytest.mark.slow
def test_a_soak_with_random_kills_leaks_nothing(recipe, ray_head, tmp_path):
    overrides = [f"steps={STEPS}", f"eval.every={EVAL_EVERY}", "checkpoint.every=5", "rollout.task_timeout_s=20"]
    before = census(ray_head.address)
    run = Run(recipe, "soak", overrides, ray_head.address)
    run.start()
    wait_for_steps(run.process, run.path, 5)
    driver, chance, kills = psutil.Process(run.process.pid), random.Random(0), dict.fromkeys(VICTIMS, 0)
    seen: list[tuple[int, float, int]] = []
    """Steps done, MB of the driver, its open files."""
    while run.process.poll() is None and time.monotonic() - run.started < MOST_S:
        time.sleep(chance.uniform(*KILL_S))
        kind = chance.choice(VICTIMS)
        if run.process.poll() is None and (found := family(ray_head.pid, kind)):
            chance.choice(found).kill()
            kills[kind] += 1
            seen.append((len(metrics(run.path)), driver.memory_info().rss / 1e6, driver.num_fds()))
    if run.process.poll() is None:
        run.process.terminate()
    output, _ = run.process.communicate(timeout=120)
    assert run.process.returncode in (0, 130), output

    lines = metrics(run.path)
    assert [line["step"] for line in lines] == list(range(len(lines)))
    assert sum(line.get("holes", 0) for line in lines) == 0
    assert all(kills.values()), kills
    quarter = len(seen) // 4
    early, late = seen[quarter : 2 * quarter], seen[-quarter:]
    print(f"{len(lines) - 1} steps, {time.monotonic() - run.started:.0f} s, kills {kills}")
    print("MB, files of the driver:", [(step, round(mb), files) for step, mb, files in seen[:: max(1, quarter // 2)]])
    assert min(mb for _, mb, _ in late) < min(mb for _, mb, _ in early) + MAY_GROW_MB
    assert min(files for *_, files in late) < min(files for *_, files in early) + MAY_GROW_FILES

    assert not family(ray_head.pid, *VICTIMS)
    after = census(ray_head.address)
    assert after["groups"] == before["groups"]
    assert after["store_mb"] < before["store_mb"] + 1
    assert len(list((run.path / "checkpoints").iterdir())) <= 4
    assert not list(run.path.rglob("*.tmp"))
