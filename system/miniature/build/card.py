"""Measure the finished assets and write their card."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from diffusers import AutoencoderKL
from transformers import CLIPModel, CLIPTokenizer

from system.miniature.build.data import draw_scenes, render_scenes
from system.miniature.build.hps import load_hps
from system.miniature.judge import ATTRIBUTES, Judge
from system.miniature.build.policy import Denoiser, sample
from system.miniature.build.reward import scores
from system.miniature.build.vae import LATENT_SHAPE, decode, encode, psnr_db
from system.miniature.world import all_scenes, alterations, caption

REWARD_PROMPTS, REWARD_SEEDS = 128, 8
CLASSES = {"hps": "Qwen2VLModel and a head"}
Score = Callable[[np.ndarray, Sequence[str]], np.ndarray]
"""Images and prompts to one number each."""

CARD = """# Shapes: the card of the miniature

A true small copy of Stable Diffusion 3.5, PickScore and HPSv3 for a world of coloured shapes, 64x64 pixels. Made by
`python -m system.miniature.build.make`, which also wrote this page from what it measured.

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


def write_card(out: Path, record: dict) -> None:
    """Measure the assets in `out` and write README.md; `record` holds the figures of the stages."""
    from system.miniature.build.make import MISLABEL_ROUND, load_policy

    vae, model, tokenizer = load_policy(out)
    reward, hps = CLIPModel.from_pretrained(out / "reward", use_safetensors=True).eval(), load_hps(out / "hps")
    table = pq.read_table(out / "prompts" / "heldout.parquet").to_pydict()
    figures = {**_of_world(vae), **_of_policy(vae, model, tokenizer, table)}
    rewards: dict[str, Score] = {
        "reward": lambda images, prompts: scores(reward, tokenizer, images, prompts),
        "hps": hps,
    }
    figures |= _of_rewards(rewards, vae, model, tokenizer, list(dict.fromkeys(table["prompt"])))
    figures |= _speeds(vae, model, tokenizer, rewards)
    modules = {
        "policy/transformer": model.transformer,
        "policy/text_encoder": model.text_encoder,
        "policy/text_encoder_2": model.text_encoder_2,
        "policy/vae": vae,
        "reward": reward,
        "hps": torch.nn.ModuleDict({"model": hps.model, "head": hps.head}),
    }
    stages = {name: stage for name, stage in record.items() if "steps" in stage}
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
        mislabelled=MISLABEL_ROUND["mislabelled"],
        policy_images=len(table["prompt"]),
        reward_images=REWARD_PROMPTS * REWARD_SEEDS,
        reward_prompts=REWARD_PROMPTS,
    )
    (out / "README.md").write_text(text)
    for name, value in figures.items():
        print(f"card {name}: {value}", flush=True)


def _of_world(vae: AutoencoderKL) -> dict[str, str]:
    """Judge on renderings, altered captions and round trips."""
    rng, judge = np.random.default_rng(123), Judge()
    scenes = draw_scenes(500, rng) + draw_scenes(500, rng, held_out=True)
    images, captions = render_scenes(scenes, rng), [caption(s) for s in scenes]
    trips = decode(vae, encode(vae, images))
    figures = {
        "judge, renderings right": f"{judge(images, captions).mean():.3f}",
        "judge, autoencoder round trips right": f"{judge(trips, captions).mean():.3f}",
        "autoencoder PSNR, held-out renderings": f"{psnr_db(images[500:], trips[500:]):.1f} dB",
    }
    for name in ("background", "size", "colour", "shape", "relation", "swap"):
        choices = [(i, alterations(s).get(name, [])) for i, s in enumerate(scenes)]
        rows = [(i, options[rng.integers(len(options))]) for i, options in choices if options]
        wrong = judge(images[[i for i, _ in rows]], [caption(s) for _, s in rows])
        figures[f"judge, caption with altered {name} rejected"] = f"{1 - wrong.mean():.3f}"
    return figures


def _of_policy(vae: AutoencoderKL, model: Denoiser, tokenizer: CLIPTokenizer, table: dict) -> dict[str, str]:
    """Share of right images, by category, by attribute, and for other ways of sampling."""
    judge, prompts = Judge(), table["prompt"]
    single = np.array([category == "single" for category in table["category"]])
    images = sample(model, vae, tokenizer, prompts, seed=2024)
    verdicts = [v for v in judge.verdicts(images, prompts) if v]
    right = np.array([all(v.values()) for v in verdicts])
    figures = {
        "policy right, held-out": f"{right.mean():.3f}",
        "policy right, held-out single": f"{right[single].mean():.3f}",
        "policy right, held-out relation": f"{right[~single].mean():.3f}",
    }
    for name in ATTRIBUTES:
        figures[f"policy {name} right, held-out"] = f"{np.mean([v[name] for v in verdicts]):.3f}"
    guided = judge(sample(model, vae, tokenizer, prompts, seed=2024, guidance=2.0), prompts)
    figures["policy right, held-out, guidance 2"] = f"{guided.mean():.3f}"
    train = [caption(s) for s in draw_scenes(256, np.random.default_rng(456))]
    figures["policy right, train captions"] = f"{judge(sample(model, vae, tokenizer, train, 2025), train).mean():.3f}"
    return figures


def _of_rewards(
    rewards: dict[str, Score], vae: AutoencoderKL, model: Denoiser, tokenizer: CLIPTokenizer, prompts: list[str]
) -> dict[str, str]:
    """How well the rewards agree with the judge on the policy's images of held-out captions."""
    chosen = [prompts[i] for i in np.random.default_rng(789).permutation(len(prompts))[:REWARD_PROMPTS]]
    repeated = [prompt for prompt in chosen for _ in range(REWARD_SEEDS)]
    images = sample(model, vae, tokenizer, repeated, seed=2026)
    right = Judge()(images, repeated) == 1
    figures: dict[str, str] = {}
    for name, score_of in rewards.items():
        score = score_of(images, repeated)
        figures |= {
            f"{name}, right preferred in pairs of one caption": f"{pair_accuracy(score, right):.3f}",
            f"{name}, AUC over all captions": f"{auc(score[right], score[~right]):.3f}",
            f"{name}, mean score of right images": f"{score[right].mean():.3f}",
            f"{name}, mean score of wrong images": f"{score[~right].mean():.3f}",
        }
    return figures


def pair_accuracy(score: np.ndarray, right: np.ndarray) -> float:
    """Share of (right, wrong) pairs of one caption in which the right image scores higher; rows go by caption."""
    wins = [
        (s[r][:, None] > s[~r][None, :]).ravel()
        for s, r in zip(score.reshape(-1, REWARD_SEEDS), right.reshape(-1, REWARD_SEEDS), strict=True)
    ]
    return float(np.concatenate(wins).mean())


def auc(high: np.ndarray, low: np.ndarray) -> float:
    """Probability that a score of `high` exceeds one of `low`."""
    return float((high[:, None] > low[None, :]).mean())


def _speeds(vae: AutoencoderKL, model: Denoiser, tokenizer: CLIPTokenizer, rewards: dict[str, Score]) -> dict[str, str]:
    """Rates on one thread at batches of 64."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    prompts = ["a large red ring left of a small blue square on a white background"] * 64
    images = np.zeros((64, 64, 64, 3), np.uint8)
    latents_NCHW = torch.randn(64, *LATENT_SHAPE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        text = model.encode_text(tokenizer(prompts, padding="max_length", return_tensors="pt").input_ids)
        rates = {
            "transformer forwards": _rate(lambda: model(latents_NCHW, torch.full((64,), 0.5), text)),
            "decodes": _rate(lambda: decode(vae, latents_NCHW)),
            **{f"{name} scores": _rate(partial(score_of, images, prompts)) for name, score_of in rewards.items()},
            "judgements": _rate(lambda: Judge()(images, prompts)),
        }
    torch.set_num_threads(threads)
    return {f"{name} per second, one thread": f"{rate:.0f}" for name, rate in rates.items()}


def _rate(call: Callable[[], object], rounds: int = 5) -> float:
    call()
    start = time.monotonic()
    for _ in range(rounds):
        call()
    return 64 * rounds / (time.monotonic() - start)
