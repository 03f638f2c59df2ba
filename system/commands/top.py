"""`tempflow top`: a run in the terminal while it runs and after."""

import time
from typing import Annotated

import typer

from system.commands.arguments import console
from system.commands.watch import Run

app = typer.Typer()


@app.command()
def top(
    run: Run = None,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 2.0,
) -> None:
    """Show a run in the terminal, until Ctrl-C. Reads the run folder only. Not on a terminal, it prints once."""
    from pathlib import Path

    from rich.live import Live

    from system.watch.reader import Reader, newest_run
    from system.watch.terminal import view

    reader = Reader(run or newest_run(Path("runs")))
    reader.poll()
    if not console.is_terminal:
        console.print(view(reader, time.time(), console.width))
        return
    try:
        with Live(console=console, auto_refresh=False, screen=True, vertical_overflow="ellipsis") as live:
            while True:
                reader.poll()
                live.update(view(reader, time.time(), console.width), refresh=True)
                time.sleep(every)
    except KeyboardInterrupt:
        console.print(view(reader, time.time(), console.width))
