"""Starting the roles on Ray: attach or start, reserve, place, clean up."""

import logging
import signal
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.colocated import ColocatedWorker
from actors.learner.actor import LearnerWorker
from actors.learner.group import LearnerGroup, LearnerLate, LearnerLost
from actors.reward.pool import RewardPool
from actors.rollout.actor import RolloutWorker
from actors.rollout.fleet import Fleet
from services.base.errors import UserError, first_line
from services.base.logs import LogFile
from services.scoring.remote import wait_for_pool
from services.scoring.scorer import uses_gpu
from services.scoring.settings import ScorerSettings
from services.serving.app import build_app
from services.serving.gateway import deployment_name
from services.serving.settings import GatewaySettings
from system.launch.environment import LOOPBACK, check_start, make_token, running_ray
from system.launch.pool_start import PoolStart, may_grow
from system.loop.stop import Stopped
from system.recipe.model import RunConfig

log = logging.getLogger(__name__)

STOP_TIMEOUT_S = 30
MAX_STARTS = 3
"""Times that the learner may die as it starts."""
APP_FILE = "serve_app"


@dataclass(frozen=True)
class Connection:
    """A driver's tie to a Ray cluster."""

    dashboard: str | None
    started_here: bool


def connect() -> Connection:
    """Attach to the Ray cluster that is there for us (`running_ray`), or start one that listens on loopback only.

    Who handles SIGTERM keeps it: Ray takes it as it starts, and ends the process with an abort. The processes of a Ray
    that starts here ignore SIGHUP, which a closed terminal sends to all of them: the driver stops, and they with it.

    Raises:
        UserError: no Ray can be started here, or the one that is named does not answer.
        Stopped: by SIGTERM, while Ray started.
    """
    check_start()
    if running_ray() is None:
        make_token()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        return _connect()
    except SystemExit as ended:
        raise Stopped("SIGTERM") from ended
    finally:
        for number, handler in handlers.items():
            if handler is not None:
                signal.signal(number, handler)


def _connect() -> Connection:
    address = running_ray()
    if address is not None:
        try:
            context = ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
        except ConnectionError as error:
            raise UserError(
                f"cannot attach to the Ray cluster at {address}: check RAY_ADDRESS; if the cluster asks for a token, "
                "set RAY_AUTH_MODE=token with RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
            ) from error
        return Connection(context.dashboard_url, False)
    context = ray.init(
        address="local",
        include_dashboard=True,
        dashboard_host=LOOPBACK,
        log_to_driver=False,
        logging_level=logging.WARNING,
    )
    return Connection(context.dashboard_url, True)


def warn_of_idle_gpus(asked: Mapping[str, float], scorers: Sequence[ScorerSettings]) -> None:
    """Say which of these run on the CPU although the cluster has GPUs: those that ask for none.

    Args:
        asked: GPUs that each role asks for.
        scorers: of a pool; only those count that could use a GPU.
    """
    gpus = ray.cluster_resources().get("GPU", 0)
    asked = {**asked, **{f"scorer {s.name}": s.num_gpus for s in scorers if uses_gpu(s)}}
    without = [role for role, share in asked.items() if not share]
    if gpus and without:
        said = "on the CPU: %s; the cluster has %g GPUs, and a role gets one by its num_gpus"
        log.warning(said, ", ".join(without), gpus)


class Roles:
    """The live roles of one run: rollout workers, learner, reward pool. Use as a context manager.

    Args:
        config: the run.
        trainable: the sampling steps that the plan may train.
        logs: folder of a log file a process.
        with_learner: False for evaluation alone.
    """

    fleet: Fleet
    learner: LearnerGroup
    pool: RewardPool

    def __init__(self, config: RunConfig, trainable: list[int], logs: Path, with_learner: bool = True) -> None:
        self.config, self.trainable, self.logs, self.with_learner = config, trainable, logs, with_learner
        self.app = f"tempflow-{config.name}-{uuid.uuid4().hex[:8]}"
        self.colocated = with_learner and config.placement == "colocated"
        self.group: PlacementGroup | None = None

    def __enter__(self) -> "Roles":
        try:
            self._reserve()
            self._warn_of_idle_gpus()
            self._start_policy_roles()
            self._start_pool()
            if self.with_learner:
                self._wait_for_learner()
            self.fleet.wait_ready(self.config.ray.start_timeout_s)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stop what this run started, and nothing else on the cluster; each thing, whatever becomes of the others."""
        with ExitStack() as last_first:
            if self.group is not None:
                last_first.callback(remove_placement_group, self.group)
            if hasattr(self, "learner"):
                last_first.callback(self.learner.close)
            if hasattr(self, "fleet"):
                last_first.callback(self.fleet.close)
            if hasattr(self, "app_started"):
                last_first.callback(self._delete_app)
            if hasattr(self, "pool"):
                last_first.callback(self.pool.close)

    def _delete_app(self) -> None:
        try:
            serve.delete(self.app)
        except TimeoutError as error:
            log.warning("the reward pool %s has not ended yet: %s", self.app, first_line(error))

    def _reserve(self) -> None:
        """Take the placement group of rollout and learner before the pool's replicas spread over the cluster."""
        rollout, learner = self.config.rollout, self.config.learner
        bundles = [{"CPU": rollout.num_cpus, "GPU": rollout.num_gpus}] * rollout.workers
        learns = {"CPU": learner.num_cpus, "GPU": learner.num_gpus}
        if self.colocated:
            both = {kind: max(count, learns[kind]) for kind, count in bundles[0].items()}
            bundles[: learner.ranks] = [both] * learner.ranks
        elif self.with_learner:
            bundles += [learns] * learner.ranks
        labels = [rollout.labels] * rollout.workers + [learner.labels] * (len(bundles) - rollout.workers)
        bundles = [{kind: count for kind, count in bundle.items() if count} or {"CPU": 0.001} for bundle in bundles]
        self.group = placement_group(bundles, strategy="PACK", bundle_label_selector=labels)
        try:
            ray.get(self.group.ready(), timeout=self.config.ray.start_timeout_s if may_grow() else STOP_TIMEOUT_S)
        except GetTimeoutError as error:
            asked = {kind: sum(bundle.get(kind, 0) for bundle in bundles) for kind in ("CPU", "GPU")}
            free = ray.available_resources()
            raise UserError(
                f"the Ray cluster cannot place {rollout.workers} rollout workers and the learner's {learner.ranks} "
                f"ranks: they ask for {asked['CPU']:g} CPUs and {asked['GPU']:g} GPUs, {free.get('CPU', 0):g} and "
                f"{free.get('GPU', 0):g} are free; lower rollout.workers, rollout.num_cpus or learner.num_cpus, or use "
                "a larger cluster"
            ) from error

    def _warn_of_idle_gpus(self) -> None:
        """Say which roles run on the CPU although the cluster has GPUs."""
        config, rollout, learner = self.config, self.config.rollout.num_gpus, self.config.learner.num_gpus
        asked = {"rollout": rollout, "learner": learner}
        if self.colocated:
            asked = {"colocated ranks": max(rollout, learner)}
            if config.rollout.most_workers > config.learner.ranks:
                asked["further rollout workers"] = rollout
        elif not self.with_learner:
            del asked["learner"]
        warn_of_idle_gpus(asked, () if config.reward.app else config.scorers)

    def _start_policy_roles(self) -> None:
        rollout = self.config.rollout
        if self.with_learner:
            self.learner = LearnerGroup(self._start_rank, self.config.learner)
        self.fleet = Fleet(
            self._start_worker,
            rollout.workers,
            rollout.task_timeout_s,
            more=rollout.most_workers - rollout.workers,
            start_timeout_s=self.config.ray.start_timeout_s,
            draining=None if self.colocated else ray._private.state.state.get_draining_nodes,
        )

    def _wait_for_learner(self) -> None:
        """Until all ranks have loaded the model and met; they start again if one dies on the way.

        Raises:
            UserError: a rank refuses, they died for the third time, or they are late.
        """
        timeout_s = self.config.ray.start_timeout_s
        start: Callable[[], None] = partial(self.learner.join, timeout_s)
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
                    raise UserError(f"the learner died {deaths} times as it started: {lost}") from lost
                log.warning("the learner died as it started and starts again: %s", lost)
                start = self.restart_learner

    def restart_learner(self) -> None:
        """All ranks anew, with the initial weights; and the workers that share their processes."""
        self.learner.restart(self.config.ray.start_timeout_s)
        if self.colocated:
            self.fleet.adopt(dict(enumerate(self.learner.workers)))

    def _start_rank(self, rank: int) -> ActorHandle:
        config, rollout, learner = self.config, self.config.rollout, self.config.learner
        kind: type
        if self.colocated:
            kind, bundle, more = ColocatedWorker, rank, {"rollout": rollout}
            log_file = self._log_file(f"rollout-{rank}", "colocated", rank=rank)
            cpus, gpus = max(rollout.num_cpus, learner.num_cpus), max(rollout.num_gpus, learner.num_gpus)
        else:
            kind, bundle, more = LearnerWorker, rollout.workers + rank, {}
            log_file = self._log_file(f"learner-{rank}", "learner", rank=rank)
            cpus, gpus = learner.num_cpus, learner.num_gpus
        return self._actor(kind, bundle, cpus, gpus).remote(
            config.policy,
            config.kernel,
            config.objective,
            learner,
            self.trainable,
            config.seed,
            log_file,
            rank,
            config.deterministic,
            **more,
        )

    def _start_worker(self, slot: int) -> ActorHandle:
        config, rollout = self.config, self.config.rollout
        if not self.colocated or slot >= config.learner.ranks:
            bundle = slot if slot < rollout.workers else None
            worker = self._actor(RolloutWorker, bundle, rollout.num_cpus, rollout.num_gpus, rollout.labels)
            log_file = self._log_file(f"rollout-{slot}", "rollout", slot=slot)
            return worker.remote(config.policy, config.kernel, rollout, config.seed, log_file, config.deterministic)
        if hasattr(self, "fleet"):
            raise LearnerLost(f"the process of rollout worker {slot}, which holds rank {slot} too, died")
        return self.learner.workers[slot]

    def _actor(
        self, kind: type, bundle: int | None, num_cpus: float, num_gpus: float, labels: dict[str, str] | None = None
    ) -> Any:
        """A class of actors placed in a bundle of the run's placement group; or wherever there is room on nodes with
        `labels`.
        """
        assert self.group is not None
        where: dict[str, Any] = {"label_selector": labels}
        if bundle is not None:
            where = {"scheduling_strategy": PlacementGroupSchedulingStrategy(self.group, bundle)}
        return ray.remote(kind).options(num_cpus=num_cpus, num_gpus=num_gpus, **where)

    def _log_file(self, name: str, role: str, **more: int) -> LogFile:
        return LogFile(self.logs / f"{name}.log", self.config.name, role, more)

    def _start_pool(self) -> None:
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        serve.start(proxy_location="Disabled")
        if shared := self.config.reward.app:
            self._check_shared(shared)
        else:
            self._forget_app()
            self.app_started = True
            self.logs.mkdir(parents=True, exist_ok=True)
            (self.logs / APP_FILE).write_text(self.app)
            for url in {str(scorer.options["url"]) for scorer in self.config.scorers if scorer.scorer == "remote"}:
                wait_for_pool(url, self.config.ray.start_timeout_s)
            app = build_app(
                *(self.app, self.config.scorers, GatewaySettings(), self.logs, self.config.name),
                self.config.deterministic,
            )
            target = serve.RunTarget(app, name=self.app, route_prefix=None)
            serve.run_many([target], wait_for_applications_running=False)
            PoolStart(self.app, self.config.scorers).wait(self.config.ray.start_timeout_s)
        handles = {
            scorer.name: serve.get_deployment_handle(deployment_name(scorer.name), shared or self.app)
            for scorer in self.config.scorers
        }
        self.pool = RewardPool(handles, self.config.scorers, self.config.name)

    def _forget_app(self) -> None:
        """Delete the pool of this run's former driver, if that was killed before it could."""
        file = self.logs / APP_FILE
        former = file.read_text() if file.exists() else None
        if former in serve.status().applications:
            serve.delete(former)

    def _check_shared(self, app: str) -> None:
        running = serve.status().applications.get(app)
        if running is None:
            known = ", ".join(serve.status().applications) or "none"
            raise UserError(f"reward.app: no Serve application `{app}` on this cluster; running: {known}")
        for scorer in self.config.scorers:
            if deployment_name(scorer.name) not in running.deployments:
                raise UserError(f"reward.app: the pool `{app}` has no scorer `{scorer.name}`")
