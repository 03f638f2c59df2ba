"""`tempflow from-flow-grpo`: the recipe of a configuration of flow_grpo."""

from pathlib import Path
from typing import Annotated

import typer

from services.base.errors import UserError
from system.commands.arguments import say_next

app = typer.Typer()


@app.command()
def from_flow_grpo(
    config: Annotated[
        str, typer.Argument(help="A configuration file and one of its functions, such as config/grpo.py:pickscore_sd3.")
    ],
) -> None:
    """Print the recipe of a flow_grpo configuration. The file is read, never run."""
    from system.flow_grpo.convert import convert_file

    file, _, name = config.rpartition(":")
    if not file or not name.isidentifier():
        raise UserError(f"`{config}`: write the file and the function, such as config/grpo.py:pickscore_sd3")
    typer.echo(convert_file(Path(file), name), nl=False)
    say_next("write this to mine.yaml; tempflow plan mine.yaml; tempflow doctor mine.yaml")
