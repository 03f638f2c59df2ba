"""GenEval's object detector: a Mask2Former for the 80 classes of COCO, from transformers.

GenEval runs the same weights in mmdet 2. The arithmetic follows mmdet's instance inference (`instance_postprocess` in
maskformer_fusion_head.py of github.com/open-mmlab/mmdetection): the 100 most certain pairs of a query and a class are
objects, a mask is where its logit is above 0, and the score is the class's probability times the mean probability of
the mask's pixels. Transformers' own post-processing is not used, because it works on masks of 384 x 384 pixels.

Deviations: images are resized by Pillow, not OpenCV. Images that are not square are stretched to multiples of 32 pixels
instead of padded.

PyTorch and transformers are imported only when a scorer is built: the driver imports this file to check a recipe.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from services.base.devices import device_of
from services.base.errors import UserError
from services.base.paths import resolve_model
from services.scoring.geneval.colours import Colours, cut_out
from services.scoring.geneval.rule import THRESHOLD, Detection, Wanted, threshold_of

if TYPE_CHECKING:
    import torch

MAX_PAIRS = 100
CLASSES = tuple(Path(__file__).with_name("object_names.txt").read_text().splitlines())
"""GenEval's names of COCO's classes, in COCO's order."""


class Mask2Former:
    """Finds objects, and the colours of those for which the row requests one.

    Args:
        model: the folder or hub id of the detector.
        colours: the colour classifier.
        batch_size: images in one forward. Smaller batches are padded, so that a score does not depend on other images.
        device: `auto` is a GPU if there is one.

    Raises:
        UserError: the model has other classes, or SciPy is not installed.
    """

    classes = frozenset(CLASSES)
    """The classes that it can find."""

    def __init__(self, model: str, colours: Colours, batch_size: int, device: str) -> None:
        if find_spec("scipy") is None:
            raise UserError(
                "scorer geneval: transformers' Mask2Former needs SciPy; run `pip install 'tempflow[geneval]'`, or "
                "name a detector of yours with `url`"
            )
        import torch
        from transformers import Mask2FormerForUniversalSegmentation
        from transformers.models.mask2former.image_processing_pil_mask2former import Mask2FormerImageProcessorPil

        folder = resolve_model(model)
        self.torch, self.device, self.batch_size, self.colours = torch, device_of(device), batch_size, colours
        self.image_processor = Mask2FormerImageProcessorPil.from_pretrained(folder)
        found = Mask2FormerForUniversalSegmentation.from_pretrained(folder, use_safetensors=True)
        self.model = found.eval().to(self.device)
        if (labels := self.model.config.num_labels) != len(CLASSES):
            raise UserError(
                f"scorer geneval: the detector `{model}` has {labels} classes; give a Mask2Former "
                f"for the {len(CLASSES)} classes of COCO's instances"
            )

    def __call__(self, images_NHWC: np.ndarray, wanted: Sequence[Wanted]) -> list[list[Detection]]:
        """The detections in each image, uint8 (N, H, W, 3)."""
        found: list[list[Detection]] = []
        with self.torch.no_grad():
            for start in range(0, len(images_NHWC), self.batch_size):
                found += self._batch(images_NHWC[start : start + self.batch_size])
        self._add_colours(images_NHWC, found, wanted)
        return found

    def _batch(self, images_NHWC: np.ndarray) -> list[list[Detection]]:
        images = [Image.fromarray(image) for image in images_NHWC]
        images += images[:1] * (self.batch_size - len(images))
        pixels_BCHW = self.image_processor(images, return_tensors="pt")["pixel_values"].to(self.device)
        output = self.model(pixel_values=pixels_BCHW)
        seen = zip(output.class_queries_logits, output.masks_queries_logits, strict=True)
        size_HW, input_HW = images_NHWC.shape[1:3], tuple(pixels_BCHW.shape[2:])
        return [self._objects(*one, input_HW, size_HW) for one, _ in zip(seen, images_NHWC, strict=False)]

    def _objects(
        self, logits_QC: torch.Tensor, masks_QHW: torch.Tensor, input_HW: tuple[int, ...], size_HW: tuple[int, ...]
    ) -> list[Detection]:
        """The objects of one image.

        A score is at most the class's probability. So the pairs below the threshold are dropped before their masks are
        enlarged.

        Args:
            logits_QC: of each query, for the 80 classes and "no object".
            masks_QHW: of each query, at a quarter of the model's input.
            input_HW: the height and width of the model's input.
            size_HW: the height and width of the image.
        """
        probability_QC = logits_QC.softmax(-1)[:, :-1]
        best_P, pair_P = probability_QC.flatten().topk(min(MAX_PAIRS, probability_QC.numel()))
        certain_P = best_P > THRESHOLD
        best_P, pair_P = best_P[certain_P], pair_P[certain_P]
        found: list[Detection] = []
        for best, pair in zip(best_P, pair_P.tolist(), strict=True):
            query, label = divmod(pair, len(CLASSES))
            logit_HW = self._enlarged(masks_QHW[query], input_HW, size_HW)
            mask_HW = logit_HW > 0
            if not mask_HW.any():
                continue  # its score would be 0
            score = float(best * logit_HW[mask_HW].sigmoid().sum() / (mask_HW.sum() + 1e-6))
            mask = mask_HW.cpu().numpy()
            found.append({"class": CLASSES[label], "score": score, "box": box_of(mask), "mask": mask})
        return found

    def _enlarged(self, mask_HW: torch.Tensor, *sizes_HW: tuple[int, ...]) -> torch.Tensor:
        """Logits of a mask, resized to one size after the other."""
        for size_HW in sizes_HW:
            resize = self.torch.nn.functional.interpolate
            mask_HW = resize(mask_HW[None, None], size=size_HW, mode="bilinear", align_corners=False)[0, 0]
        return mask_HW

    def _add_colours(self, images_NHWC: np.ndarray, found: Sequence[list[Detection]], wanted: Sequence[Wanted]) -> None:
        """Name the colours of the objects for which a colour is requested, and drop the masks."""
        coloured: list[Detection] = []
        pictures: list[Image.Image] = []
        for image_HWC, detections, want in zip(images_NHWC, found, wanted, strict=True):
            classes = {need["class"] for need in want["include"] if "color" in need}
            for seen in detections:
                mask_HW = seen.pop("mask")
                if seen["class"] in classes and seen["score"] > threshold_of(want):
                    coloured.append(seen)
                    pictures.append(cut_out(image_HWC, mask_HW, seen["box"]))
        names = [seen["class"] for seen in coloured]
        for seen, colour in zip(coloured, self.colours(pictures, names), strict=True):
            seen["color"] = colour

    def probe(self) -> str:
        """Look for objects in one grey image, and return a sentence with the result."""
        began = time.perf_counter()
        grey_1HWC = np.full((1, 512, 512, 3), 128, np.uint8)
        (found,) = self(grey_1HWC, [{"tag": "", "include": [], "exclude": []}])
        return f"{len(found)} objects in a grey image, in {time.perf_counter() - began:.1f} s"


def box_of(mask_HW: np.ndarray) -> list[float]:
    """The box [x0, y0, x1, y1] of a mask that is not empty. x1 and y1 are one more than its last column and row."""
    columns, rows = np.flatnonzero(mask_HW.any(axis=0)), np.flatnonzero(mask_HW.any(axis=1))
    return [float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)]
