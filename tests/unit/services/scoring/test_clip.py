"""CLIP and SigLIP scorers: SigLIP against plain transformers, and the bits and calls of both text towers.

tests/parity has the numbers of `clip` with CLIP.
"""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, SiglipConfig, SiglipModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from services.base.errors import UserError
from services.scoring.clip import Clip, DualEncoder
from services.scoring.pickscore import PickScore
from services.scoring.scorer import check_scorer
from services.scoring.settings import ScorerSettings
from system.bench.gpu.tiny.parts import clip_tokenizer
from system.miniature import ASSETS


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("siglip")
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = tower | {"vocab_size": 514, "max_position_embeddings": 16, "projection_size": 16}
    config = SiglipConfig(text_config=text, vision_config=tower | {"image_size": 32, "patch_size": 8})
    SiglipModel(config).save_pretrained(folder)
    clip_tokenizer().save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@torch.no_grad()
def test_siglip_equals_plain_transformers(siglip):
    """The logits are scale · cosine + bias. Texts are padded to the full length, and the padding is read."""
    scorer = Clip(str(siglip), batch_size=4, device="cpu")
    images = np.random.default_rng(0).integers(0, 256, (7, 24, 40, 3), np.uint8)
    prompts = [f"prompt {i}" for i in range(7)]
    model = SiglipModel.from_pretrained(siglip).eval()
    tokenizer = AutoTokenizer.from_pretrained(siglip)
    expected = []
    for image, prompt in zip(images, prompts, strict=True):
        ids = tokenizer(prompt, padding="max_length", max_length=16, return_tensors="pt").input_ids
        pixels = np.array(Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC)) / 255 * 2 - 1
        pixels_1CHW = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
        logit = model(input_ids=ids, pixel_values=pixels_1CHW).logits_per_image
        expected.append(float((logit - model.logit_bias) / model.logit_scale.exp()))
    np.testing.assert_allclose(scorer(images, prompts), expected, atol=1e-6)
    assert np.ptp(expected) > 1e-4
    assert scorer(images, prompts).tolist() == [scorer(images[i : i + 1], prompts[i : i + 1])[0] for i in range(7)]


def forwards(module: torch.nn.Module) -> list[int]:
    """A list that gets the number of rows of each forward of a module from now on."""
    rows: list[int] = []
    module.register_forward_hook(lambda module, given, output: rows.append(len(output.last_hidden_state)))
    return rows


@torch.no_grad()
def by_the_whole_model(scorer: DualEncoder, images: np.ndarray, prompts: list[str]) -> list[float]:
    """Cosines by the model's own forward, in batches that embed the text of every image, the last one padded."""
    cosines: list[float] = []
    for start in range(0, len(prompts), scorer.batch_size):
        part = slice(start, start + scorer.batch_size)
        count = len(prompts[part])
        pictures = [*images[part], *images[start : start + 1].repeat(scorer.batch_size - count, axis=0)]
        texts = prompts[part] + prompts[start : start + 1] * (scorer.batch_size - count)
        tokens = scorer.tokenizer(
            texts, padding="max_length", truncation=True, max_length=scorer.max_length, return_tensors="pt"
        )
        mask = {} if scorer.is_siglip else {"attention_mask": tokens.attention_mask}
        pixels_BCHW = scorer.image_processor([Image.fromarray(picture) for picture in pictures], return_tensors="pt")
        output = scorer.model(input_ids=tokens.input_ids, **pixels_BCHW, **mask)
        cosines += (output.text_embeds * output.image_embeds).sum(-1)[:count].tolist()
    return cosines


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_text_that_is_embedded_once_gives_the_bits_of_the_whole_model(siglip, kind):
    scorer = Clip(str(siglip if kind == "siglip" else ASSETS / "reward"), batch_size=4, device="cpu")
    images = np.random.default_rng(0).integers(0, 256, (10, 64, 80, 3), np.uint8)
    prompts = [f"a red circle and {i % 3} blue squares" for i in range(10)]
    expected = by_the_whole_model(scorer, images, prompts)
    assert len(set(expected)) == 10
    for _ in range(2):
        assert scorer(images, prompts).tolist() == expected


def test_the_images_of_one_prompt_take_one_forward_of_the_text_tower():
    """216 images, the siblings of a task, in requests of 64 as the pool sends them."""
    scorer = PickScore(str(ASSETS / "reward"), device="cpu")
    texts, pictures = forwards(scorer.model.text_model), forwards(scorer.model.vision_model)
    images = np.random.default_rng(0).integers(0, 256, (216, 16, 16, 3), np.uint8)
    for start in range(0, 216, 64):
        part = images[start : start + 64]
        assert np.isfinite(scorer(part, ["a red circle"] * len(part))).all()
    assert texts == [scorer.batch_size]
    assert pictures == [scorer.batch_size] * 14


def test_a_tokenizer_that_needs_a_package_is_named(siglip, monkeypatch, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "SiglipTokenizer"}))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'tempflow\[siglip\]'"):
        check_scorer(ScorerSettings(name="clip", scorer="clip", options={"model": str(tmp_path)}))
