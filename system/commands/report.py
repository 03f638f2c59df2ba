"""`tempflow report`: the report of a run, made again."""

from pathlib import Path
from typing import Annotated

import typer

from system.commands.arguments import console
from system.commands.plain import plain

app = typer.Typer()


@app.command()
def report(run: Annotated[Path, typer.Argument(help="A run folder.")]) -> None:
    """Write the report.html of a run again."""
    from system.report.build import build_report

    console.print(plain(build_report(run)), soft_wrap=True)
