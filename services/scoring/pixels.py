"""Makes what a model sees of images. The CPU resizes the next images while the model works.

An image processor of transformers resizes with PIL. It then maps each level (0 to 255) of each channel to a float, on
the CPU in fp64. Here, a table that the processor itself fills does this on the model's device, with the same bits.
Processors that resize on tensors give other pixel values, by up to 9 levels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    import torch

THREADS = 4
"""Threads that resize the images of a batch. Resizing does not hold Python's lock."""
AHEAD = 1
"""Batches that are resized in advance."""


Places = Sequence[int] | np.ndarray
"""The places of the images of a batch among all images."""


class Pixels:
    """Turns images into batches of what a model sees.

    Args:
        resize: turns uint8 (n, H, W, 3) into a CPU tensor (n, …). Threads call it, and n does not change an image's
            bits.
        finish: turns a batch of resized images, on the model's device, into what the model sees.
        device: the model's device.
    """

    def __init__(
        self,
        resize: Callable[[np.ndarray], torch.Tensor],
        finish: Callable[[torch.Tensor], torch.Tensor],
        device: torch.device,
    ) -> None:
        self.resize, self.finish, self.device = resize, finish, device
        self.threads = ThreadPoolExecutor(THREADS, "pixels")

    def __call__(self, images_NHWC: np.ndarray, batches: Sequence[Places], size: int) -> Iterator[torch.Tensor]:
        """What the model sees of each batch, (size, …). The free rows of a batch repeat its first image.

        When a batch is taken, the threads already have the next one.

        Args:
            batches: the places of 1 to `size` images each.
        """
        started: deque[list[Future[torch.Tensor]]] = deque()
        for batch in batches:
            parts = np.array_split(np.asarray(batch), min(THREADS, len(batch)))
            started.append([self.threads.submit(self._resize, images_NHWC, part) for part in parts])
            if len(started) > AHEAD:
                yield self._batch(started.popleft(), size)
        while started:
            yield self._batch(started.popleft(), size)

    def _resize(self, images_NHWC: np.ndarray, places: np.ndarray) -> torch.Tensor:
        return self.resize(images_NHWC[places])

    def _batch(self, parts: list[Future[torch.Tensor]], size: int) -> torch.Tensor:
        import torch

        resized = torch.cat([part.result() for part in parts])
        padding = resized[:1].expand(size - len(resized), *resized.shape[1:])
        return self.finish(torch.cat([resized, padding]).to(self.device))


def batches_of(count: int, size: int) -> list[range]:
    """The places 0 to `count` in batches of `size`. The last batch may be smaller."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def clip_pixels(image_processor: Any, device: torch.device) -> Pixels:
    """The pixels (B, 3, H, W) that an image processor of CLIP or SigLIP (PIL) computes, with its bits."""

    def resize(images_NHWC: np.ndarray) -> torch.Tensor:
        images = [Image.fromarray(image) for image in images_NHWC]
        resized = image_processor(images, do_rescale=False, do_normalize=False, return_tensors="pt")
        return resized["pixel_values"]

    values = image_processor([ramp()], do_resize=False, do_center_crop=False, return_tensors="pt")["pixel_values"]
    table_3L = values.reshape(3, 256).to(device)
    return Pixels(resize, lambda levels_BCHW: floats_of(table_3L, levels_BCHW), device)


def ramp() -> Image.Image:
    """A picture of 16 by 16 pixels that has each level once in each channel, in order."""
    return Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2))


def floats_of(table_3L: torch.Tensor, levels_BCHW: torch.Tensor) -> torch.Tensor:
    """Replace each level, uint8 (B, 3, H, W), by the float that a table (3, 256) has for it in its channel."""
    import torch

    channel_311 = torch.arange(3, device=table_3L.device)[:, None, None]
    return table_3L.take(levels_BCHW + 256 * channel_311)
