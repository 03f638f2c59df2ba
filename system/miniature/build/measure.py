"""Measures the finished assets."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from diffusers import AutoencoderKL
from transformers import CLIPTokenizer

from system.miniature.build.training.data import draw_scenes, render_scenes
from system.miniature.build.training.policy import Denoiser, sample
from system.miniature.build.training.vae import LATENT_SHAPE, decode, encode, psnr_db
from system.miniature.judge import ATTRIBUTES, Judge
from system.miniature.world import alterations, caption

REWARD_PROMPTS, REWARD_SEEDS = 128, 8
Score = Callable[[np.ndarray, Sequence[str]], np.ndarray]
"""A function from images and prompts to one number each."""


def measure_world(vae: AutoencoderKL) -> dict[str, str]:
    """Measure the judge on renderings, on altered captions and on round trips through the autoencoder."""
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


def measure_policy(vae: AutoencoderKL, model: Denoiser, tokenizer: CLIPTokenizer, table: dict) -> dict[str, str]:
    """Measure the policy's share of right images by category, by attribute, and for other ways of sampling."""
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


def measure_rewards(
    rewards: dict[str, Score], vae: AutoencoderKL, model: Denoiser, tokenizer: CLIPTokenizer, prompts: list[str]
) -> dict[str, str]:
    """Measure how well the rewards agree with the judge on the policy's images of held-out captions."""
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
    """The share of (right, wrong) pairs in which the right image scores higher. Each row has one caption's images."""
    wins = [
        (s[r][:, None] > s[~r][None, :]).ravel()
        for s, r in zip(score.reshape(-1, REWARD_SEEDS), right.reshape(-1, REWARD_SEEDS), strict=True)
    ]
    return float(np.concatenate(wins).mean())


def auc(high: np.ndarray, low: np.ndarray) -> float:
    """The probability that a score from `high` exceeds a score from `low`."""
    return float((high[:, None] > low[None, :]).mean())


def measure_speeds(
    vae: AutoencoderKL, model: Denoiser, tokenizer: CLIPTokenizer, rewards: dict[str, Score]
) -> dict[str, str]:
    """Measure rates on one thread with batches of 64."""
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
