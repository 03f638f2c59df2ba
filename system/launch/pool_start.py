"""Waiting for a reward pool to start, and saying why it cannot."""

import logging
import os
from collections.abc import Sequence

import ray
from ray import serve
from ray.serve.schema import ApplicationStatus, DeploymentStatus

from services.base.errors import UserError, quoted_refusal
from services.base.patience import patiently
from services.scoring.settings import ScorerSettings
from services.serving.app import why_not_started
from services.serving.gateway import deployment_name

log = logging.getLogger(__name__)

WAITS_FOR_A_PLACE = "to be scheduled"
"""In what Serve (2.60) says, after 30 s, of replicas that are not placed or whose process starts slowly."""


class PoolNotReady(Exception):
    """Scorers of the reward pool have not started."""


class PoolStart:
    """The start of an application with these scorers, which Serve has been asked for."""

    def __init__(self, app: str, scorers: Sequence[ScorerSettings]) -> None:
        self.app, self.scorers = app, scorers
        self.said_no_room = False

    def wait(self, timeout_s: float) -> None:
        """Until all scorers have started.

        Raises:
            UserError: one refuses to, there is no room for it and there will be none, or they are late.
            RuntimeError: one cannot, or somebody has deleted them.
        """
        try:
            patiently(self._look, PoolNotReady, timeout_s)
        except PoolNotReady as late:
            fix = "lower the scorers' num_cpus, num_gpus or replicas, use a larger cluster, or raise it"
            raise UserError(f"{late} within ray.start_timeout_s; {fix}") from late

    def _look(self) -> None:
        """See whether all scorers have started.

        Raises:
            PoolNotReady: one has not yet.
            UserError: one refuses to, or there is no room for it and there will be none.
            RuntimeError: one cannot, or somebody has deleted them.
        """
        application = serve.status().applications.get(self.app)
        if application is None:
            raise RuntimeError(f"the reward pool {self.app} was deleted")
        if application.status == ApplicationStatus.DEPLOY_FAILED:
            raise why_not_started(application)
        if application.status == ApplicationStatus.RUNNING:
            return
        late = {name: of for name, of in application.deployments.items() if of.status != DeploymentStatus.HEALTHY}
        if refused := quoted_refusal("\n".join(of.message for of in late.values())):
            raise refused  # Serve would start the replica twice more, with the same settings.
        waiting = {name for name, of in late.items() if WAITS_FOR_A_PLACE in of.message}
        if no_room := self._without_room(waiting):
            if not may_grow():
                raise UserError(no_room)
            if not self.said_no_room:
                log.warning("%s; waiting for nodes", no_room)
                self.said_no_room = True
            raise PoolNotReady(no_room)
        said = "; ".join(f"{name}: {in_one_line(of.message) or of.status.value}" for name, of in late.items())
        raise PoolNotReady(f"the reward pool has not started ({said})")

    def _without_room(self, waiting: set[str]) -> str:
        """What those that wait ask for beyond what is free, and what to lower; empty if they wait for something else,
        such as a slow disk.
        """
        free = ray.available_resources()
        cpus, gpus = free.get("CPU", 0), free.get("GPU", 0)
        asks = [
            f"a replica of `{scorer.name}` asks for {scorer.num_cpus:g} CPUs and {scorer.num_gpus:g} GPUs (scorers.{i})"
            for i, scorer in enumerate(self.scorers)
            if deployment_name(scorer.name) in waiting and (scorer.num_cpus > cpus or scorer.num_gpus > gpus)
        ]
        if not asks:
            return ""
        return (
            f"the reward pool has no room: {', '.join(asks)}, and {cpus:g} CPUs and {gpus:g} GPUs are free; lower "
            "num_cpus, num_gpus or replicas of the scorers, or what rollout and learner ask for"
        )


def in_one_line(message: str) -> str:
    """What Serve says of a deployment, and the error of a traceback that it quotes without its frames."""
    says, _, frames = message.partition("Traceback (most recent call last):")
    lines = [line.strip() for line in frames.splitlines() if line.strip()]
    return " ".join([*says.split(), *lines[-1:]])


def may_grow() -> bool:
    """Whether waiting for resources can help: on a cluster of more than this machine."""
    return len(ray.nodes()) > 1 or bool(os.environ.get("RAY_ADDRESS"))
