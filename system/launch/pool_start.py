"""Waits for a reward pool to start, and says why it cannot."""

import logging
import os
from collections.abc import Sequence

import ray
from ray import serve
from ray.serve.schema import ApplicationStatus, DeploymentStatus

from services.base.errors import UserError, first_line, quoted_refusal
from services.base.patience import patiently
from services.scoring.settings import ScorerSettings
from services.serving.app import why_not_started
from services.serving.settings import deployment_name

log = logging.getLogger(__name__)

LOOK_S = 2.0
"""The longest pause between two looks. Each takes the driver and Serve's controller some 0.2 s of CPU."""
WAITS_FOR_A_PLACE = "to be scheduled"
"""Part of Serve's (2.60) message, after 30 s, about replicas that have no place or whose process starts slowly."""
IS_SLOW = "have taken more than"
"""Part of Serve's (2.60) messages, after 30 s, about replicas that have no place yet or still load their model."""


class PoolNotReady(Exception):
    """Scorers of the reward pool have not started."""


class PoolStart:
    """Watches the start of an application with these scorers. The caller has asked Serve to run it."""

    def __init__(self, app: str, scorers: Sequence[ScorerSettings]) -> None:
        self.app, self.scorers = app, scorers
        self.said_no_room = False
        self.warned: set[str] = set()

    def wait(self, timeout_s: float) -> None:
        """Wait until all scorers have started.

        Loading models takes time, so the wait itself is no warning. A failed start, which Serve repeats, is one.

        Raises:
            UserError: a scorer refuses to start, has no room on a cluster that cannot grow, or is late.
            RuntimeError: a scorer cannot start, or somebody has deleted the application.
        """
        try:
            patiently(self._look, PoolNotReady, timeout_s, LOOK_S, logging.INFO)
        except PoolNotReady as late:
            fix = "lower the scorers' num_cpus, num_gpus or replicas, use a larger cluster, or raise the timeout"
            raise UserError(f"{late} within ray.start_timeout_s; {fix}") from late

    def _look(self) -> None:
        """Check once whether all scorers have started.

        Raises:
            PoolNotReady: a scorer has not started yet.
            UserError: a scorer refuses to start, or has no room on a cluster that cannot grow.
            RuntimeError: a scorer cannot start, or somebody has deleted the application.
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
            raise refused  # Otherwise Serve would start the replica twice more with the same settings.
        waiting = {name for name, of in late.items() if WAITS_FOR_A_PLACE in of.message}
        if no_room := self._without_room(waiting):
            if not may_grow():
                raise UserError(no_room)
            if not self.said_no_room:
                log.warning("%s; waiting for nodes", no_room)
                self.said_no_room = True
            raise PoolNotReady(no_room)
        self._warn_of_failures({name: in_one_line(of.message) for name, of in late.items()})
        said = "; ".join(f"{name}: {in_one_line(of.message) or of.status.value}" for name, of in late.items())
        raise PoolNotReady(f"the reward pool has not started ({said})")

    def _warn_of_failures(self, messages: dict[str, str]) -> None:
        """Log each failure that Serve reports of a deployment once."""
        for name, message in messages.items():
            if message and IS_SLOW not in message and message not in self.warned:
                log.warning("%s has not started: %s", name, message)
                self.warned.add(message)

    def _without_room(self, waiting: set[str]) -> str:
        """A sentence that names the waiting scorers that ask for more than is free, and the settings to lower.

        It is empty if they wait for something else, such as a slow disk.
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
            "num_cpus, num_gpus or replicas of the scorers, or num_cpus and num_gpus of rollout and learner"
        )


def delete_pool(app: str) -> None:
    """Delete the application of a pool. That its replicas end late is logged and not raised."""
    try:
        serve.delete(app)
    except TimeoutError as error:
        log.warning("the reward pool %s has not ended yet: %s", app, first_line(error))


def in_one_line(message: str) -> str:
    """Serve's message about a deployment in one line. Of a quoted traceback, only the error is kept."""
    says, _, frames = message.partition("Traceback (most recent call last):")
    lines = [line.strip() for line in frames.splitlines() if line.strip()]
    return " ".join([*says.split(), *lines[-1:]])


def may_grow() -> bool:
    """Whether waiting for resources can help, which is so on any cluster that is not just this machine."""
    return len(ray.nodes()) > 1 or bool(os.environ.get("RAY_ADDRESS"))
