"""Images of the same prompts and noise before and after training, encoded for the page."""

import struct
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from services.base.errors import first_line
from services.http.images import data_url, encode_shrunk, kind_of
from system.recipe.evaluation import DEFAULT_SET
from system.report.data import Run, change_of, number
from system.run.files import samples_folder

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

    def change(self, scorer: str) -> float:
        """The change from the first picture to the last."""
        return change_of([picture.scores[scorer] for picture in self.pictures])


def before_after(run: Run, name: str = DEFAULT_SET) -> tuple[list[BeforeAfter], list[str]]:
    """The kept pictures of the first and the last evaluation, in the order of the file, without selection.

    Args:
        name: the name of the held-out set.

    Returns:
        the pictures of each prompt, and a sentence for each prompt with a picture that cannot be read.
    """
    evals = run.all_sets.get(name)
    if not evals:
        return [], []
    steps, scorers = sorted({min(evals), max(evals)}), run.scorers_of(evals)
    prompts = evals[steps[0]]["prompt"].to_pylist()
    found: list[BeforeAfter] = []
    left_out: list[str] = []
    for index in range(min(len(evals[step]) for step in steps)):
        files = [samples_folder(run.path, step, name) / f"{index:03d}.png" for step in steps]
        if not all(file.is_file() for file in files):
            break
        try:
            pictures = [
                _picture(step, file, {scorer: number(evals[step][scorer][index].as_py()) for scorer in scorers})
                for step, file in zip(steps, files, strict=True)
            ]
            found.append(BeforeAfter(str(prompts[index]), pictures))
        except UNREADABLE as error:
            names = " or ".join(file.relative_to(run.path).as_posix() for file in files)
            left_out.append(f"{names} cannot be read ({first_line(error)}): picture {index} is left out.")
    return found, left_out


def _picture(step: int, path: Path, scores: dict[str, float | None]) -> Picture:
    with Image.open(path) as image:
        image.load()
        side, content = max(image.size), _encoded(path, image)
    return Picture(step, content, side <= PIXELATED_SIDE_PX, scores)


def _encoded(path: Path, image: Image.Image) -> bytes:
    """The bytes of an image that is small enough for a page."""
    return path.read_bytes() if max(image.size) <= MAX_SIDE_PX else encode_shrunk(image, MAX_SIDE_PX)
