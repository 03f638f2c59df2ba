"""`tempflow serve`: a recipe's scorers as a service of their own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import ray
from ray import serve
from rich.console import Console

from services.errors import UserError
from services.http import read_token
from services.scoring.scorer import check_device, check_scorer
from services.serving.app import PoolSettings, build, why_not_started
from services.yaml_text import dump_yaml
from system.launch_env import LOOPBACK, token_hint
from system.stop import StopFlag

if TYPE_CHECKING:
    from system.launch import Connection

POLL_S = 0.2


def check_pool(pool: PoolSettings) -> None:
    """Refuse what can be known to fail before anything starts.

    Raises:
        UserError: a scorer's model is missing, or the pool would be open to other machines without a token.
    """
    for scorer in pool.scorers:
        check_scorer(scorer)
        check_device(scorer)
    if read_token(pool.serve.token_file) is None and pool.serve.host not in {LOOPBACK, "localhost"}:
        raise UserError(
            f"serve.host {pool.serve.host} can be reached from other machines: "
            "set serve.token_file, or TEMPFLOW_TOKEN in the environment"
        )


def serve_config(pool: PoolSettings) -> str:
    """The pool as YAML for `serve deploy`, or for the `serveConfigV2` of a RayService."""
    application = {
        "name": pool.name,
        "route_prefix": "/",
        "import_path": f"{build.__module__}:{build.__name__}",
        "args": pool.model_dump(mode="json"),
    }
    options = {"host": pool.serve.host, "port": pool.serve.port}
    return dump_yaml({"http_options": options, "applications": [application]})


@contextmanager
def running_pool(pool: PoolSettings) -> Iterator[tuple[Connection, float]]:
    """The pool with its HTTP side: Ray's connection, and the seconds until the application was ready.

    On the way out the application, and nothing else, is deleted.

    Raises:
        UserError: a scorer refuses to start.
        RuntimeError: one cannot start.
    """
    from system.launch import connect

    connection = connect()
    try:
        serve.start(http_options={"host": pool.serve.host, "port": pool.serve.port})
        started = time.perf_counter()
        try:
            serve.run(build(pool), name=pool.name, route_prefix="/")
        except RuntimeError as error:
            raise why_not_started(serve.status().applications[pool.name]) from error
        yield connection, time.perf_counter() - started
    finally:
        serve.delete(pool.name)
        ray.shutdown()


def run_pool(pool: PoolSettings, console: Console) -> None:
    """Serve until Ctrl-C or SIGTERM.

    Raises:
        Stopped: by the signal.
    """
    check_pool(pool)
    with StopFlag() as stop, running_pool(pool) as (connection, ready_s):
        console.print(f"[bold]{pool.name}[/] ready in {ready_s:.1f} s at {pool.serve.url}/docs")
        if connection.dashboard:
            console.print(f"Ray dashboard at http://{connection.dashboard}{token_hint()}", highlight=False)
        while True:
            stop.check()
            time.sleep(POLL_S)
