"""`tempflow serve`: a recipe's scorers as a service of their own."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from system.commands.arguments import Overrides, Recipe, console, say_next
from system.loop.stop import StopFlag

if TYPE_CHECKING:
    from services.serving.settings import PoolSettings

POLL_S = 0.2

app = typer.Typer()


@app.command()
def serve(
    recipe: Recipe,
    overrides: Overrides = None,
    print_config: Annotated[
        bool, typer.Option("--print", help="Print the YAML for `serve deploy` or a RayService; start nothing.")
    ] = False,
) -> None:
    """Run the scorers of a recipe as a reward pool that answers over HTTP, until Ctrl-C."""
    from system.recipe.load import load_pool

    pool = load_pool(recipe, overrides or [])
    if print_config:
        from system.launch.serving import serve_config

        typer.echo(serve_config(pool), nl=False)
        say_next("write this to pool.yaml; serve deploy pool.yaml")
        return
    run_pool(pool, recipe)


def run_pool(pool: PoolSettings, recipe: str) -> None:
    """Serve the pool of a recipe until Ctrl-C or SIGTERM.

    Raises:
        UserError: a check finds a problem, or the pool cannot start.
        Stopped: by the signal.
    """
    from system.checks.pool import check_pool
    from system.launch.environment import token_hint
    from system.launch.serving import running_pool

    check_pool(pool)
    with StopFlag() as stop, running_pool(pool, stop) as (connection, ready_s):
        console.print(f"[bold]{pool.name}[/] ready in {ready_s:.1f} s at {pool.serve.url}/docs")
        if connection.dashboard:
            console.print(f"Ray dashboard at http://{connection.dashboard}{token_hint()}", highlight=False)
        say_next(f"in another terminal: tempflow train {recipe} reward.app={pool.name}")
        while True:
            stop.check()
            time.sleep(POLL_S)
