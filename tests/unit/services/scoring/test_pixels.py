"""Preprocessing beside the model: the bits of the image processors, and what runs in advance."""

import threading

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from services.scoring.patches import Patches
from services.scoring.pixels import THREADS, Pixels, batches_of, clip_pixels

CPU = torch.device("cpu")
SIZES = [(64, 64), (50, 91), (17, 20), (300, 40)]
CROP = {"height": 48, "width": 48}
CLIPS = {
    "clip": CLIPImageProcessorPil(size={"shortest_edge": 48}, crop_size=CROP),
    "clip that crops more than it has": CLIPImageProcessorPil(size={"shortest_edge": 40}, crop_size=CROP),
    "siglip": SiglipImageProcessorPil(size=CROP),
}
WAIT_S = 60


def images(count: int, size_HW: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *size_HW, 3), np.uint8)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", CLIPS)
def test_clip_sees_the_bits_of_its_processor(kind, size):
    seven = images(7, size)
    first, last = clip_pixels(CLIPS[kind], CPU)(seven, batches_of(7, 5), 5)
    whole_NCHW = CLIPS[kind]([Image.fromarray(image) for image in seven], return_tensors="pt")["pixel_values"]
    assert first.dtype == whole_NCHW.dtype
    assert torch.equal(first, whole_NCHW[:5])
    assert torch.equal(last, whole_NCHW[[5, 6, 5, 5, 5]])


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("pixels", [3136, 20_000])
def test_qwen2_vl_sees_the_bits_of_its_processor(pixels, size):
    four, processor = images(4, size), Qwen2VLImageProcessorPil()
    budget = {"shortest_edge": pixels, "longest_edge": pixels}
    whole = processor([Image.fromarray(image) for image in four], size=budget, return_tensors="pt")
    patches = Patches(processor, pixels, CPU)
    (seen_PD,) = patches.pixels(four, [[0, 1, 2, 3]], 4)
    assert seen_PD.dtype == whole["pixel_values"].dtype
    assert torch.equal(seen_PD, whole["pixel_values"])
    assert whole["image_grid_thw"].tolist() == [[1, *patches.grid(size)]] * 4


class Resizer:
    """Takes the mean of images, and notes which ones it began with."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.changed = threading.Condition()

    def __call__(self, images_NHWC: np.ndarray) -> torch.Tensor:
        with self.changed:
            self.begun += images_NHWC[:, 0, 0, 0].tolist()
            self.changed.notify_all()
        return torch.from_numpy(images_NHWC).float().mean((1, 2, 3))

    def has_begun(self, count: int) -> bool:
        """Whether this many images are begun within a minute."""
        with self.changed:
            return self.changed.wait_for(lambda: len(self.begun) >= count, WAIT_S)


def numbered(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.uint8)[:, None, None, None].repeat(3, axis=3)


def test_the_next_batch_is_resized_while_the_model_works_and_no_further_one():
    resizer = Resizer()
    batches = Pixels(resizer, lambda values: values, CPU)(numbered(12), [[3, 0, 1], [2, 4], [5, 6, 7], [8]], 3)
    seen = []
    for begun in (5, 8, 9, 9):
        seen.append(next(batches).tolist())
        assert resizer.has_begun(begun)
        assert len(resizer.begun) == begun
    assert seen == [[3, 0, 1], [2, 4, 2], [5, 6, 7], [8, 8, 8]]
    assert next(batches, None) is None


def test_the_images_of_a_batch_are_resized_at_the_same_time():
    """Each thread waits until all of them have an image."""
    barrier = threading.Barrier(THREADS, timeout=WAIT_S)

    def resize(images_NHWC: np.ndarray) -> torch.Tensor:
        barrier.wait()
        return torch.zeros(len(images_NHWC))

    batch = range(2 * THREADS)
    (seen,) = Pixels(resize, lambda values: values, CPU)(numbered(2 * THREADS), [batch], 2 * THREADS)
    assert len(seen) == 2 * THREADS


def test_an_image_that_cannot_be_resized_raises_where_it_is_scored():
    def resize(images_NHWC: np.ndarray) -> torch.Tensor:
        if images_NHWC.max() >= 2:
            raise ValueError("too narrow")
        return torch.zeros(len(images_NHWC))

    batches = Pixels(resize, lambda values: values, CPU)(numbered(4), batches_of(4, 2), 2)
    assert len(next(batches)) == 2
    with pytest.raises(ValueError, match="too narrow"):
        next(batches)
