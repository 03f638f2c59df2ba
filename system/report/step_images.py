"""The images of some steps, to which the curves link: held-out ones, and the best and the worst training images."""

import io
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from services.base.errors import first_line
from services.http.images import data_url
from system.loop.pictures import best_and_worst, heldout_captions, small_image
from system.report.data import UNREADABLE as UNREADABLE_TABLES
from system.report.data import Run
from system.report.pictures import PIXELATED_SIDE_PX
from system.report.pictures import UNREADABLE as UNREADABLE_PICTURES

MAX_STEPS = 10
"""The most steps with images, spread evenly over those that are kept, so that the page stays small."""
MAX_HELDOUT = 8
"""The most held-out images of a step."""


@dataclass(frozen=True)
class Shot:
    """One encoded image with its caption."""

    content: bytes
    caption: str
    small: bool

    @property
    def uri(self) -> str:
        """The image as a data URI."""
        return data_url(self.content)


@dataclass(frozen=True)
class StepImages:
    """The images of one step."""

    step: int
    heldout: list[Shot]
    training: list[Shot]


def shown_steps(run: Run) -> list[int]:
    """The steps whose images the page shows: evaluated ones with pictures."""
    kept = [step for step in sorted(run.evals) if (run.path / "samples" / f"step_{step:06d}" / "000.png").is_file()]
    if len(kept) <= MAX_STEPS:
        return kept
    return [kept[round(i * (len(kept) - 1) / (MAX_STEPS - 1))] for i in range(MAX_STEPS)]


def step_images(run: Run) -> tuple[list[StepImages], list[str]]:
    """The images of the steps that the page shows, and a sentence for each step whose images cannot be read."""
    found, left_out = [], []
    for step in shown_steps(run):
        heldout: list[Shot] = []
        training: list[Shot] = []
        for name, shots, read in (("samples", heldout, _heldout), ("pictures", training, _training)):
            try:
                shots += read(run, step)
            except (*UNREADABLE_TABLES, *UNREADABLE_PICTURES, KeyError) as error:
                left_out.append(f"{name} of step {step} cannot be read ({first_line(error)}) and are left out.")
        found.append(StepImages(step, heldout, training))
    return found, left_out


def _heldout(run: Run, step: int) -> list[Shot]:
    files = sorted((run.path / "samples" / f"step_{step:06d}").glob("*.png"))[:MAX_HELDOUT]
    shots = []
    for file, caption in zip(files, heldout_captions(run.evals[step], len(files)), strict=False):
        with Image.open(file) as image:
            small = max(image.size) <= PIXELATED_SIDE_PX
            shots.append(Shot(small_image(np.asarray(image.convert("RGB"))), caption, small))
    return shots


def _training(run: Run, step: int) -> list[Shot]:
    file = run.path / "pictures" / f"step_{step:06d}.parquet"
    if not file.is_file():
        return []
    images, captions = best_and_worst(pq.read_table(file), pq.read_table(run.path / "experience" / file.name))
    return [Shot(image, caption, _is_small(image)) for image, caption in zip(images, captions, strict=True)]


def _is_small(content: bytes) -> bool:
    with Image.open(io.BytesIO(content)) as image:
        return max(image.size) <= PIXELATED_SIDE_PX
