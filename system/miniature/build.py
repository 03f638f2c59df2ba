"""Build every asset of the shapes from a seed.

    python -m system.miniature.build [--out DIR] [--seed 0] [--threads 1] [--only vae,policy,contrast,…]

Stages run in the order of STAGES; each reads what earlier ones left in the folder, so one can be repeated alone.
`policy` and `contrast` both need `vae` only: with two cores, run them side by side. Figures of the training go to
figures.json, and the card measures the finished assets.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.utils import logging as diffusers_logging
from transformers import CLIPModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from system.miniature.card import write_card
from system.miniature.data import draw_scenes
from system.miniature.judge import Judge
from system.miniature.policy import Denoiser, sample, save_policy, train_policy
from system.miniature.prompts import write_prompts
from system.miniature.reward import save_reward, train_contrast, train_preference
from system.miniature.tokenizer import new_tokenizer
from system.miniature.vae import train_vae
from system.miniature.world import all_scenes, caption

ASSETS = Path(__file__).parent / "assets"
STAGES = ("vae", "policy", "contrast", "preference", "prompts", "card")
VAE_STEPS = 1000
POLICY_MAX_STEPS = 4_000
POLICY_VISIT_STEPS = 250
POLICY_TARGET = 0.6
"""Pretraining stops at this share of right images for held-out captions, so that there is something left to learn."""
CONTRAST_STEPS = 1500
PREFERENCE_STEPS = 1200
PREFERENCE_PROMPTS = 400


def main() -> None:
    """Run the stages that the command line asks for."""
    parser = argparse.ArgumentParser(description="Build the assets of the shapes.")
    parser.add_argument("--out", type=Path, default=ASSETS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default=",".join(STAGES), help="comma-separated stages")
    options = parser.parse_args()
    wanted = options.only.split(",")
    if unknown := sorted(set(wanted) - set(STAGES)):
        parser.error(f"unknown stages {', '.join(unknown)}; known are {', '.join(STAGES)}")
    torch.set_num_threads(options.threads)
    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    options.out.mkdir(parents=True, exist_ok=True)
    run = {
        "vae": build_vae,
        "policy": build_policy,
        "contrast": build_contrast,
        "preference": build_preference,
        "prompts": build_prompts,
    }
    for stage in STAGES:
        if stage == "card" and stage in wanted:
            write_card(options.out, _read(options.out))
        elif stage in wanted:
            start = time.monotonic()
            figures = run[stage](options.out, options.seed)
            minutes = round((time.monotonic() - start) / 60, 1)
            figures |= {"seed": options.seed, "threads": options.threads, "minutes": minutes}
            record(options.out, stage, figures)


def build_vae(out: Path, seed: int) -> dict:
    """Train the autoencoder into policy/vae."""
    train_vae(seed, VAE_STEPS).save_pretrained(out / "policy" / "vae")
    return {"steps": VAE_STEPS}


def build_policy(out: Path, seed: int) -> dict:
    """Pretrain the policy until its accuracy on held-out captions reaches the target."""
    vae = AutoencoderKL.from_pretrained(out / "policy" / "vae").eval()
    tokenizer = build_tokenizer()
    scenes = draw_scenes(512, np.random.default_rng([seed, 6]), held_out=True)
    prompts, relations = [caption(s) for s in scenes], np.array([s.category == "relation" for s in scenes])
    judge, history = Judge(), {}

    def visit(step: int, model: Denoiser) -> bool:
        right = judge(sample(model, vae, tokenizer, prompts, seed), prompts)
        history[step] = right.mean()
        single, relation = right[~relations].mean(), right[relations].mean()
        print(f"policy step {step} right {right.mean():.3f} single {single:.3f} relation {relation:.3f}", flush=True)
        save_policy(model, vae, tokenizer, out / "policy")
        return right.mean() >= POLICY_TARGET

    steps = train_policy(vae, tokenizer, seed, POLICY_MAX_STEPS, POLICY_VISIT_STEPS, visit)
    return {"steps": steps, "history": history}


def build_contrast(out: Path, seed: int) -> dict:
    """Train the reward on captions."""
    vae, tokenizer = AutoencoderKL.from_pretrained(out / "policy" / "vae").eval(), build_tokenizer()
    save_reward(train_contrast(vae, tokenizer, seed, CONTRAST_STEPS), tokenizer, out / "reward")
    return {"steps": CONTRAST_STEPS}


def build_preference(out: Path, seed: int) -> dict:
    """Train the reward on preference pairs, most of them judged samples of the policy."""
    vae, model, tokenizer = load_policy(out)
    reward = CLIPModel.from_pretrained(out / "reward")
    prompts = [caption(s) for s in draw_scenes(PREFERENCE_PROMPTS, np.random.default_rng([seed, 7]))]
    images, captions = [], []
    for i, (steps, guidance) in enumerate([(10, 1.0)] * 4 + [(5, 1.0)] * 2 + [(10, 3.0)] * 2):
        images.append(sample(model, vae, tokenizer, prompts, seed=1000 + 10 * seed + i, steps=steps, guidance=guidance))
        captions += prompts
        print(f"preference samples of {steps} steps, guidance {guidance}", flush=True)
    stack = np.concatenate(images)
    verdicts = Judge()(stack, captions)
    print(f"preference samples right {verdicts.mean():.3f}", flush=True)
    train_preference(reward, vae, tokenizer, (stack, captions, verdicts), seed, PREFERENCE_STEPS)
    save_reward(reward, tokenizer, out / "reward")
    return {"steps": PREFERENCE_STEPS, "samples": len(stack), "right": round(float(verdicts.mean()), 3)}


def build_prompts(out: Path, seed: int) -> dict:
    """Write the prompt lists."""
    write_prompts(out / "prompts", seed)
    return {}


def build_tokenizer() -> CLIPTokenizer:
    """The tokenizer of policy and reward; learns from every caption."""
    return new_tokenizer(caption(s) for category in ("single", "relation") for s in all_scenes(category))


def load_policy(out: Path) -> tuple[AutoencoderKL, Denoiser, CLIPTokenizer]:
    """Autoencoder, denoiser and tokenizer of the policy in an asset folder."""
    folder = out / "policy"
    vae = AutoencoderKL.from_pretrained(folder / "vae").eval()
    return vae, Denoiser.load(folder), CLIPTokenizer.from_pretrained(folder / "tokenizer")


def record(out: Path, stage: str, figures: dict) -> None:
    """Keep the figures of a stage in figures.json."""
    (out / "figures.json").write_text(json.dumps({**_read(out), stage: figures}, indent=1) + "\n")


def _read(out: Path) -> dict:
    path = out / "figures.json"
    return json.loads(path.read_text()) if path.exists() else {}


if __name__ == "__main__":
    main()
