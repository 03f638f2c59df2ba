"""The training images that a run keeps: those of a step's first task, small and encoded."""

import io

import numpy as np
import pyarrow as pa
from PIL import Image

from actors.rollout.results import Generated
from actors.trajectory import Tree

MAX_IMAGES = 64
"""The most images that are kept of a task: those of its first trunks."""
MAX_SIDE_PX = 256
"""Larger images are shrunk to this size and stored as JPEG. Smaller ones are stored as PNG, without loss."""
JPEG_QUALITY = 88


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
    image, buffer = Image.fromarray(image_HWC), io.BytesIO()
    if max(image.size) <= MAX_SIDE_PX:
        image.save(buffer, "PNG", compress_level=1)
    else:
        image.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX), reducing_gap=2.0)
        image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()
