"""Counts the pods that the roles of a recipe need."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from services.base.errors import UserError
from services.scoring.settings import ScorerSettings
from system.capacity.cards import TINY
from system.capacity.packing import Ask, Node, no_place, pack
from system.manifests.infra import Infra, Nodes
from system.recipe.model import RunConfig


@dataclass(frozen=True)
class WorkerGroup:
    """The pods of a role, a worker group of KubeRay: their kind, and the least and the greatest number."""

    nodes: Nodes
    min: int
    max: int


def job_groups(config: RunConfig, infra: Infra) -> dict[str, WorkerGroup]:
    """The groups of pods in the job's cluster, by role: `rollout`, and `learner` if it has its own nodes.

    Args:
        config: the recipe of the job (`job_recipe`), with the scorers that run there.

    Raises:
        UserError: an actor is too large for a pod, or Ray does not place the roles on the pods.
    """
    bounds = []
    for most in (False, True):
        asked = workers(config, most) + replicas(config.scorers, most)
        bounds.append(pods(asked if infra.learner else asked + ranks(config), infra.workers))
    nodes = [infra.workers.gpus] * bounds[0]
    if not infra.learner and (ask := unplaced(config, nodes)):
        raise UserError(f"{no_place(ask, sum(nodes))}; set num_gpus of workers and ranks to 1, 0.9 or 0.5")
    groups = {"rollout": WorkerGroup(infra.workers, *bounds)}
    if infra.learner:
        count = pods(ranks(config), infra.learner)
        groups["learner"] = WorkerGroup(infra.learner, count, count)
    return groups


def asked(config: RunConfig) -> tuple[list[Ask], list[Ask]]:
    """What each process asks for as the run begins: those of the placement group in its order, and the replicas of
    scorers, without those of a shared pool.
    """
    first, then = workers(config, most=False), ranks(config)
    if config.placement == "colocated":
        first, then = then, first
    own = () if config.reward.app else config.scorers
    return first + then, replicas(own, most=False)


def unplaced(config: RunConfig, nodes: list[int]) -> Ask | None:
    """The first process that Ray cannot place as the run begins; None if it can place all.

    Args:
        nodes: the GPUs of each node.
    """
    return pack(*asked(config), nodes).unplaced


def workers(config: RunConfig, most: bool) -> list[Ask]:
    """The rollout workers that are not colocated: the greatest number of them, or the least."""
    rollout = config.rollout
    count = rollout.most_workers if most else rollout.workers
    if config.placement == "colocated":
        count -= config.learner.ranks
    return [Ask("a rollout worker", rollout.num_cpus, rollout.num_gpus)] * count


def ranks(config: RunConfig) -> list[Ask]:
    """The learner's ranks. A colocated rank includes a rollout worker."""
    rollout, learner = config.rollout, config.learner
    ask = Ask("a learner rank", learner.num_cpus, learner.num_gpus)
    if config.placement == "colocated":
        ask = Ask("a colocated rank", max(rollout.num_cpus, ask.cpus), max(rollout.num_gpus, ask.gpus))
    return [ask] * learner.ranks


def replicas(scorers: Iterable[ScorerSettings], most: bool) -> list[Ask]:
    """The replicas of all scorers: the greatest number of them, or the least."""
    return [
        Ask(f"a replica of scorer `{scorer.name}`", scorer.num_cpus, scorer.num_gpus)
        for scorer in scorers
        for _ in range(scorer.replicas.max if most else scorer.replicas.min)
    ]


def pods(asks: Iterable[Ask], nodes: Nodes) -> int:
    """The number of pods for all actors, by first fit with the largest actor first.

    A fraction of a GPU is a share of one device.

    Raises:
        UserError: an actor is too large for a pod.
    """
    free: list[_Pod] = []
    for ask in sorted(asks, key=lambda ask: (ask.gpus, ask.cpus), reverse=True):
        if ask.cpus > nodes.cpus or ask.gpus > nodes.gpus:
            raise UserError(
                f"{ask.role} asks for {ask.cpus:g} CPUs and {ask.gpus:g} GPUs, but a node has {nodes.cpus} and "
                f"{nodes.gpus}; give larger nodes in the infrastructure file, or lower num_cpus or num_gpus"
            )
        if not any(pod.take(ask) for pod in free):
            free.append(_Pod(float(nodes.cpus), Node(nodes.gpus)))
            free[-1].take(ask)
    return max(1, len(free))


@dataclass
class _Pod:
    """The free CPUs of a pod, and its GPUs."""

    cpus: float
    node: Node

    def take(self, ask: Ask) -> bool:
        """Reserve resources for an actor. Returns whether there were enough."""
        if ask.cpus > self.cpus + TINY or not self.node.take(ask.role, ask.gpus):
            return False
        self.cpus -= ask.cpus
        return True
