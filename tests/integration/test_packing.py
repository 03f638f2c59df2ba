"""The packing of processes on GPUs is what Ray does."""

import pytest
import ray
from ray.exceptions import GetTimeoutError
from ray.util.placement_group import placement_group, remove_placement_group

from system.capacity.packing import Ask, pack

pytestmark = pytest.mark.slow
WAIT_S = 30
"""For a group that has a place; it gets it within a second."""


@pytest.fixture
def ray_with_gpus(monkeypatch):
    """A Ray that takes itself to have 4 GPUs."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ray.init(address="local", num_cpus=1, num_gpus=4, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def test_ray_places_the_groups_that_the_packing_places(ray_with_gpus):
    groups = ([0.75] * 4, [0.75] * 5, [0.6, 0.6, 0.4, 0.4, 1, 1], [0.4, 0.4, 0.6, 0.6, 1, 1], [2, 1, 0.5, 0.5])
    expected = [pack([Ask("worker", 0, gpus) for gpus in group], [], [4]).unplaced is None for group in groups]
    assert expected == [True, False, True, False, True]
    assert [is_placed(group) for group in groups] == expected


def is_placed(group: list[float]) -> bool:
    places = placement_group([{"GPU": gpus} for gpus in group], strategy="PACK")
    try:
        ray.get(places.ready(), timeout=WAIT_S)
    except GetTimeoutError:
        return False
    finally:
        remove_placement_group(places)
    return True
