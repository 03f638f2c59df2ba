"""Attaches to a Ray cluster, or starts one on this machine."""

import logging
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import ray

from services.base.errors import UserError, first_line
from services.scoring.scorer import uses_gpu
from services.scoring.settings import ScorerSettings
from system.launch.environment import LOOPBACK, check_start, make_token, running_ray, temp_folder
from system.loop.stop import Stopped

log = logging.getLogger(__name__)


_children_ignore_interrupts = False


def _in_child() -> None:
    if _children_ignore_interrupts:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


os.register_at_fork(after_in_child=_in_child)


@contextmanager
def children_that_ignore_interrupts() -> Iterator[None]:
    """Make processes that start within this context ignore SIGINT, which Ctrl-C sends to every process of a terminal.

    Ray (2.60) only blocks it in its processes, and Python's `multiprocessing` lets it through in some of them, which
    then die. This takes effect in a process that is started with a `preexec_fn`, as Ray starts all of its own.
    """
    global _children_ignore_interrupts
    _children_ignore_interrupts = True
    try:
        yield
    finally:
        _children_ignore_interrupts = False


@dataclass(frozen=True)
class Connection:
    """A driver's connection to a Ray cluster."""

    dashboard: str | None
    started_here: bool


def connect() -> Connection:
    """Attach to the Ray cluster that `running_ray` finds, or start one that listens on loopback only.

    The present handler of SIGTERM is kept: Ray replaces it with one that aborts the process. Ray's processes that start
    here ignore SIGHUP and SIGINT, which a closed terminal and Ctrl-C send to every process. They end when the driver
    stops.

    Raises:
        UserError: Ray cannot start here, or the named cluster does not answer or has other versions. The error of Ray
            itself is its cause.
        Stopped: SIGTERM came while Ray was starting.
    """
    check_start()
    if running_ray() is None:
        make_token()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with children_that_ignore_interrupts():
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
        except RuntimeError as error:
            said = " ".join(str(error).split())
            raise UserError(
                f"cannot attach to the Ray cluster at {address} ({said}); install the cluster's versions of Ray and "
                "Python, and check that its head is alive"
            ) from error
        return Connection(context.dashboard_url, False)
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)  # it says that the token is asked for
    try:
        context = ray.init(
            address="local",
            include_dashboard=True,
            dashboard_host=LOOPBACK,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    except Exception as error:
        if getattr(error, "errno", None):  # a fault of the disk, which says more by itself
            raise
        raise UserError(
            f"Ray did not start on this machine ({first_line(error).rstrip('.')}); if the machine is busy or short of "
            "memory, end other programs and try again; Ray's own logs are in "
            f"{temp_folder() / 'ray' / 'session_latest' / 'logs'}"
        ) from error
    return Connection(context.dashboard_url, True)


def warn_of_idle_gpus(asked: Mapping[str, float], scorers: Sequence[ScorerSettings]) -> None:
    """Log which roles and scorers run on the CPU although the cluster has GPUs, because they ask for none.

    Args:
        asked: the number of GPUs that each role asks for.
        scorers: the scorers of a pool. Only scorers that can use a GPU are considered.
    """
    gpus = ray.cluster_resources().get("GPU", 0)
    asked = {**asked, **{f"scorer {s.name}": s.num_gpus for s in scorers if uses_gpu(s)}}
    without = [role for role, share in asked.items() if not share]
    if gpus and without:
        said = "on the CPU: %s; the cluster has %g GPUs, so set num_gpus of a role to give it one"
        log.warning(said, ", ".join(without), gpus)
