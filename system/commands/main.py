"""The command line: its commands, its root options, and what it says about an error.

A command is a file beside this one, named in COMMANDS. It imports what it needs when it runs, so that help is quick.
"""

import errno
import logging
import os
import sys
from importlib import import_module
from typing import Annotated

import typer

from services.base.devices import machine_fault
from services.base.errors import cause_of, refusal
from services.base.logs import ScreenHandler
from services.base.openmp import share_cores
from services.base.plain import printable_lines
from system import __version__
from system.launch.environment import listen_on_loopback, wait_for_busy_replicas
from system.loop.stop import STOPPED_EXIT_CODE, Stopped

COMMANDS = (
    "train",
    "evaluate",
    "sample",
    "serve",
    "deploy",
    "score",
    "plan",
    "doctor",
    "watch",
    "top",
    "report",
    "export",
    "bench",
    "compare",
    "init",
    "config",
    "from_flow_grpo",
)
"""The files of the commands, in the order of the help."""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Reinforcement learning of text-to-image flow models: TempFlow-GRPO and related methods, on Ray.",
)
for file in COMMANDS:
    app.add_typer(import_module(f"system.commands.{file}").app)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    listen_on_loopback()
    wait_for_busy_replicas()


def _quiet_libraries() -> None:
    """Keep notices of transformers and diffusers, and progress bars for files that load in a moment, off the screen.

    Variables of the environment hold in the processes that Ray starts here, too. Those that are set stay as they are.
    """
    for library in ("TRANSFORMERS", "DIFFUSERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


STORAGE_FIXES = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there",
    errno.EROFS: "write to another place",
    errno.EACCES: "change its permissions, or use another place",
}
"""What the user can do about an error of storage, by its number."""


def _storage_fault(error: Exception) -> str | None:
    """What is said about a disk that is full, read-only or closed to this user; None for any other error."""
    cause = cause_of(error)
    if not isinstance(cause, OSError) or cause.errno not in STORAGE_FIXES:
        return None
    place = f"`{cause.filename}`" if cause.filename else "a file cannot be written"
    return f"{place}: {cause.strerror}; {STORAGE_FIXES[cause.errno]}"


def main() -> None:
    """Run the command line: exit code 2 and one sentence for the user's mistakes, a traceback for ours."""
    share_cores()
    _quiet_libraries()
    logging.getLogger().addHandler(ScreenHandler())
    try:
        app()
    except Stopped as stopped:
        print(f"tempflow: stopped by {stopped}", file=sys.stderr)
        sys.exit(STOPPED_EXIT_CODE)
    except Exception as error:
        said = refusal(error) or _storage_fault(error) or machine_fault(cause_of(error))
        if said is None:
            raise
        print("tempflow:", printable_lines(said), file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
