"""`tempflow plan`: whether a recipe fits the GPUs, how long it takes and what it costs."""

from pathlib import Path
from typing import Annotated

import typer

from services.base.plain import plain
from system.commands.arguments import Overrides, Recipe, console, same, say_next

app = typer.Typer()


@app.command()
def plan(
    recipe: Recipe,
    overrides: Overrides = None,
    gpus: Annotated[
        str | None, typer.Option(help="GPUs that there are, such as 8xH100; as many H100s as it asks for if not given.")
    ] = None,
    card: Annotated[
        Path | None,
        typer.Option(help="A gpu.json of `tempflow bench gpu`, whose measured card is used; --gpus must name it too."),
    ] = None,
    price: Annotated[float | None, typer.Option(min=0, help="The price of a GPU-hour, in any currency.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Say whether a recipe fits its GPUs, how long it takes and what it costs. Needs no weights, GPU or network."""
    import json as encoder

    from system.capacity.cards import CARDS, Card, parse_gpus
    from system.capacity.estimate import estimate_of
    from system.capacity.estimate_json import estimate_json
    from system.capacity.estimate_text import estimate_sentences, estimate_table
    from system.recipe.load import load_config

    config = load_config(recipe, overrides or [])
    measured = Card.measured_in(card) if card else None
    count, kind = parse_gpus(gpus, measured) if gpus else (None, measured or CARDS["H100"])
    found = estimate_of(config, count, kind)
    if json:
        console.print_json(encoder.dumps(estimate_json(found, price)))
    else:
        console.print(estimate_table(config, found))
        for sentence in estimate_sentences(config, found, price):
            console.print(plain(sentence), soft_wrap=True)
    if found.fits:
        what = same(recipe, overrides)
        say_next(f"on the machine itself: tempflow doctor {what}, then tempflow train {what}")
