"""What the commands share: arguments that name a recipe, the console, and the sentence that says what to do next."""

import shlex
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console

from services.base.plain import plain

console = Console()

Recipe = Annotated[
    str,
    typer.Argument(help="A recipe: a name that `tempflow recipes` lists, a YAML file, or the folder of a run."),
]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings to change, such as learner.lr=1e-4.", show_default=False)
]


def same(recipe: str, overrides: Sequence[str] | None) -> str:
    """A recipe and its overrides as they are given to another command."""
    return shlex.join([recipe, *(overrides or [])])


def say_next(sentence: str) -> None:
    """Say what to do next. It goes to stderr, because the output of a command may go to a file or a program."""
    Console(stderr=True).print(plain(f"next         {sentence}"), soft_wrap=True)
