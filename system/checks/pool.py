"""Checks of a reward pool: before it is served, and before a run uses a shared one."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from services.base.errors import UserError, first_line
from services.serving.settings import PoolSettings
from system.checks.finding import Finding
from system.launch.environment import LOOPBACK, running_ray
from system.recipe.model import RunConfig


def check_pool(pool: PoolSettings) -> None:
    """Refuse to serve a pool that would fail, or that other machines could use without a token.

    Raises:
        UserError: a scorer cannot work, or other machines could reach the pool without a token.
    """
    from services.http.session import read_token
    from services.scoring.scorer import check_device, check_scorer

    for scorer in pool.scorers:
        check_scorer(scorer)
        check_device(scorer)
    if read_token(pool.serve.token_file) is None and pool.serve.host not in {LOOPBACK, "localhost"}:
        raise UserError(
            f"serve.host {pool.serve.host} can be reached from other machines: "
            "set serve.token_file, or TEMPFLOW_TOKEN in the environment"
        )


def shared(config: RunConfig) -> Iterator[Finding]:
    """The shared pool that a recipe names is running and has the recipe's scorers."""
    if config.reward.app:
        yield shared_pool(config.reward.app, [scorer.name for scorer in config.scorers])


def shared_pool(app: str, scorers: list[str], deployments: Callable[[str], list[str] | None] | None = None) -> Finding:
    """The Serve application `app` is running on the cluster and has the scorers.

    Args:
        deployments: returns the names of an application's deployments, or None if it is not running. The default asks
            Ray.

    Raises:
        UserError: the application is not running, or lacks a scorer.
    """
    if running_ray() is None:
        fix = "start the pool there with `tempflow serve`, and set RAY_ADDRESS if it is elsewhere"
        raise UserError(f"reward.app: no Ray cluster is running here, so `{app}` is not running; {fix}")
    found = (deployments or _deployments)(app)
    if found is None:
        raise UserError(f"reward.app: no application `{app}` is running on the cluster; start it with `tempflow serve`")
    from services.serving.settings import deployment_name

    missing = [name for name in scorers if deployment_name(name) not in found]
    if missing:
        raise UserError(f"reward.app: `{app}` has no scorer {', '.join(missing)}; serve the same recipe")
    return Finding("ok", "shared pool", f"`{app}` runs and has {', '.join(scorers)}")


def _deployments(app: str) -> list[str] | None:
    import ray
    from ray import serve

    from system.launch.cluster import connect

    connect()
    try:
        running = serve.status().applications.get(app)
        return list(running.deployments) if running else None
    except ray.exceptions.RayError as error:
        raise UserError(f"the cluster's Serve does not answer: {first_line(error)}; see its dashboard") from error
    finally:
        ray.shutdown()
