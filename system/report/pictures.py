"""Images of the same prompts and noise before and after training, encoded for the page."""

import struct
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from services.base.errors import first_line
from services.http.images import data_url, encode_shrunk, kind_of
from system.report.data import Run, number

MAX_SIDE_PX = 512
"""Larger images are shrunk to this size and stored as JPEG, so that the page stays small."""
PIXELATED_SIDE_PX = 128
"""Images up to this size are shown with sharp pixels, not smoothed."""
UNREADABLE = (OSError, ValueError, SyntaxError, struct.error)
"""Errors that reading a torn picture raises."""


@dataclass(frozen=True)
class Picture:
    """One image, encoded, and the step that it belongs to."""

    step: int
    content: bytes
    """A PNG, or a JPEG if it was shrunk."""
    small: bool
    scores: dict[str, float | None]

    @property
    def uri(self) -> str:
        """The image as a data URI."""
        return data_url(self.content)

    @property
    def kind(self) -> str:
        """`png` or `jpeg`."""
        return kind_of(self.content)


@dataclass(frozen=True)
class BeforeAfter:
    """One prompt's images before and after. While there is only one evaluation, the first image alone."""

    prompt: str
    pictures: list[Picture]


def before_after(run: Run) -> tuple[list[BeforeAfter], list[str]]:
    """The kept pictures of the first and the last evaluation, in the order of the file, without selection.

    Returns:
        the pictures of each prompt, and a sentence for each prompt with a picture that cannot be read.
    """
    if not run.evals:
        return [], []
    steps = sorted({min(run.evals), max(run.evals)})
    prompts = run.evals[steps[0]]["prompt"].to_pylist()
    found: list[BeforeAfter] = []
    left_out: list[str] = []
    for index in range(min(len(run.evals[step]) for step in steps)):
        files = [_file(run, step, index) for step in steps]
        if not all(file.is_file() for file in files):
            break
        try:
            found.append(BeforeAfter(str(prompts[index]), [_picture(run, step, index) for step in steps]))
        except UNREADABLE as error:
            names = " or ".join(file.relative_to(run.path).as_posix() for file in files)
            left_out.append(f"{names} cannot be read ({first_line(error)}): picture {index} is left out.")
    return found, left_out


def _file(run: Run, step: int, index: int) -> Path:
    return run.path / "samples" / f"step_{step:06d}" / f"{index:03d}.png"


def _picture(run: Run, step: int, index: int) -> Picture:
    path, table = _file(run, step, index), run.evals[step]
    with Image.open(path) as image:
        image.load()
        side, content = max(image.size), _encoded(path, image)
    scores = {name: number(table[name][index].as_py()) for name in run.scorers}
    return Picture(step, content, side <= PIXELATED_SIDE_PX, scores)


def _encoded(path: Path, image: Image.Image) -> bytes:
    """The bytes of an image that is small enough for a page."""
    return path.read_bytes() if max(image.size) <= MAX_SIDE_PX else encode_shrunk(image, MAX_SIDE_PX)
