"""`tempflow sample`: images from a recipe's model, in this process."""

import hashlib
import re
from pathlib import Path

from PIL import Image

from actors.policy.weights import Weights, checksum
from services.base.errors import UserError
from system.loop.evaluate import EVAL_STREAM
from system.recipe.model import RunConfig
from system.run.outputs import make_output_folder


def run_sample(config: RunConfig, prompts: list[str], adapter: Path | None, count: int, output: Path) -> list[Path]:
    """Write `count` images a prompt as PNG; equal arguments give equal images.

    A file's name says what made it: the prompt, the base or the run of the adapter, the seed, and six digits that
    follow from all settings. So images of the base and of adapters lie side by side.

    Raises:
        UserError: the model or the adapter is missing, or gives images that are not finite.
    """
    from actors.policy.families import check_size
    from actors.policy.policy import Policy
    from actors.policy.trained import check_trained, read_trained
    from actors.rollout.worker import Generator

    check_size(config.policy)
    make_output_folder(output, "--output")
    if adapter:
        check_trained(config.policy, adapter, "--adapter")
    generator = Generator(Policy(config.policy, config.seed), config.kernel, config.rollout)
    if adapter:
        arrays = read_trained(adapter, config.policy.lora, "--adapter")
        generator.load(Weights(0, checksum(arrays), arrays))
    repeated = [prompt for prompt in prompts for _ in range(count)]
    addresses = [(config.seed, EVAL_STREAM, i, k) for i in range(len(prompts)) for k in range(count)]
    images_NHWC, (finite_N, _) = generator.sample(repeated, addresses, config.eval_steps, base=adapter is None)
    if not finite_N.all():
        raise UserError(
            f"the model gives NaN or infinity for the prompt `{repeated[int(finite_N.argmin())]}`; look at the model's "
            "weights, or try policy.dtype=fp32"
        )
    made_by = f"{_word(adapter.resolve().parent.name) if adapter else 'base'}-seed{config.seed}"
    paths = []
    for i, (prompt, image) in enumerate(zip(repeated, images_NHWC, strict=True)):
        digest = hashlib.blake2b(f"{config!r} {adapter} {prompt}".encode(), digest_size=3).hexdigest()
        path = output / f"{i:03d}-{_word(prompt)}-{made_by}-{digest}.png"
        Image.fromarray(image).save(path)
        paths.append(path)
    return paths


def _word(text: str) -> str:
    """A text as a part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower())[:60].strip("-")
