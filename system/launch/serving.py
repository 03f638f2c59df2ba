"""A recipe's scorers as a Serve application with an HTTP service: its configuration, and the running pool."""

from __future__ import annotations

import errno
import math
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psutil
import ray
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.exceptions import RayServeException

from services.base.errors import UserError, first_line
from services.base.yaml_text import dump_yaml
from services.serving.app import PoolSettings, build
from services.serving.settings import GatewaySettings
from system.launch.environment import running_ray
from system.launch.pool_start import PoolStart, delete_pool
from system.loop.stop import StopFlag

if TYPE_CHECKING:
    from system.launch.cluster import Connection


def serve_config(pool: PoolSettings) -> str:
    """The pool's configuration as YAML for `serve deploy` or for the `serveConfigV2` of a RayService."""
    application = {
        "name": pool.name,
        "route_prefix": "/",
        "import_path": f"{build.__module__}:{build.__name__}",
        "args": pool.model_dump(mode="json"),
    }
    options = {"host": pool.serve.host, "port": pool.serve.port}
    return dump_yaml({"http_options": options, "applications": [application]})


def check_free(listen: GatewaySettings) -> None:
    """Check that the pool's HTTP service can listen at its address.

    Raises:
        UserError: another program listens there, or the address does not belong to this machine.
    """
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # ignore connections that are closing
        try:
            probe.bind((listen.host, listen.port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise _taken(listen) from error
            raise UserError(
                f"the pool cannot listen at {listen.host}:{listen.port} ({error.strerror}); "
                "set serve.host and serve.port to an address of this machine"
            ) from error


def _taken(listen: GatewaySettings) -> UserError:
    return UserError(
        f"another program listens on port {listen.port} of {listen.host}; stop it, or give this pool another serve.port"
    )


def check_cluster(pool: PoolSettings) -> None:
    """Check that the cluster's Serve can run the pool. A running Serve keeps the settings that it was started with.

    Ray (2.60) has no public interface for the address of a running Serve.

    Raises:
        UserError: Serve does not listen at the pool's address, or has an application of the pool's name.
    """
    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        check_free(pool.serve)
        return
    status, there = serve.status(), client.http_config
    if not status.proxies:
        raise UserError(
            "Serve runs on this Ray cluster without HTTP, so the pool could not be reached; end the jobs that use it "
            "and run `serve shutdown`, or use another cluster"
        )
    if (there.host, there.port) != (pool.serve.host, pool.serve.port):
        raise UserError(
            f"Serve on this Ray cluster listens at {there.host}:{there.port}, not at {pool.serve.host}:"
            f"{pool.serve.port}; set serve.host and serve.port to that address, or run `serve shutdown` first"
        )
    if pool.name in status.applications:
        raise UserError(
            f"this Ray cluster already has a Serve application `{pool.name}`; end it, or give this pool another name=…"
        )


def check_alone(listen: GatewaySettings) -> None:
    """Refuse to share the port. Two Serves can listen on one port, and requests would be split between them.

    Raises:
        UserError: another program has begun to listen on the port since `check_free`.
    """
    sockets = psutil.net_connections("tcp")
    listening = [sock.laddr for sock in sockets if sock.laddr and sock.status == psutil.CONN_LISTEN]
    same = [at for at in listening if at.port == listen.port and at.ip in (listen.host, "0.0.0.0", "::")]
    if len(same) > 1:
        raise _taken(listen)


@contextmanager
def running_pool(pool: PoolSettings, stop: StopFlag | None = None) -> Iterator[tuple[Connection, float]]:
    """Run the pool with its HTTP service. Yields Ray's connection, and the seconds until the application was ready.

    At the end the application is deleted, and nothing else.

    Args:
        stop: the flag of the command's signals. One that comes while the pool starts stops it.

    Raises:
        Stopped: by a signal.
        UserError: the pool cannot listen at its address, or a scorer refuses to start.
        RuntimeError: a scorer cannot start.
    """
    from system.launch.cluster import connect, warn_of_idle_gpus

    if running_ray() is None:
        check_free(pool.serve)
    stop = stop or StopFlag()
    try:
        with stop.deferred("Ray"):
            connection = connect()
        check_cluster(pool)
        warn_of_idle_gpus({}, pool.scorers)
        started = time.perf_counter()
        try:
            with stop.starting():
                serve.start(http_options={"host": pool.serve.host, "port": pool.serve.port})
                try:
                    target = serve.RunTarget(build(pool), name=pool.name, route_prefix="/")
                    serve.run_many([target], wait_for_applications_running=False)
                except RayServeException as error:
                    said = first_line(error)
                    raise UserError(
                        f"Serve on this cluster refuses the pool ({said}); fix that, or use another cluster"
                    ) from error
                PoolStart(pool.name, pool.scorers).wait(math.inf)
                if connection.started_here:
                    check_alone(pool.serve)
            yield connection, time.perf_counter() - started
        finally:
            delete_pool(pool.name)
    finally:
        ray.shutdown()
