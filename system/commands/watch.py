"""`tempflow watch`: a page that shows a run while it runs and after."""

from pathlib import Path
from typing import Annotated

import typer

from services.base.plain import plain
from system.commands.arguments import console, say_next

PORT = 8800

app = typer.Typer()

Run = Annotated[
    Path | None, typer.Argument(help="A run folder; without it, the run in runs/ that wrote last.", show_default=False)
]


@app.command()
def watch(
    run: Run = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port on 127.0.0.1; 0 takes a free one.")] = PORT,
) -> None:
    """Show a run on a page of this machine, until Ctrl-C. Reads the run folder only."""
    from system.watch.reader import Reader, newest_run
    from system.watch.server import PageServer

    folder = run or newest_run(Path("runs"))
    with PageServer(Reader(folder), port) as server:
        console.print(plain(f"watching {folder} at {server.url} (Ctrl-C ends this, not the run)"), soft_wrap=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            say_next(f"the page is closed; tempflow watch {folder} opens the page again")
