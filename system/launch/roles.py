"""The roles of a run on Ray: starts, restarts and ends the rollout workers, the learner and the reward pool."""

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import ray
from ray.actor import ActorHandle

from actors.colocated import ColocatedWorker
from actors.learner.actor import LearnerWorker
from actors.learner.remote import RemoteLearner
from actors.lost import LearnerLate, LearnerLost
from actors.reward.pool import RewardPool
from actors.rollout.actor import RolloutWorker
from actors.rollout.fleet import Fleet
from actors.rollout.sampling import image_bytes
from services.base.errors import UserError
from services.base.logs import LogFile
from system.capacity.in_flight import bytes_in_flight
from system.launch.cluster import warn_of_idle_gpus
from system.launch.placement import Placement
from system.launch.pool import ServedPool
from system.recipe.model import RunConfig

log = logging.getLogger(__name__)

MAX_STARTS = 3
"""How often the learner may be started. If it dies in the last of these starts, the run ends."""


class RayRoles:
    """The live roles of one run on Ray (`system.loop.roles.Roles`). Use as a context manager.

    Args:
        trainable: the sampling steps that the plan may train.
        logs: the folder for a log file of each process.
        learns: whether there is a learner; False for an evaluation.
    """

    rollouts: Fleet
    rewards: RewardPool
    learners: RemoteLearner

    def __init__(self, config: RunConfig, trainable: list[int], logs: Path, learns: bool = True) -> None:
        self.config, self.trainable, self.logs, self.learns = config, trainable, logs, learns
        self.placement = Placement(config, learns)
        self._ends = ExitStack()
        """Ends everything that was started, in reverse order."""

    def __enter__(self) -> "RayRoles":
        try:
            self._start()
        except BaseException:
            self._ends.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End everything that this run started, and nothing else. If one part fails to end, the others still do."""
        self._ends.close()

    def _start(self) -> None:
        self._ends.callback(self.placement.release)
        self._reserve()
        if self.learns:
            self.learners = RemoteLearner(
                self._start_rank, self.config.learner, self.config.ray.start_timeout_s, self._restarted
            )
            self._ends.callback(self.learners.close)
        self.rollouts = self._start_fleet()
        self._ends.callback(self.rollouts.close)
        pool = ServedPool(self.config, self.logs)
        self._ends.callback(pool.delete)
        self.rewards = pool.start()
        self._ends.callback(self.rewards.close)
        if self.learns:
            start_learner(self.learners, self.config.ray.start_timeout_s)
        self.rollouts.wait_ready(self.config.ray.start_timeout_s)

    def _reserve(self) -> None:
        self.placement.reserve()
        config = self.config
        warn_of_idle_gpus(gpus_asked(config, self.learns), () if config.reward.app else config.scorers)

    def _start_fleet(self) -> Fleet:
        rollout = self.config.rollout
        return Fleet(
            self._start_worker,
            rollout.workers,
            rollout.task_timeout_s,
            image_bytes=image_bytes(self.config.policy),
            bytes_in_flight=bytes_in_flight(self.config),
            alive=dict(enumerate(self.learners.workers)) if self.placement.colocated else None,
            more=rollout.most_workers - rollout.workers,
            start_timeout_s=self.config.ray.start_timeout_s,
            look=no_nodes if self.placement.colocated else draining_nodes,
        )

    def _restarted(self, ranks: list[ActorHandle]) -> None:
        """Handle new ranks of the learner. Colocated ranks are also the rollout workers of the first slots."""
        if self.placement.colocated:
            self.rollouts.adopt(dict(enumerate(ranks)))

    def _start_rank(self, rank: int) -> ActorHandle:
        config = self.config
        arguments = (config.policy, config.kernel, config.objective, config.learner, self.trainable, config.seed)
        if self.placement.colocated:
            log_file = self._log_file(f"rollout-{rank}", "colocated", rank=rank)
            worker = self.placement.rank(ColocatedWorker, rank)
            return worker.remote(*arguments, log_file, rank, config.deterministic, rollout=config.rollout)
        log_file = self._log_file(f"learner-{rank}", "learner", rank=rank)
        worker = self.placement.rank(LearnerWorker, rank)
        return worker.remote(*arguments, log_file, rank, config.deterministic)

    def _start_worker(self, slot: int) -> ActorHandle:
        """Start a worker for a slot.

        Raises:
            LearnerLost: the slot's worker died, and it was also a learner rank. All ranks must start together.
        """
        config = self.config
        if self.placement.colocated and slot < config.learner.ranks:
            raise LearnerLost(f"the process of rollout worker {slot}, which is also learner rank {slot}, died")
        log_file = self._log_file(f"rollout-{slot}", "rollout", slot=slot)
        worker = self.placement.worker(RolloutWorker, slot)
        arguments = (config.policy, config.kernel, config.rollout, config.seed, log_file, config.deterministic)
        return worker.remote(*arguments, keeps_base=not self.learns)

    def _log_file(self, name: str, role: str, **more: int) -> LogFile:
        return LogFile(self.logs / f"{name}.log", self.config.name, role, more)


def start_learner(learners: RemoteLearner, timeout_s: float) -> None:
    """Wait until all ranks have loaded the model and are connected. If one dies before that, all start again.

    Raises:
        UserError: a rank refuses to start, the ranks died for the third time, or they are late.
    """
    start: Callable[[], None] = partial(learners.join, timeout_s)
    for deaths in range(1, MAX_STARTS + 1):
        try:
            start()
            break
        except LearnerLate as late:
            raise UserError(
                f"the learner has not started within {timeout_s:g} s; see its log (logs/learner-*.log), and raise "
                "ray.start_timeout_s if the model takes longer to load"
            ) from late
        except LearnerLost as lost:
            if deaths == MAX_STARTS:
                raise UserError(
                    f"the learner died {deaths} times as it started: {lost}; see its log (logs/learner-*.log)"
                ) from lost
            log.warning("the learner died as it started, and starts again: %s", lost)
            start = learners.restart


def gpus_asked(config: RunConfig, learns: bool) -> Mapping[str, float]:
    """The number of GPUs that each role asks for, by the role's name."""
    rollout, learner = config.rollout.num_gpus, config.learner.num_gpus
    if not learns:
        return {"rollout": rollout}
    if config.placement == "split":
        return {"rollout": rollout, "learner": learner}
    asked = {"colocated ranks": max(rollout, learner)}
    if config.rollout.most_workers > config.learner.ranks:
        asked["further rollout workers"] = rollout
    return asked


def draining_nodes() -> list[str]:
    """The ids of the nodes that are being drained. Ray (2.60) has no public interface for this.

    Raises:
        SystemExit: Ray raises it if the driver's own node is lost.
    """
    return list(ray._private.state.state.get_draining_nodes())


def no_nodes() -> list[str]:
    """Replaces `draining_nodes` in a colocated run: a worker that is also a learner rank does not leave its node.

    Raises:
        SystemExit: as `draining_nodes` raises.
    """
    draining_nodes()
    return []
