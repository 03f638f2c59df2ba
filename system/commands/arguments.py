"""What the commands share: the arguments that name a recipe, and the console that they print to."""

from typing import Annotated

import typer
from rich.console import Console

console = Console()

Recipe = Annotated[
    str,
    typer.Argument(help="A recipe: a name that `tempflow recipes` lists, a YAML file, or the folder of a run."),
]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings to change, such as learner.lr=1e-4.", show_default=False)
]
