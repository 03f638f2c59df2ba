"""`tempflow export`: trained weights of a run, with a model card, for diffusers, PEFT, ComfyUI and a hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.base.plain import plain
from system.commands.arguments import console, say_next
from system.export.choices import Layout, chosen_step

if TYPE_CHECKING:
    from system.export.export import ExportedModel

app = typer.Typer()


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    to: Annotated[Path, typer.Option(help="The new folder.")],
    step: Annotated[
        str, typer.Option(help="Which kept checkpoint: `best` by held-out reward, `last`, or a training step.")
    ] = "best",
    layout: Annotated[
        Layout,
        typer.Option(help="How the weights are written; `merged` adds the adapter to the base model's transformer."),
    ] = Layout.DIFFUSERS,
    no_ema: Annotated[
        bool, typer.Option("--no-ema", help="The trained weights, instead of the moving average that is evaluated.")
    ] = False,
    license: Annotated[
        str | None,
        typer.Option(help="The licence for the card, such as apache-2.0; without it, that of the base model's card."),
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="The base model's hub id for the card, if the recipe names a folder.")
    ] = None,
) -> None:
    """Write trained weights of a run as a folder with a model card, ready for a hub."""
    from system.export.export import export as write

    done = write(run, to, chosen_step(step, "--step"), layout, not no_ema, license, base)
    for sentence in done.left_out:
        console.print(plain(f"Left out of the card: {sentence}"), soft_wrap=True)
    console.print(plain(_said(done)), soft_wrap=True)
    say_next(_next(done))


def _said(done: ExportedModel) -> str:
    weights = "trained weights" if done.weight_set == "trained" else f"moving average ({done.weight_set})"
    heldout = "" if done.heldout is None else f", held-out reward {done.heldout:.4f}"
    return f"{done.folder}: {done.file} of step {done.step}, {weights}{heldout}"


def _next(done: ExportedModel) -> str:
    """What to do with the folder."""
    card = done.folder / "README.md"
    edit = "" if done.licensed else " and enter `license` in its head"
    return f"read {card}{edit}; publish it: hf upload USER/NAME {done.folder}"
