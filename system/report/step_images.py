"""The images of some steps, to which the curves link: held-out ones, and the best and the worst training images."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from services.base.errors import first_line
from services.http.images import data_url
from system.loop.pictures import best_and_worst, heldout_captions, small_image
from system.recipe.evaluation import DEFAULT_SET
from system.report.data import UNREADABLE as UNREADABLE_TABLES
from system.report.data import Run
from system.report.pictures import PIXELATED_SIDE_PX
from system.report.pictures import UNREADABLE as UNREADABLE_PICTURES
from system.run.files import samples_folder

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
    shots: dict[str, list[Shot]]
    """The images of each held-out set and of training, by the title under which they are shown."""


def shown_steps(run: Run) -> list[int]:
    """The steps whose images the page shows: evaluated ones with pictures."""
    kept = sorted(
        {
            step
            for name, evals in run.all_sets.items()
            for step in evals
            if (samples_folder(run.path, step, name) / "000.png").is_file()
        }
    )
    if len(kept) <= MAX_STEPS:
        return kept
    return [kept[round(i * (len(kept) - 1) / (MAX_STEPS - 1))] for i in range(MAX_STEPS)]


def step_images(run: Run) -> tuple[list[StepImages], list[str]]:
    """The images of the steps that the page shows, and a sentence for each step whose images cannot be read."""
    found, left_out = [], []
    for step in shown_steps(run):
        shots: dict[str, list[Shot]] = {}
        readers: dict[str, tuple[str, Callable[[], list[Shot]]]] = {}
        for name in run.all_sets:
            readers[_title(name)] = ("samples", partial(_heldout, run, step, name))
        readers["Training"] = ("pictures", partial(_training, run, step))
        for title, (folder, read) in readers.items():
            try:
                shots[title] = read()
            except (*UNREADABLE_TABLES, *UNREADABLE_PICTURES, KeyError) as error:
                left_out.append(f"{folder} of step {step} cannot be read ({first_line(error)}) and are left out.")
        found.append(StepImages(step, shots))
    return found, left_out


def _title(name: str) -> str:
    return "Held out" if name == DEFAULT_SET else f"The set {name}"


def _heldout(run: Run, step: int, name: str) -> list[Shot]:
    if step not in run.all_sets[name]:
        return []
    files = sorted(samples_folder(run.path, step, name).glob("*.png"))[:MAX_HELDOUT]
    shots = []
    for file, caption in zip(files, heldout_captions(run.all_sets[name][step], len(files)), strict=False):
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
