"""The assets that are checked in: safe, small, complete, and loadable by the real classes."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from transformers import AutoProcessor, CLIPModel, CLIPTokenizer

from system.miniature import ASSETS
from system.miniature.build.training.policy import load_policy, sample
from system.miniature.build.training.reward import scores
from system.miniature.judge import Judge
from system.miniature.world import all_scenes, caption, is_held_out, parse

SAFE_KINDS = {".safetensors", ".json", ".txt", ".parquet", ".md"}
LIMIT_BYTES = 40 * 2**20
PROMPTS = [
    "a large red ring on a white background",
    "a small cyan square above a large red ring on a grey background",
]


def test_files_are_safe_and_small() -> None:
    files = [path for path in ASSETS.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= SAFE_KINDS
    assert sum(path.stat().st_size for path in files) <= LIMIT_BYTES


def test_no_file_names_the_folder_it_was_made_in() -> None:
    texts = {path: path.read_text() for path in ASSETS.rglob("*") if path.suffix in {".json", ".md"}}
    assert not [path for path, text in texts.items() if "_name_or_path" in text or "/tmp/" in text]


@pytest.mark.parametrize("folder", ["policy/tokenizer", "policy/tokenizer_2", "reward"])
def test_tokenizer_holds_every_caption(folder: str) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(ASSETS / folder)
    captions = [caption(scene) for category in ("single", "relation") for scene in all_scenes(category)]
    lengths = [len(ids) for ids in tokenizer(captions).input_ids]
    assert max(lengths) == tokenizer.model_max_length


@pytest.mark.parametrize(("name", "least", "held_out"), [("train", 2000, False), ("heldout", 512, True)])
def test_prompt_lists(name: str, least: int, held_out: bool) -> None:
    table = pq.read_table(ASSETS / "prompts" / f"{name}.parquet").to_pydict()
    scenes = [parse(prompt) for prompt in table["prompt"]]
    assert len(scenes) >= least
    assert [scene.category for scene in scenes] == table["category"]
    assert table["category"].count("single") * 4 == len(scenes) * 3
    assert all(is_held_out(scene) == held_out for scene in scenes)


def test_stock_pipeline_agrees_with_the_own_sampler() -> None:
    pipe = StableDiffusion3Pipeline.from_pretrained(ASSETS / "policy", text_encoder_3=None, tokenizer_3=None)
    pipe.set_progress_bar_config(disable=True)
    images = pipe(
        PROMPTS,
        num_inference_steps=10,
        guidance_scale=1.0,
        max_sequence_length=1,
        height=64,
        width=64,
        generator=torch.Generator().manual_seed(3),
        output_type="np",
    ).images
    vae, model, tokenizer = load_policy(ASSETS / "policy")
    own = sample(model, vae, tokenizer, PROMPTS, seed=3)
    assert np.abs(images * 255 - own).max() <= 1.5
    assert Judge()(own, PROMPTS).shape == (2,)


def test_reward_scores_with_the_real_processor() -> None:
    model = CLIPModel.from_pretrained(ASSETS / "reward").eval()
    processor = AutoProcessor.from_pretrained(ASSETS / "reward")
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    inputs = processor(text=PROMPTS, images=list(images), padding="max_length", truncation=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits_per_image.diagonal() / 26
    own = scores(model, processor.tokenizer, images, PROMPTS)
    assert np.allclose(logits.numpy(), own, atol=1e-4)


def test_card_is_there() -> None:
    assert "Measured" in Path(ASSETS / "README.md").read_text()
