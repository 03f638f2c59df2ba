"""HPSv2 and HPSv2.1: a CLIP ViT-H-14 trained on human preferences (arXiv 2306.09341).

The arithmetic is that of the package `hpsv2` 1.2.0 in fp32: the cosine, without the logit scale. Images become floats
first and are then resized, as in the package with torchvision 0.17 or later. Deviation: on a GPU, the package computes
in half precision.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from services.base.paths import model_file
from services.scoring.clip import DualEncoder, check_clip
from services.scoring.open_clip import to_transformers
from services.scoring.pixels import Pixels
from services.scoring.weights import load_exactly, weights_file

if TYPE_CHECKING:
    import torch

BASE = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"


class HPSv2(DualEncoder):
    """cos(text, image) by HPSv2's weights.

    Args:
        model: the weights as a .safetensors file, converted from HPS_v2.1_compressed.pt of xswu/HPSv2.
        base: the folder or hub id of the CLIP that it was trained from: config, tokenizer and image processor.
        batch_size: images in one forward. Smaller batches are padded.
        device: `auto` is a GPU if there is one.
    """

    def __init__(self, model: str, base: str = BASE, batch_size: int = 16, device: str = "auto") -> None:
        self.weights = weights_file("scorer hpsv2", model)
        super().__init__(base, None, batch_size, device)

    @staticmethod
    def check(model: str, base: str = BASE, **_: object) -> None:
        """Check that the files exist, before any actor starts.

        Raises:
            UserError: the weights or the base are missing. The message names them.
        """
        weights_file("scorer hpsv2", model)
        check_clip("scorer hpsv2", base, None)
        model_file("scorer hpsv2", base, "preprocessor_config.json")

    def _load(self, folder: str) -> Any:
        from safetensors.torch import load_file
        from transformers import CLIPConfig, CLIPModel

        model = CLIPModel(CLIPConfig.from_pretrained(folder))
        load_exactly("scorer hpsv2", model, to_transformers(load_file(self.weights)), self.weights)
        return model

    def _preprocessing(self) -> Pixels:
        import torch

        processor, edge = self.image_processor, self.model.config.vision_config.image_size
        mean_311, std_311 = (
            torch.tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std)
        )

        def resize(images_NHWC: np.ndarray) -> torch.Tensor:
            """(n, 3, edge, edge): the shorter edge is resized to `edge`, and the centre is cropped."""
            pixels_NCHW = torch.from_numpy(images_NHWC).permute(0, 3, 1, 2).float() / 255
            height, width = pixels_NCHW.shape[2:]
            shorter = min(height, width)
            size_HW = [edge * height // shorter, edge * width // shorter]
            pixels_NCHW = torch.nn.functional.interpolate(
                pixels_NCHW, size=size_HW, mode="bicubic", align_corners=False, antialias=True
            )
            top, left = (round((side - edge) / 2) for side in size_HW)
            return (pixels_NCHW[:, :, top : top + edge, left : left + edge] - mean_311) / std_311

        return Pixels(resize, lambda pixels_BCHW: pixels_BCHW, self.device)
