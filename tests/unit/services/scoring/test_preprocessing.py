"""What a CLIP scorer's model sees: the same pixel values whatever packages are installed.

Transformers has two back ends for an image processor, PIL and torchvision, whose resized pixels differ by a grey level
here and there. `CLIPImageProcessor` is one or the other, by whether torchvision is installed.
"""

import ast
import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from services.scoring.clipscore import ClipScore
from services.scoring.hpsv3 import HPSv3
from services.scoring.pickscore import PickScore
from system.bench.gpu.tiny.parts import clip_tokenizer
from system.miniature import ASSETS
from tests.helpers.paths import ROOT

ROOMS = ("system", "actors", "services")
CHOSEN_BY_PACKAGES = re.compile(r"\w*ImageProcessor(Fast)?|Auto(Image|Video)?Processor|\w*VideoProcessor")
"""Names of transformers that are another back end where torchvision is installed."""
EDGE = 24
"""The scorer resizes the shorter edge to it, and crops a square of it."""
MEAN = np.float32([0.48145466, 0.4578275, 0.40821073])
STD = np.float32([0.26862954, 0.26130258, 0.27577711])
DIGESTS = {
    (64, 64): "6f073ed1099391681b3a5e9e9a9a8c2dd87895db1eaedbc2bcfe4ae948795467",
    (40, 56): "fc912ab6892aa9a639940933c50bc30fdfc3246744a0d6ae517c392235f1a3af",
    (71, 33): "885f01aea88f4ac915d03de8c37125c51da3e67a07ce4fa2ef894a1952b5e485",
    (18, 20): "683c8d10d01dcf4ae93a1aad95086e3d91e1ad96fbad0b9d5ebb08ed473bbbe1",
}
"""Height and width of a picture, and the SHA-256 of the fp32 values (3, EDGE, EDGE) that the model must see of it."""


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = tower | {"vocab_size": 514, "max_position_embeddings": 16, "bos_token_id": 512, "eos_token_id": 513}
    vision = tower | {"image_size": EDGE, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)
    clip_tokenizer().save_pretrained(folder)
    crop = {"height": EDGE, "width": EDGE}
    CLIPImageProcessorPil(size={"shortest_edge": EDGE}, crop_size=crop).save_pretrained(folder)
    return folder


def picture(height: int, width: int) -> np.ndarray:
    """uint8 (height, width, 3) by a formula in integers: edges, slopes and a texture, in each channel another."""
    y, x, c = np.ogrid[:height, :width, :3]
    return ((x * x * (3 + c) + y * (7 + 2 * c) * x + y * y * y + 90 * c) % 256).astype(np.uint8)


def seen_by_the_model(scorer: PickScore | ClipScore, image_HWC: np.ndarray) -> np.ndarray:
    """The pixel values (3, EDGE, EDGE) that the scorer hands to its model."""
    seen: list[torch.Tensor] = []
    hook = scorer.model.vision_model.register_forward_pre_hook(
        lambda model, args, kwargs: seen.append(kwargs["pixel_values"]), with_kwargs=True
    )
    scorer(image_HWC[None], ["a prompt"])
    hook.remove()
    (pixels_1CHW,) = seen
    return pixels_1CHW[0].numpy()


def by_hand(image_HWC: np.ndarray) -> np.ndarray:
    """Resize by PIL, crop the centre, and normalise: (3, EDGE, EDGE) fp32."""
    height, width = image_HWC.shape[:2]
    size_WH = (EDGE, EDGE * height // width) if width <= height else (EDGE * width // height, EDGE)
    resized_HWC = np.array(Image.fromarray(image_HWC).resize(size_WH, Image.Resampling.BICUBIC))
    top, left = (resized_HWC.shape[0] - EDGE) // 2, (resized_HWC.shape[1] - EDGE) // 2
    cropped_HWC = resized_HWC[top : top + EDGE, left : left + EDGE]
    share_HWC = (cropped_HWC.astype(np.float64) / 255).astype(np.float32)
    return ((share_HWC - MEAN) / STD).transpose(2, 0, 1)


@pytest.mark.parametrize("kind", [PickScore, ClipScore])
@pytest.mark.parametrize("size", DIGESTS, ids=str)
def test_the_model_sees_these_pixel_values(clip_folder, kind, size):
    image_HWC = picture(*size)
    pixels_CHW = seen_by_the_model(kind(str(clip_folder), batch_size=1, device="cpu"), image_HWC)
    np.testing.assert_array_equal(pixels_CHW, by_hand(image_HWC))
    assert hashlib.sha256(np.ascontiguousarray(pixels_CHW).tobytes()).hexdigest() == DIGESTS[size]


def test_the_back_end_is_named(clip_folder):
    for kind in (PickScore, ClipScore):
        assert type(kind(str(clip_folder), device="cpu").image_processor) is CLIPImageProcessorPil
    hps = ASSETS / "hps"
    hpsv3 = HPSv3(str(hps), str(hps / "base"), str(hps / "instruction.txt"), device="cpu")
    assert type(hpsv3.image_processor) is Qwen2VLImageProcessorPil


def test_no_file_of_the_product_leaves_the_back_end_to_what_is_installed():
    found = [
        f"{file.relative_to(ROOT)}: {name.name}"
        for room in ROOMS
        for file in sorted((ROOT / room).rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "transformers"
        for name in node.names
        if CHOSEN_BY_PACKAGES.fullmatch(name.name)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        ("CLIPImageProcessor", True),
        ("Qwen2VLImageProcessorFast", True),
        ("AutoImageProcessor", True),
        ("AutoProcessor", True),
        ("CLIPImageProcessorPil", False),
        ("CLIPProcessor", False),
    ],
)
def test_the_walk_knows_which_names_those_are(name, chosen):
    assert bool(CHOSEN_BY_PACKAGES.fullmatch(name)) == chosen
