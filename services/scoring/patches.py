"""What Qwen2-VL sees of images: patches of resized images, with the bits of transformers' image processor (PIL).

The processor takes most of its time to map levels to floats and to cut patches. Both run on the model's device here,
and an image is copied to it as bytes, which is an eighth of the processor's floats.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from services.scoring.pixels import Pixels, floats_of, ramp

if TYPE_CHECKING:
    import torch
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil


class Patches:
    """Cuts images into patches.

    Args:
        image_processor: of the model.
        pixels: images are resized to about this number of pixels.
        device: the model's device.
    """

    def __init__(self, image_processor: Qwen2VLImageProcessorPil, pixels: int, device: torch.device) -> None:
        self.processor, self.budget = image_processor, pixels
        self.factor = image_processor.patch_size * image_processor.merge_size
        values = image_processor(
            [ramp()], do_resize=False, patch_size=16, merge_size=1, temporal_patch_size=1, return_tensors="pt"
        )
        self.table_3L = values["pixel_values"].reshape(3, 256).to(device)
        self.pixels = Pixels(self._resize, self._cut, device)
        """Gives the patches of each batch, (patches of all its images, 3 · frames · patch²)."""

    def grid(self, size_HW: tuple[int, int]) -> tuple[int, int]:
        """How many patches an image of this size is high and wide."""
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

        height, width = smart_resize(*size_HW, factor=self.factor, min_pixels=self.budget, max_pixels=self.budget)
        return height // self.processor.patch_size, width // self.processor.patch_size

    def _resize(self, images_NHWC: np.ndarray) -> torch.Tensor:
        import torch
        from transformers.image_utils import SizeDict

        size = SizeDict(shortest_edge=self.budget, longest_edge=self.budget)
        resized = [
            self.processor.resize(image_CHW, size, self.processor.resample, self.factor)
            for image_CHW in np.moveaxis(images_NHWC, -1, 1)
        ]
        return torch.from_numpy(np.stack(resized))

    def _cut(self, levels_BCHW: torch.Tensor) -> torch.Tensor:
        """Patches row by row, but those that the model merges are next to each other. A patch has each frame twice."""
        merge, patch, frames = self.processor.merge_size, self.processor.patch_size, self.processor.temporal_patch_size
        count, _, height, width = levels_BCHW.shape
        tall, wide = height // self.factor, width // self.factor
        values = floats_of(self.table_3L, levels_BCHW).reshape(count, 3, tall, merge, patch, wide, merge, patch)
        one_frame = values.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6)
        return one_frame.expand(-1, -1, -1, -1, -1, -1, frames, -1, -1).flatten(5).flatten(0, 4)
