"""`tempflow deploy`: the Kubernetes manifests of a run."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from system.commands.arguments import Overrides, Recipe, say_next

app = typer.Typer()


@app.command()
def deploy(
    recipe: Recipe,
    infra: Annotated[Path, typer.Option(help="A YAML file: the cluster's nodes, image, volumes and secrets.")],
    overrides: Overrides = None,
    part: Annotated[
        Literal["all", "job", "pool", "volume"],
        typer.Option(help="The job and its pool, one of them, or the volume claim for run folders (apply it once)."),
    ] = "all",
) -> None:
    """Print Kubernetes manifests for a run (RayJob) and its reward pool (RayService)."""
    from system.manifests.infra import load_infra
    from system.manifests.manifests import manifests, render
    from system.recipe.load import load_config

    typer.echo(render(manifests(load_config(recipe, overrides or []), load_infra(infra), part)), nl=False)
    say_next("write this to run.yaml; kubectl apply --dry-run=server -f run.yaml && kubectl apply -f run.yaml")
