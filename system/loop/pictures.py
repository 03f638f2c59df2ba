"""The training images that a run keeps: those of a step's first task, small and encoded."""

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from actors.rollout.results import Generated
from actors.trajectory import Tree
from services.http.images import encode_image, encode_shrunk
from system.loop.evaluation import NOT_SCORES

MAX_IMAGES = 64
"""The most images that are kept of a task: those of its first trunks."""
MAX_SIDE_PX = 256
"""Larger images are shrunk to this size and stored as JPEG. Smaller ones are stored as PNG, without loss."""
LOGGED = 8
"""The most training images of a step that loggers receive."""


def pictures_of(job: Generated) -> pa.Table:
    """The images of a task that are kept. Columns: prompt_row, leaf, image (an encoded file)."""
    kept = kept_leaves(job.tree)
    images_MHWC = job.images.pixels()
    return pa.table(
        {
            "prompt_row": pa.array([job.task.address[2]] * len(kept), pa.int64()),
            "leaf": pa.array(kept, pa.int64()),
            "image": pa.array([small_image(images_MHWC[leaf]) for leaf in kept], pa.binary()),
        }
    )


def kept_leaves(tree: Tree) -> list[int]:
    """The leaves of the first trunks, in order: whole trunks while at most MAX_IMAGES fit, and at least one trunk."""
    kept: list[int] = []
    for seed in np.unique(tree.seed_N):
        leaves = np.unique(tree.leaf_NKL[tree.seed_N == seed])
        more = leaves[leaves >= 0].tolist()
        if kept and len(kept) + len(more) > MAX_IMAGES:
            break
        kept += more
    return kept[:MAX_IMAGES]


def small_image(image_HWC: np.ndarray) -> bytes:
    """Encode uint8 (H, W, 3), shrunk if it is large."""
    if max(image_HWC.shape[:2]) <= MAX_SIDE_PX:
        return encode_image(image_HWC)
    return encode_shrunk(Image.fromarray(image_HWC), MAX_SIDE_PX)


def heldout_captions(table: pa.Table, count: int) -> list[str]:
    """The prompts and the scores of the first held-out images.

    Args:
        table: of an evaluation.
    """
    captions = []
    for line in table.slice(0, count).to_pylist():
        scores = {name: value for name, value in line.items() if name not in NOT_SCORES}
        captions.append(
            " · ".join([str(line["prompt"]), *(f"{name} {_said(value)}" for name, value in scores.items())])
        )
    return captions


def best_and_worst(pictures: pa.Table, experience: pa.Table) -> tuple[list[bytes], list[str]]:
    """The kept images with the best and the worst rewards, as encoded files, the best first, and their captions."""
    lines: dict[tuple[int, int], dict[str, Any]] = {}
    for line in experience.to_pylist():
        lines.setdefault((line["prompt_row"], line["leaf"]), line)
    kept = [(row["image"], lines[row["prompt_row"], row["leaf"]]) for row in pictures.to_pylist()]
    known = [(image, line) for image, line in kept if line["reward"] is not None and not math.isnan(line["reward"])]
    known.sort(key=lambda item: -item[1]["reward"])
    half = LOGGED // 2
    chosen = known if len(known) <= LOGGED else known[:half] + known[-half:]
    captions = []
    for _, line in chosen:
        said = f"reward {_said(line['reward'])} · advantage {_said(line['advantage'])}"
        captions.append(f"{line['prompt']} · {said} · branch step {line['branch_step']}")
    return [image for image, _ in chosen], captions


def decoded(images: Sequence[bytes]) -> np.ndarray:
    """The pixels of encoded images of one size, (N, H, W, 3) uint8."""
    pixels = []
    for image in images:
        with Image.open(io.BytesIO(image)) as opened:
            pixels.append(np.asarray(opened.convert("RGB")))
    return np.stack(pixels) if pixels else np.zeros((0, 1, 1, 3), np.uint8)


def _said(value: float | None) -> str:
    """A number with four significant digits, or `hole`."""
    return "hole" if value is None or math.isnan(value) else f"{value:.4g}"
