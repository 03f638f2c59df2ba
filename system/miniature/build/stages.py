"""The stages that build the assets, in order. Each reads the results of earlier stages from the folder `out`.

A stage returns figures about its training.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from transformers import CLIPModel, CLIPTokenizer

from actors.policy.policy import Policy
from actors.policy.settings import FlowSDESettings
from actors.rollout.plans import make_plan
from actors.rollout.plans.settings import TrunkSettings
from actors.rollout.settings import RolloutSettings
from actors.rollout.worker import Generator
from actors.trajectory import Task
from system.miniature.build.prompts import write_prompts
from system.miniature.build.training.data import draw_scenes
from system.miniature.build.training.hps import train_hps
from system.miniature.build.training.policy import (
    MISLABELLING,
    PRETRAINING,
    Denoiser,
    Round,
    load_policy,
    sample,
    save_policy,
    train_policy,
)
from system.miniature.build.training.reward import JudgedImages, save_reward, train_contrast, train_preference
from system.miniature.build.training.tokenizer import new_tokenizer
from system.miniature.build.training.vae import load_vae, train_vae
from system.miniature.judge import ATTRIBUTES, Judge
from system.miniature.world import all_scenes, caption
from system.recipe.load import load_config

VAE_STEPS = 1000
CONTRAST_STEPS = 1500
PREFERENCE_STEPS = 1600
PREFERENCE_PROMPTS = 600
HPS_STEPS = 3000


Figures = dict[str, Any]


def build_vae(out: Path, seed: int) -> Figures:
    """Train the autoencoder into policy/vae."""
    train_vae(seed, VAE_STEPS).save_pretrained(out / "policy" / "vae")
    return {"steps": VAE_STEPS}


def build_policy(out: Path, seed: int) -> Figures:
    """Pretrain the policy on true captions."""
    vae, tokenizer = load_vae(out / "policy" / "vae"), build_tokenizer()
    torch.manual_seed(seed)
    return _train_policy(out, Denoiser.new(tokenizer), vae, tokenizer, seed, 2, PRETRAINING)


def build_mislabel(out: Path, seed: int) -> Figures:
    """Continue the policy's training with a share of wrong captions, which belong to other images."""
    (vae, model, _), tokenizer = load_policy(out / "policy"), build_tokenizer()
    torch.manual_seed(seed)
    return _train_policy(out, model, vae, tokenizer, seed, 8, MISLABELLING)


def _train_policy(
    out: Path, model: Denoiser, vae: AutoencoderKL, tokenizer: CLIPTokenizer, seed: int, stream: int, round_: Round
) -> Figures:
    """Train with a round's settings. Saves and evaluates regularly, and returns the shares of right held-out images."""
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
    train_policy(model, vae, tokenizer, rng, round_, look)
    return {"steps": round_.steps, "history": history}


def build_contrast(out: Path, seed: int) -> Figures:
    """Train the reward on captions."""
    vae, tokenizer = load_vae(out / "policy" / "vae"), build_tokenizer()
    save_reward(train_contrast(vae, tokenizer, seed, CONTRAST_STEPS), tokenizer, out / "reward")
    return {"steps": CONTRAST_STEPS}


def build_preference(out: Path, seed: int) -> Figures:
    """Train the reward on preference pairs, most of them judged samples of the policy."""
    vae, _, tokenizer = load_policy(out / "policy")
    reward, judged = CLIPModel.from_pretrained(out / "reward", use_safetensors=True), judged_images(out, seed)
    train_preference(reward, vae, tokenizer, judged, seed, PREFERENCE_STEPS)
    save_reward(reward, tokenizer, out / "reward")
    return {"steps": PREFERENCE_STEPS, "samples": len(judged.prompts)}


def build_hps(out: Path, seed: int) -> Figures:
    """Train the small HPSv3 on the same preference pairs."""
    vae, _, _ = load_policy(out / "policy")
    train_hps(vae, judged_images(out, seed), seed, HPS_STEPS, out / "hps")
    return {"steps": HPS_STEPS}


def judged_images(out: Path, seed: int) -> JudgedImages:
    """Generate images for train captions as a rollout does (branches at every step of four trunks), and judge them."""
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
    return JudgedImages(stack, captions, grades)


def build_prompts(out: Path, seed: int) -> Figures:
    """Write the prompt lists."""
    write_prompts(out / "prompts", seed)
    return {}


def build_tokenizer() -> CLIPTokenizer:
    """The tokenizer of policy and reward, trained on every caption."""
    return new_tokenizer(caption(s) for category in ("single", "relation") for s in all_scenes(category))


STAGES: dict[str, Callable[[Path, int], Figures]] = {
    "vae": build_vae,
    "policy": build_policy,
    "mislabel": build_mislabel,
    "contrast": build_contrast,
    "preference": build_preference,
    "hps": build_hps,
    "prompts": build_prompts,
}
"""The stages by name, in the order in which they run. Each takes the folder and the seed, and returns figures."""


def forget_origin(out: Path) -> None:
    """Remove the path that a part was loaded from, which diffusers writes into configurations."""
    for path in out.rglob("config.json"):
        config = json.loads(path.read_text())
        if config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
