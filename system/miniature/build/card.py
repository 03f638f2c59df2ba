"""Writes the card, the page about the assets, from the stages' figures and measurements of the finished assets."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import torch
from transformers import CLIPModel

from system.miniature.build.figures import read_figures
from system.miniature.build.measure import (
    REWARD_PROMPTS,
    REWARD_SEEDS,
    Score,
    measure_policy,
    measure_rewards,
    measure_speeds,
    measure_world,
)
from system.miniature.build.training.hps import load_hps
from system.miniature.build.training.policy import MISLABELLING, load_policy
from system.miniature.build.training.reward import scores
from system.miniature.world import all_scenes

CLASSES = {"hps": "Qwen2VLModel and a head"}

CARD = """# Shapes: the card of the miniature

Small models with the architectures of Stable Diffusion 3.5, PickScore and HPSv3, for a world of coloured shapes at
64x64 pixels. `python -m system.miniature.build` made them, measured them, and wrote this page.

## Parts

| Part | Class | Parameters |
|---|---|---|
{parts}

- `policy/` loads with `StableDiffusion3Pipeline.from_pretrained(folder, text_encoder_3=None, tokenizer_3=None)` and is
  called with `max_sequence_length=1, height=64, width=64`: the zero block in place of the missing T5 is one token.
- `reward/` has the layout of PickScore_v1. The score is exp(logit_scale) * cos(text, image) / 26.
- `hps/` has the layout and the keys of HPSv3: a checkpoint, and in `base/` the Qwen2-VL's config, tokenizer and image
  processor. The score is the mean of a Gaussian.
- `prompts/` has train.parquet and heldout.parquet with the columns `prompt` and `category`, and three single objects
  per relation. There are {singles} single-object captions, so they repeat. Each (colour, shape) on one of the four
  backgrounds, and four ordered pairs of colours, are held out: no train caption has any of them.

## How it was made

| Stage | Steps | Minutes | Threads | Seed |
|---|---|---|---|---|
{stages}

- The autoencoder was trained on renderings of train scenes and some clutter, with pixel error and a KL term of small
  weight. It has no perceptual or adversarial loss.
- The policy was trained by flow matching on renderings of train scenes, together with both text encoders. One caption
  in ten was empty. In a second stage (mislabel), a share of {mislabelled} of the captions came from other images, as
  with captions from the web. The policy therefore trusts captions too little. This fault is deliberate, so that a
  reward has something to improve. One change corrects it for all captions, as the result with guidance shows below.
- The reward was trained on captions with hard negatives, then on preference pairs: renderings against altered and
  spoiled ones, and pairs of the policy's own branches for train captions, which the judge has graded.
  Pairs of right images are ties, so that the reward learns no preference between them.
- The small HPSv3 (hps) was trained on the same pairs only, by HPSv3's ranking loss on [mean, ln sigma] of two images.

## Measured

| Figure | Value |
|---|---|
{figures}

Policy: one image of each prompt in heldout.parquet, 10 Euler steps, no guidance. Rewards: {reward_images} such images
of {reward_prompts} held-out captions. A pair is a right and a wrong image of one caption.

## Known to be weak

- The judge knows only this world. It needs flat colours: a right shape in a wrong tint counts as wrong.
- The rewards were trained on flat shapes and a list of corruptions. Other images have no meaningful score. The rewards
  are learned and can be hacked; the judge shows this.
- Held-out combinations recombine known words. They do not show how the policy would do with new words.
- Accuracy is measured on {policy_images} images, with a standard error of about two percentage points.
"""


def write_card(out: Path) -> None:
    """Measure the assets in `out` and write README.md."""
    vae, model, tokenizer = load_policy(out / "policy")
    reward, hps = CLIPModel.from_pretrained(out / "reward", use_safetensors=True).eval(), load_hps(out / "hps")
    table = pq.read_table(out / "prompts" / "heldout.parquet").to_pydict()
    figures = {**measure_world(vae), **measure_policy(vae, model, tokenizer, table)}
    rewards: dict[str, Score] = {
        "reward": lambda images, prompts: scores(reward, tokenizer, images, prompts),
        "hps": hps,
    }
    figures |= measure_rewards(rewards, vae, model, tokenizer, list(dict.fromkeys(table["prompt"])))
    figures |= measure_speeds(vae, model, tokenizer, rewards)
    modules = {
        "policy/transformer": model.transformer,
        "policy/text_encoder": model.text_encoder,
        "policy/text_encoder_2": model.text_encoder_2,
        "policy/vae": vae,
        "reward": reward,
        "hps": torch.nn.ModuleDict({"model": hps.model, "head": hps.head}),
    }
    stages = {name: stage for name, stage in read_figures(out).items() if "steps" in stage}
    parts = [
        f"| {name} | {CLASSES.get(name, type(module).__name__)} | {sum(p.numel() for p in module.parameters()):,} |"
        for name, module in modules.items()
    ]
    rows = [
        f"| {name} | {stage['steps']} | {stage['minutes']} | {stage['threads']} | {stage['seed']} |"
        for name, stage in stages.items()
    ]
    text = CARD.format(
        parts="\n".join(parts),
        stages="\n".join(rows),
        figures="\n".join(f"| {name} | {value} |" for name, value in figures.items()),
        singles=len(list(all_scenes("single"))),
        mislabelled=MISLABELLING.mislabelled,
        policy_images=len(table["prompt"]),
        reward_images=REWARD_PROMPTS * REWARD_SEEDS,
        reward_prompts=REWARD_PROMPTS,
    )
    (out / "README.md").write_text(text)
    for name, value in figures.items():
        print(f"card {name}: {value}", flush=True)
