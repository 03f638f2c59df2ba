"""Places the rollout workers and the ranks of the learner in one placement group per run."""

from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from services.base.errors import UserError
from system.launch.pool_start import may_grow
from system.recipe.model import RunConfig

FIXED_TIMEOUT_S = 30
"""Seconds to wait for a place on a cluster that cannot grow."""


@dataclass(frozen=True)
class Resources:
    """The resources that a process asks Ray for."""

    num_cpus: float
    num_gpus: float
    labels: dict[str, str]
    """Labels that the process's node must have."""

    def bundle(self) -> dict[str, float]:
        asked = {"CPU": self.num_cpus, "GPU": self.num_gpus}
        return {kind: count for kind, count in asked.items() if count} or {"CPU": 0.001}


def rollout_resources(config: RunConfig) -> Resources:
    return Resources(config.rollout.num_cpus, config.rollout.num_gpus, config.rollout.labels)


def rank_resources(config: RunConfig) -> Resources:
    """The resources of a learner rank. A colocated rank has both roles in turns, so it asks for the larger amounts."""
    rollout, learner = config.rollout, config.learner
    if config.placement == "split":
        return Resources(learner.num_cpus, learner.num_gpus, learner.labels)
    return Resources(
        max(rollout.num_cpus, learner.num_cpus), max(rollout.num_gpus, learner.num_gpus), config.rollout.labels
    )


class Placement:
    """The reserved places of a run.

    Args:
        learns: whether there is a learner. Without one, all places are for rollout workers.
    """

    def __init__(self, config: RunConfig, learns: bool) -> None:
        self.config = config
        ranks, workers = config.learner.ranks if learns else 0, config.rollout.workers
        self.colocated = learns and config.placement == "colocated"
        own_workers = workers - ranks if self.colocated else workers
        rollout = [rollout_resources(config)] * own_workers
        learner = [rank_resources(config)] * ranks
        # The first places belong to workers 0, 1, …. A colocated rank is a worker and a rank at once.
        self.places = [*learner, *rollout] if self.colocated else [*rollout, *learner]
        self._group: PlacementGroup | None = None

    def reserve(self) -> None:
        """Reserve the places before the pool's replicas spread over the cluster.

        Raises:
            UserError: the cluster has no room for the places.
        """
        config, bundles = self.config, [place.bundle() for place in self.places]
        labels = [place.labels for place in self.places]
        self._group = placement_group(bundles, strategy="PACK", bundle_label_selector=labels)
        try:
            ray.get(self._group.ready(), timeout=config.ray.start_timeout_s if may_grow() else FIXED_TIMEOUT_S)
        except GetTimeoutError as error:
            cpus, gpus = (sum(bundle.get(kind, 0) for bundle in bundles) for kind in ("CPU", "GPU"))
            free = ray.available_resources()
            raise UserError(
                f"the Ray cluster cannot place {config.rollout.workers} rollout workers and the learner's "
                f"{config.learner.ranks} ranks: they ask for {cpus:g} CPUs and {gpus:g} GPUs, "
                f"{free.get('CPU', 0):g} and {free.get('GPU', 0):g} are free; lower rollout.workers, rollout.num_cpus "
                "or learner.num_cpus, or use a larger cluster"
            ) from error

    def worker(self, kind: type, slot: int) -> Any:
        """An actor class for the rollout worker of a slot. Without a reserved place, Ray finds a node with room.

        `rank` places colocated workers.
        """
        asks = rollout_resources(self.config)
        return self._actor(kind, asks, slot if slot < self.config.rollout.workers else None)

    def rank(self, kind: type, rank: int) -> Any:
        """An actor class for a rank of the learner."""
        place = rank if self.colocated else self.config.rollout.workers + rank
        return self._actor(kind, rank_resources(self.config), place)

    def release(self) -> None:
        """Give the places back."""
        if self._group is not None:
            remove_placement_group(self._group)

    def _actor(self, kind: type, asks: Resources, place: int | None) -> Any:
        assert self._group is not None
        where: dict[str, Any] = {"label_selector": asks.labels}
        if place is not None:
            where = {"scheduling_strategy": PlacementGroupSchedulingStrategy(self._group, place)}
        return ray.remote(kind).options(num_cpus=asks.num_cpus, num_gpus=asks.num_gpus, **where)
