"""`tempflow init`: a folder with a recipe, prompts and a reward to edit."""

import os
from pathlib import Path
from string import Template
from typing import Annotated

import typer

from services.base.errors import UserError
from services.base.plain import plain
from system.commands.arguments import console, say_next

STARTER = Path(__file__).parent / "starter"
PROMPTS = {"train": 256, "heldout": 64}
"""The files of prompts, and how many of the miniature's each begins with: enough for a step of every recipe."""

app = typer.Typer()


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
    recipe: Annotated[str, typer.Option(help="The recipe that yours changes.")] = "shapes",
) -> None:
    """Write a folder with a recipe, prompts and a reward to edit."""
    from system.loop.prompts import read_prompts
    from system.recipe.find import recipe_names
    from system.recipe.load import load_config
    from system.run.outputs import make_output_folder

    if recipe not in recipe_names():
        raise UserError(f"--recipe: tempflow has no recipe `{recipe}`; `tempflow recipes` lists them")
    if os.path.lexists(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"`{folder}` exists and is not an empty folder; name a new one")
    make_output_folder(folder)
    (folder / "prompts").mkdir()
    for file in STARTER.iterdir():
        (folder / file.name).write_text(Template(file.read_text()).substitute(recipe=recipe))
    data = load_config("shapes").data
    for name, count in PROMPTS.items():
        prompts = read_prompts(getattr(data, name)).texts[:count]
        (folder / "prompts" / f"{name}.txt").write_text("".join(f"{prompt}\n" for prompt in prompts))
    console.print(plain(f"wrote {folder}: recipe.yaml, reward.py, prompts/train.txt and prompts/heldout.txt"))
    say_next(f"cd {folder}; tempflow doctor recipe.yaml; tempflow train recipe.yaml")
