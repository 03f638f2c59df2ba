"""`tempflow sample`: images from a recipe's model, in this process."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.base.errors import UserError
from services.base.plain import plain
from system.commands.arguments import Overrides, Recipe, console, say_next

if TYPE_CHECKING:
    from system.recipe.model import RunConfig

app = typer.Typer()


@app.command()
def sample(
    recipe: Recipe,
    prompt: Annotated[list[str], typer.Option(help="A prompt; repeat the option for more.")],
    overrides: Overrides = None,
    adapter: Annotated[
        Path | None, typer.Option(help="The lora/ (or transformer/) folder of a run; without it, the base model.")
    ] = None,
    base_after: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="The base model takes over after this share of the sampling steps, such as 0.8."
        ),
    ] = 1.0,
    count: Annotated[int, typer.Option(min=1, help="Images per prompt.")] = 1,
    seed: Annotated[int | None, typer.Option(min=0, help="The seed of the noise; without it, the recipe's.")] = None,
    output: Annotated[Path, typer.Option(help="The folder for the images.")] = Path("samples"),
) -> None:
    """Generate images in this process, without Ray."""
    from system.recipe.load import load_config

    given = [*(overrides or []), *([] if seed is None else [f"seed={seed}"])]
    for path in run_sample(load_config(recipe, given), prompt, adapter, count, output, base_after):
        console.print(plain(path), soft_wrap=True)
    say_next(f'look at them in {output}, or score them: tempflow score FILE --prompt "…" --recipe {recipe}')


def run_sample(
    config: RunConfig, prompts: list[str], adapter: Path | None, count: int, output: Path, base_after: float = 1.0
) -> list[Path]:
    """Write `count` images per prompt as PNG; equal arguments give equal images. `file_name` names the files.

    Raises:
        UserError: the model or the adapter is missing, or it gives images that are not finite.
    """
    from PIL import Image

    from actors.policy.families.registry import check_size
    from actors.policy.policy import Policy
    from actors.policy.trained import check_trained, read_trained
    from actors.policy.weights import Weights, checksum
    from actors.rollout.worker import Generator
    from system.loop.evaluate import EVAL_STREAM
    from system.run.outputs import make_output_folder

    sampling = replace(config.eval_sampling, base_after=base_after if adapter else 0.0)
    check_size(sampling.of(config.policy), "eval")
    make_output_folder(output, "--output")
    if adapter:
        check_trained(config.policy, adapter, "--adapter")
    generator = Generator(Policy(config.policy, config.seed), config.kernel, config.rollout)
    if adapter:
        arrays = read_trained(adapter, config.policy.lora, "--adapter")
        generator.load(Weights(0, checksum(arrays), arrays))
    repeated = [prompt for prompt in prompts for _ in range(count)]
    addresses = [(config.seed, EVAL_STREAM, i, k) for i in range(len(prompts)) for k in range(count)]
    images_NHWC, finite_N = generator.sample(repeated, addresses, sampling)
    if not finite_N.all():
        raise UserError(
            f"the model gives NaN or infinity for the prompt `{repeated[int(finite_N.argmin())]}`; look at the model's "
            "weights, or try policy.dtype=fp32"
        )
    paths = [output / f"{i:03d}-{file_name(config, prompt, adapter, base_after)}" for i, prompt in enumerate(repeated)]
    for path, image in zip(paths, images_NHWC, strict=True):
        Image.fromarray(image).save(path)
    return paths


def file_name(config: RunConfig, prompt: str, adapter: Path | None, base_after: float) -> str:
    """The name of an image's file, without its number. It says what made the image.

    These are the prompt, the base model or the run of the adapter, the seed, and six digits that depend on all
    settings. So images of the base model and of adapters can share a folder.
    """
    made_by = f"{_word(adapter.resolve().parent.name) if adapter else 'base'}-seed{config.seed}"
    if adapter and 0 < base_after < 1:
        made_by += f"-base-after-{base_after:g}"
    digest = hashlib.blake2b(f"{config!r} {adapter} {base_after} {prompt}".encode(), digest_size=3).hexdigest()
    return f"{_word(prompt)}-{made_by}-{digest}.png"


def _word(text: str) -> str:
    """A text in characters that suit a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower())[:60].strip("-")
