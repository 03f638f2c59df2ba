"""Writes the card: the page about the assets, from the figures of the stages and what the finished assets can do."""

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

A true small copy of Stable Diffusion 3.5, PickScore and HPSv3 for a world of coloured shapes, 64x64 pixels. Made by
`python -m system.miniature.build`, which also wrote this page from what it measured.

## Parts

| Part | Class | Parameters |
|---|---|---|
{parts}

- `policy/` loads with `StableDiffusion3Pipeline.from_pretrained(folder, text_encoder_3=None, tokenizer_3=None)` and is
  called with `max_sequence_length=1, height=64, width=64`: the zero block that stands for the absent T5 is one token.
- `reward/` has the layout of PickScore_v1; the score is exp(logit_scale) * cos(text, image) / 26.
- `hps/` has that of HPSv3, with its keys: a checkpoint, and beside it (`base/`) the Qwen2-VL's config, tokenizer and
  image processor. The score is the mean of a Gaussian.
- `prompts/` has train.parquet and heldout.parquet, columns `prompt` and `category`, three single objects to one
  relation. There are {singles} single-object captions, so they repeat. Held out are each (colour, shape) on one of the
  four backgrounds and four ordered colour pairs; no train caption has any of them.

## How it was made

| Stage | Steps | Minutes | Threads | Seed |
|---|---|---|---|---|
{stages}

- The autoencoder learned from renderings of train scenes and some clutter: pixel error and a faint KL term, no
  perceptual or adversarial loss.
- The policy learned by flow matching on renderings of train scenes, with both text encoders; one caption
  in ten was empty. Then it went on (mislabel) with a share of {mislabelled} of the captions taken from other images, as
  captions from the web are. So it trusts a caption less than it could: a fault on purpose, with one cure for all
  captions, as guidance shows below. A reward must have something to improve.
- The reward learned from captions with hard negatives, then from preference pairs: renderings against altered and
  spoiled ones, and the policy's own branches for train captions, more right against less right by the judge; pairs of
  right ones are ties, so that it does not learn to prefer what makes no difference.
- The small HPSv3 (hps) learned by HPSv3's ranking loss, [mean, ln sigma] of two images, from the same pairs and from
  nothing else.

## Measured

| Figure | Value |
|---|---|
{figures}

Policy: the prompts of heldout.parquet, one image each, 10 Euler steps, no guidance. Rewards: {reward_images} such
images of {reward_prompts} held-out captions; a pair is a right and a wrong image of one caption.

## Known to be weak

- The judge knows this world only. It wants flat colours: a right shape in a wrong tint counts as wrong.
- The rewards see flat shapes and a list of corruptions; an image unlike all of them has no meaningful score. They are
  learned and can be gamed; the judge is there to notice.
- Held-out combinations recombine known words; nothing here says how the policy would do with new ones.
- Accuracy is of {policy_images} images: about two points of standard error.
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
