"""`tempflow top`: a run in the terminal while it runs and after."""

import time
from typing import Annotated

import typer

from system.commands.arguments import console, say_next
from system.commands.watch import Run

app = typer.Typer()


@app.command()
def top(
    run: Run = None,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 2.0,
) -> None:
    """Show a run in the terminal, until Ctrl-C. Reads the run folder only. Not on a terminal, it prints once."""
    from contextlib import suppress
    from pathlib import Path

    from rich.live import Live

    from system.watch.reader import Reader, newest_run
    from system.watch.terminal import view

    folder = run or newest_run(Path("runs"))
    reader = Reader(folder)
    reader.poll()
    if console.is_terminal:
        with (
            suppress(KeyboardInterrupt),
            Live(console=console, auto_refresh=False, screen=True, vertical_overflow="ellipsis") as live,
        ):
            while True:
                reader.poll()
                live.update(view(reader, time.time(), console.width), refresh=True)
                time.sleep(every)
    console.print(view(reader, time.time(), console.width))
    say_next(f"tempflow watch {folder} shows its images and trees in the browser")
