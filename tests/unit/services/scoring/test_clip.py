"""The scorer `clip` with a SigLIP model, against plain transformers. tests/parity has its numbers with CLIP."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, SiglipConfig, SiglipModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from services.base.errors import UserError
from services.scoring.clip import Clip
from services.scoring.scorer import check_scorer
from services.scoring.settings import ScorerSettings
from system.bench.gpu.tiny.parts import clip_tokenizer


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


def test_a_tokenizer_that_needs_a_package_is_named(siglip, monkeypatch, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "SiglipTokenizer"}))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'tempflow\[siglip\]'"):
        check_scorer(ScorerSettings(name="clip", scorer="clip", options={"model": str(tmp_path)}))
