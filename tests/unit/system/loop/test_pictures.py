"""Which training images are kept, and in which form."""

import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from actors.rollout.images import ByteBudget, Images
from actors.rollout.results import Generated
from actors.trajectory import Cost, Task, Tree
from system.loop.pictures import (
    LOGGED,
    MAX_IMAGES,
    MAX_SIDE_PX,
    best_and_worst,
    decoded,
    heldout_captions,
    kept_leaves,
    pictures_of,
    small_image,
)


def tree(seeds: int, steps: int, width: int) -> Tree:
    """A trunk for each seed with a fork at each step."""
    count = seeds * steps
    seed_N = np.repeat(np.arange(seeds), steps)
    leaf_NKL = np.arange(count * width).reshape(count, width, 1)
    return Tree(np.tile(np.arange(steps), seeds), seed_N, leaf_NKL, count * width)


@pytest.mark.parametrize(
    ("seeds", "steps", "width", "kept"),
    [(2, 3, 4, 24), (4, 4, 6, 48), (4, 9, 6, 54), (1, 20, 6, MAX_IMAGES), (100, 1, 1, MAX_IMAGES)],
)
def test_whole_trunks_are_kept_while_they_fit(seeds, steps, width, kept):
    assert kept_leaves(tree(seeds, steps, width)) == list(range(kept))


def test_a_chain_keeps_each_image_once_and_no_missing_leaf():
    leaf_NKL = np.array([[[0, -1]], [[0, -1]], [[1, 2]]])
    assert kept_leaves(Tree(np.array([0, 1, 0]), np.array([0, 0, 1]), leaf_NKL, 3)) == [0, 1, 2]


def test_a_small_image_is_kept_bit_for_bit_and_a_large_one_is_shrunk():
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (8, 12, 3), np.uint8)
    with Image.open(io.BytesIO(small_image(small))) as image:
        assert image.format == "PNG"
        assert np.array_equal(np.asarray(image), small)
    with Image.open(io.BytesIO(small_image(np.full((512, 1024, 3), 200, np.uint8)))) as image:
        assert (image.format, image.size) == ("JPEG", (MAX_SIDE_PX, MAX_SIDE_PX // 2))
        assert np.abs(np.asarray(image).astype(int) - 200).max() <= 2


def test_the_table_names_the_task_and_the_leaves():
    pixels = np.arange(6 * 4 * 4 * 3, dtype=np.uint8).reshape(6, 4, 4, 3)
    budget = ByteBudget(10**6)
    assert budget.reserve(pixels.nbytes)
    images = Images(pixels, pixels.nbytes, budget, np.copy)
    job = Generated(Task(0, "a cat", (0, 4, 17), 4), None, tree(1, 3, 2), images, np.ones(6, bool), Cost())
    table = pictures_of(job)
    assert table["prompt_row"].to_pylist() == [17] * 6
    assert table["leaf"].to_pylist() == list(range(6))
    with Image.open(io.BytesIO(table["image"][5].as_py())) as image:
        assert np.array_equal(np.asarray(image), pixels[5])


def test_loggers_get_the_best_and_the_worst_images_without_holes():
    count = LOGGED + 4
    images = [small_image(np.full((4, 4, 3), leaf, np.uint8)) for leaf in range(count)]
    pictures = pa.table({"prompt_row": [3] * count, "leaf": list(range(count)), "image": pa.array(images, pa.binary())})
    rewards = [float("nan"), *(float(leaf) for leaf in range(1, count))]
    columns = {"prompt_row": [3] * count, "prompt": ["a cat"] * count, "leaf": list(range(count)), "reward": rewards}
    found, captions = best_and_worst(
        pictures, pa.table(columns | {"branch_step": [1] * count, "advantage": [0.5] * count})
    )
    assert decoded(found)[:, 0, 0, 0].tolist() == [11, 10, 9, 8, 4, 3, 2, 1]
    assert captions[0] == "a cat · reward 11 · advantage 0.5 · branch step 1"


def test_a_held_out_caption_has_the_prompt_and_the_scores():
    table = pa.table({"row": [0, 1], "prompt": ["a", "b"], "category": ["x", None], "judge": [0.25, float("nan")]})
    assert heldout_captions(table, 2) == ["a · judge 0.25", "b · judge hole"]
    assert heldout_captions(table, 0) == []
