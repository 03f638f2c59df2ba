"""Build every asset of the shapes from a seed.

    python -m system.miniature.build.make [--out DIR] [--seed 0] [--threads 2] [--only vae,policy,contrast,…]

Stages run in the order of STAGES; each reads what earlier ones left in the folder, so one can be repeated alone.
Figures of the training go to figures.json, and the card measures the finished assets.
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

from actors.policy.policy import Policy
from actors.policy.settings import FlowSDESettings
from actors.rollout.plans import make_plan
from actors.rollout.plans.settings import TrunkSettings
from actors.rollout.settings import RolloutSettings
from actors.rollout.worker import Generator
from actors.trajectory import Task
from system.recipe.load import load_config
from system.miniature.build.card import write_card
from system.miniature.build.data import draw_scenes
from system.miniature.build.hps import train_hps
from system.miniature.judge import ATTRIBUTES, Judge
from system.miniature.build.policy import Denoiser, sample, save_policy, train_policy
from system.miniature.build.prompts import write_prompts
from system.miniature.build.reward import GradedImages, save_reward, train_contrast, train_preference
from system.miniature.build.tokenizer import new_tokenizer
from system.miniature.build.vae import train_vae
from system.miniature.world import all_scenes, caption

ASSETS = Path(__file__).parents[1] / "assets"
STAGES = ("vae", "policy", "mislabel", "contrast", "preference", "hps", "prompts", "card")
VAE_STEPS = 1000
POLICY_ROUND = {"steps": 3000, "lr": 5e-3, "mislabelled": 0.0, "every": 250}
MISLABEL_ROUND = {"steps": 800, "lr": 2e-3, "mislabelled": 0.2, "every": 200}
CONTRAST_STEPS = 1500
PREFERENCE_STEPS = 1600
PREFERENCE_PROMPTS = 600
HPS_STEPS = 3000


def main() -> None:
    """Run the stages that the command line asks for."""
    parser = argparse.ArgumentParser(description="Build the assets of the shapes.")
    parser.add_argument("--out", type=Path, default=ASSETS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
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
        "mislabel": build_mislabel,
        "contrast": build_contrast,
        "preference": build_preference,
        "hps": build_hps,
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
            forget_origin(options.out)


def build_vae(out: Path, seed: int) -> dict:
    """Train the autoencoder into policy/vae."""
    train_vae(seed, VAE_STEPS).save_pretrained(out / "policy" / "vae")
    return {"steps": VAE_STEPS}


def build_policy(out: Path, seed: int) -> dict:
    """Pretrain the policy on true captions."""
    vae, tokenizer = (
        AutoencoderKL.from_pretrained(out / "policy" / "vae", use_safetensors=True).eval(),
        build_tokenizer(),
    )
    torch.manual_seed(seed)
    return _train_policy(out, Denoiser.new(tokenizer), vae, tokenizer, seed, 2, POLICY_ROUND)


def build_mislabel(out: Path, seed: int) -> dict:
    """Go on with the policy where a share of the captions belongs to other images."""
    (vae, model, _), tokenizer = load_policy(out), build_tokenizer()
    torch.manual_seed(seed)
    return _train_policy(out, model, vae, tokenizer, seed, 8, MISLABEL_ROUND)


def _train_policy(
    out: Path, model: Denoiser, vae: AutoencoderKL, tokenizer: CLIPTokenizer, seed: int, stream: int, round_: dict
) -> dict:
    """Train by a round's settings, save at each look, and return the shares of held-out captions drawn right."""
    scenes = draw_scenes(512, np.random.default_rng([seed, 6]), held_out=True)
    prompts, relations = [caption(s) for s in scenes], np.array([s.category == "relation" for s in scenes])
    judge, history = Judge(), {}

    def look(step: int, averaged: Denoiser) -> None:
        verdicts = [v for v in judge.verdicts(sample(averaged, vae, tokenizer, prompts, seed), prompts) if v]
        right = np.array([all(v.values()) for v in verdicts])
        single, relation = right[~relations].mean(), right[relations].mean()
        print(f"policy step {step} right {right.mean():.3f} single {single:.3f} relation {relation:.3f}", end=" ")
        print(*(f"{name} {np.mean([v[name] for v in verdicts]):.3f}" for name in ATTRIBUTES), flush=True)
        save_policy(averaged, vae, tokenizer, out / "policy")
        history[step] = float(right.mean())

    rng = np.random.default_rng([seed, stream])
    train_policy(model, vae, tokenizer, rng, visit=look, **round_)
    return {"steps": round_["steps"], "history": history}


def build_contrast(out: Path, seed: int) -> dict:
    """Train the reward on captions."""
    vae, tokenizer = (
        AutoencoderKL.from_pretrained(out / "policy" / "vae", use_safetensors=True).eval(),
        build_tokenizer(),
    )
    save_reward(train_contrast(vae, tokenizer, seed, CONTRAST_STEPS), tokenizer, out / "reward")
    return {"steps": CONTRAST_STEPS}


def build_preference(out: Path, seed: int) -> dict:
    """Train the reward on preference pairs, most of them judged samples of the policy."""
    vae, _, tokenizer = load_policy(out)
    reward, samples = CLIPModel.from_pretrained(out / "reward", use_safetensors=True), graded_images(out, seed)
    train_preference(reward, vae, tokenizer, samples, seed, PREFERENCE_STEPS)
    save_reward(reward, tokenizer, out / "reward")
    return {"steps": PREFERENCE_STEPS, "samples": len(samples.prompts)}


def build_hps(out: Path, seed: int) -> dict:
    """Train the small HPSv3 on the same preference pairs."""
    vae, _, _ = load_policy(out)
    train_hps(vae, graded_images(out, seed), seed, HPS_STEPS, out / "hps")
    return {"steps": HPS_STEPS}


def graded_images(out: Path, seed: int) -> GradedImages:
    """What a rollout of the policy gives for train captions: branches at every step of four trunks, judged."""
    settings = load_config("shapes", [f"policy.model={out / 'policy'}"]).policy
    policy = Policy(settings, seed)
    generator = Generator(policy, FlowSDESettings(), RolloutSettings(micro_batch=20, decode_batch=36))
    generator.load(policy.export(0))
    plan = make_plan(TrunkSettings(seeds=4, explorations=1), settings.num_steps)
    prompts = [caption(s) for s in draw_scenes(PREFERENCE_PROMPTS, np.random.default_rng([seed, 7]))]
    images = []
    for i, prompt in enumerate(prompts):
        images.append(generator.generate(Task(i, prompt, (seed, 7, i), 0), plan)[1])
        if i % 50 == 0:
            print(f"preference samples of {i}/{len(prompts)} captions", flush=True)
    stack, captions = np.concatenate(images), [prompt for prompt in prompts for _ in range(plan.leaves)]
    verdicts = Judge().verdicts(stack, captions)
    grades = np.array([np.mean(list(verdict.values())) for verdict in verdicts if verdict])
    print(f"preference samples right {np.mean(grades == 1):.3f}", flush=True)
    return GradedImages(stack, captions, grades)


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
    vae = AutoencoderKL.from_pretrained(folder / "vae", use_safetensors=True).eval()
    return vae, Denoiser.load(folder), CLIPTokenizer.from_pretrained(folder / "tokenizer")


def record(out: Path, stage: str, figures: dict) -> None:
    """Keep the figures of a stage in figures.json."""
    (out / "figures.json").write_text(json.dumps({**_read(out), stage: figures}, indent=1) + "\n")


def forget_origin(out: Path) -> None:
    """Drop the folder that a part was loaded from out of the configurations that diffusers writes."""
    for path in out.rglob("config.json"):
        config = json.loads(path.read_text())
        if config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _read(out: Path) -> dict:
    path = out / "figures.json"
    return json.loads(path.read_text()) if path.exists() else {}


if __name__ == "__main__":
    main()
