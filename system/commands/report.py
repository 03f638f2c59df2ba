"""`tempflow report`: the report of a run, made again."""

from pathlib import Path
from typing import Annotated

import typer

from services.base.plain import plain
from system.commands.arguments import console, say_next

app = typer.Typer()


@app.command()
def report(run: Annotated[Path, typer.Argument(help="A run folder.")]) -> None:
    """Write the report.html of a run again."""
    from system.report.build import build_report

    page = build_report(run)
    console.print(plain(page), soft_wrap=True)
    say_next(f"open {page} in a browser")
