"""The reward of the shapes: a tiny CLIP trained like PickScore (arXiv 2305.01569).

Phase one is contrastive: renderings and their captions, with captions that differ in one attribute as hard negatives.
Phase two adds preference pairs: the softmax over exp(logit_scale) * cos of two images of one caption should choose the
better image. Both phases use train combinations only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from system.miniature.build.training.corruptions import spoil
from system.miniature.build.training.data import draw_scenes, render_scenes
from system.miniature.build.training.optimizer import Optimizer
from system.miniature.build.training.policy import token_ids
from system.miniature.build.training.vae import decode, encode
from system.miniature.judge import ATTRIBUTES
from system.miniature.world import Scene, alterations, caption, is_held_out, render

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])
SCALE = 26.0
"""The usual divisor of PickScore's score."""
GROUPS = 8_000
NEGATIVE_RELATION_SHARES = (1.0, 0.0)
"""One hard negative per entry. The entry is the probability that it alters the relation, if the scene has one."""
NEGATIVES = len(NEGATIVE_RELATION_SHARES)
BATCH = 32
SAMPLE_PAIRS, MADE_PAIRS = 60_000, 6_000
PAIR_SHARES = {"near": 2 / 5, "far": 1 / 5, "tie": 1 / 5}
"""The shares of kinds of pairs in a batch (see `_sample_pairs`). The rest are renderings."""
LEARNING_RATE = 3e-3
PREFERENCE_RATE = 5e-4
WIDTH = 96


def new_reward(tokenizer: CLIPTokenizer) -> CLIPModel:
    """An untrained CLIP for 64x64 images in patches of 8."""
    specials = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "max_position_embeddings": tokenizer.model_max_length,
        "projection_dim": 128,
        **specials,
    }
    vision = {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": 4,
        "num_attention_heads": 3,
        "image_size": 64,
        "patch_size": 8,
        "projection_dim": 128,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=128))


def pixels(images_NHWC: np.ndarray) -> torch.Tensor:
    """Convert uint8 (N, 64, 64, 3) to float32 (N, 3, 64, 64), like the processor."""
    x_NHWC = (torch.from_numpy(images_NHWC).float() / 255 - MEAN) / STD
    return x_NHWC.permute(0, 3, 1, 2)


def embed_images(model: CLIPModel, images_NHWC: np.ndarray) -> torch.Tensor:
    """Embed images as unit vectors (N, 128)."""
    pooled_ND = model.vision_model(pixel_values=pixels(images_NHWC)).pooler_output
    return functional.normalize(model.visual_projection(pooled_ND), dim=-1)


def embed_text(model: CLIPModel, ids_NL: torch.Tensor) -> torch.Tensor:
    """Embed token ids (N, 16) as unit vectors (N, 128)."""
    return functional.normalize(model.text_projection(model.text_model(input_ids=ids_NL).pooler_output), dim=-1)


@torch.no_grad()
def scores(model: CLIPModel, tokenizer: CLIPTokenizer, images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
    """exp(logit_scale) * cos / 26 of each image with its prompt, float64 (N,)."""
    parts = []
    for i in range(0, len(prompts), 64):
        text_ND = embed_text(model, token_ids(tokenizer, prompts[i : i + 64]))
        parts.append((embed_images(model, images[i : i + 64]) * text_ND).sum(-1))
    return (model.logit_scale.exp() * torch.cat(parts) / SCALE).double().numpy()


def altered_scene(scene: Scene, rng: np.random.Generator, relation_share: float = 0.4) -> Scene:
    """A train scene that differs from `scene` in one attribute. Relations, the hardest, are altered more often."""
    pools = {name: [s for s in pool if not is_held_out(s)] for name, pool in alterations(scene).items()}
    pools = {name: pool for name, pool in pools.items() if pool}
    names = list(pools)
    if "relation" in pools and rng.random() < relation_share:
        names = ["relation"]
    pool = pools[names[rng.integers(len(names))]]
    return pool[rng.integers(len(pool))]


class Contrast:
    """Renderings of scenes and of one altered twin of each, with captions and hard negatives. 3 in 4 are relations."""

    def __init__(self, vae: AutoencoderKL, tokenizer: CLIPTokenizer, rng: np.random.Generator) -> None:
        firsts = [s for i, s in enumerate(draw_scenes(2 * GROUPS, rng)) if i % 2 or i % 6 == 0][:GROUPS]
        scenes = [s for first in firsts for s in (first, altered_scene(first, rng))]
        self.images = render_scenes(scenes, rng, anywhere=True)
        self.images[::3] = decode(vae, encode(vae, self.images[::3]))
        captions = [caption(s) for s in scenes]
        self.ids = token_ids(tokenizer, captions)
        self.negatives = token_ids(
            tokenizer, [caption(altered_scene(s, rng, share)) for s in scenes for share in NEGATIVE_RELATION_SHARES]
        ).view(len(scenes), NEGATIVES, -1)
        numbers = {text: i for i, text in enumerate(dict.fromkeys(captions))}
        self.number = torch.tensor([numbers[text] for text in captions])

    def loss(self, model: CLIPModel, groups: int, rng: np.random.Generator) -> torch.Tensor:
        """The symmetric cross-entropy over 2 * groups images. Only images are compared with hard negative captions."""
        first = rng.integers(GROUPS, size=groups) * 2
        rows = np.concatenate([first, first + 1])
        count = len(rows)
        image_BD = embed_images(model, self.images[rows])
        ids_NL = torch.cat([self.ids[rows], self.negatives[rows].flatten(0, 1)])
        text_BD, hard_BD = embed_text(model, ids_NL).split([count, count * NEGATIVES])
        hard_BKD = hard_BD.view(count, NEGATIVES, -1)
        scale = model.logit_scale.exp()
        same_BB = self.number[rows][:, None] == self.number[rows][None, :]
        same_BB.fill_diagonal_(False)
        logits_BB = (scale * image_BD @ text_BD.T).masked_fill(same_BB, -1e4)
        hard_BK = scale * torch.einsum("bd,bkd->bk", image_BD, hard_BKD)
        target_B = torch.arange(count)
        of_image = functional.cross_entropy(torch.cat([logits_BB, hard_BK], 1), target_B)
        return (of_image + functional.cross_entropy(logits_BB.T, target_B)) / 2


@dataclass(frozen=True)
class JudgedImages:
    """A policy's images of train captions, with the judge's grades."""

    images_NHWC: np.ndarray
    prompts: list[str]
    grade_N: np.ndarray
    """The share of the judge's attributes that are right. A right image has 1."""


class Preferences:
    """Preference pairs of images of one caption: the policy's samples with their grades, and spoiled renderings.

    As in PickScore's data, two images may be equally good: pairs of right samples are ties.
    """

    def __init__(self, vae: AutoencoderKL, samples: JudgedImages, rng: np.random.Generator) -> None:
        own = _sample_pairs(samples, rng)
        scenes = draw_scenes(MADE_PAIRS, rng)
        better = render_scenes(scenes, rng, anywhere=True)
        worse = np.stack(
            [
                spoil(s, rng) if i % 3 else render(altered_scene(s, rng), rng, anywhere=True)
                for i, s in enumerate(scenes)
            ]
        )
        for images in (better, worse):
            soft = rng.random(len(scenes)) < 0.5
            images[soft] = decode(vae, encode(vae, images[soft]))
        self.images = np.concatenate([samples.images_NHWC, better, worse])
        at = len(samples.images_NHWC) + np.arange(len(scenes))
        kinds = [*(own[kind] for kind in PAIR_SHARES), np.stack([at, at + len(scenes)], 1)]
        self.pairs_P2 = np.concatenate(kinds)
        self.captions = [*(samples.prompts[i] for pairs in kinds[:-1] for i, _ in pairs), *(caption(s) for s in scenes)]
        self.parts = np.split(np.arange(len(self.captions)), np.cumsum([len(pairs) for pairs in kinds])[:-1])
        self.win_P = torch.ones(len(self.captions))
        """The probability that the first image of a pair is better."""
        self.win_P[self.parts[list(PAIR_SHARES).index("tie")]] = 0.5

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Draw the indexes of `count` pairs, with kinds in the shares PAIR_SHARES."""
        shares = [int(share * count) for share in PAIR_SHARES.values()]
        shares.append(count - sum(shares))
        return np.concatenate([rng.choice(part, n) for part, n in zip(self.parts, shares, strict=True)])


def _sample_pairs(samples: JudgedImages, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The row numbers (P, 2) of pairs of one prompt, the better image first, by kind.

    In a "near" pair the worse image has one more wrong attribute, in a "far" pair several more; in a "tie" both images
    are right. Most pairs are far, because a missing object makes several attributes wrong at once. Kinds are therefore
    balanced; otherwise a wrong shape would hardly count.
    """
    rows: dict[str, list[int]] = {}
    for i, prompt in enumerate(samples.prompts):
        rows.setdefault(prompt, []).append(i)
    pairs = np.concatenate([np.array(r)[np.stack(np.triu_indices(len(r), 1), 1)] for r in rows.values()])
    wrong_P2 = np.rint((1 - samples.grade_N[pairs]) * len(ATTRIBUTES)).astype(int)
    worse_first = wrong_P2[:, 0] > wrong_P2[:, 1]
    pairs[worse_first] = pairs[worse_first][:, ::-1]
    apart_P = np.abs(wrong_P2[:, 0] - wrong_P2[:, 1])
    kinds = {"near": apart_P == 1, "far": apart_P > 1, "tie": (wrong_P2 == 0).all(1)}
    return {kind: rng.permutation(pairs[mask])[:SAMPLE_PAIRS] for kind, mask in kinds.items()}


def train_contrast(vae: AutoencoderKL, tokenizer: CLIPTokenizer, seed: int, steps: int) -> CLIPModel:
    """Train phase one."""
    rng = np.random.default_rng([seed, 3])
    torch.manual_seed(seed)
    data, model = Contrast(vae, tokenizer, rng), new_reward(tokenizer)
    _fit("contrast", model, steps, LEARNING_RATE, lambda: data.loss(model, BATCH, rng))
    return model


def train_preference(
    model: CLIPModel,
    vae: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    samples: JudgedImages,
    seed: int,
    steps: int,
) -> None:
    """Train phase two. `samples` are the policy's images for train captions."""
    rng = np.random.default_rng([seed, 4])
    data, contrast = Preferences(vae, samples, rng), Contrast(vae, tokenizer, rng)
    ids_PL = token_ids(tokenizer, data.captions)

    def loss() -> torch.Tensor:
        """The cross-entropy between the softmax of both images' scores and which image is better."""
        rows = data.draw(BATCH, rng)
        image_B2D = embed_images(model, data.images[data.pairs_P2[rows].ravel()]).view(BATCH, 2, -1)
        score_B2 = model.logit_scale.exp() * (image_B2D * embed_text(model, ids_PL[rows])[:, None]).sum(-1)
        win_B = data.win_P[rows]
        return functional.cross_entropy(score_B2, torch.stack([win_B, 1 - win_B], 1))

    _fit(
        "preference",
        model,
        steps,
        PREFERENCE_RATE,
        lambda: loss() + 0.5 * contrast.loss(model, BATCH // 4, rng),
    )


def _fit(name: str, model: CLIPModel, steps: int, rate: float, loss_of: Callable[[], torch.Tensor]) -> None:
    optimizer = Optimizer(model, rate, steps, fall=0.7)
    model.train()
    start, losses = time.monotonic(), []
    for step in range(1, steps + 1):
        loss = loss_of()
        optimizer.step(loss)
        with torch.no_grad():
            model.logit_scale.clamp_(max=float(np.log(100)))
        losses.append(loss.item())
        if step % 100 == 0:
            mean, scale = np.mean(losses[-100:]), model.logit_scale.exp().item()
            seconds = time.monotonic() - start
            print(f"{name} step {step}/{steps} loss {mean:.4f} scale {scale:.1f} {seconds:.0f} s", flush=True)
    model.eval()


def save_reward(model: CLIPModel, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write a folder with the layout of PickScore_v1: a CLIPModel and its processor."""
    model.save_pretrained(folder, safe_serialization=True)
    images = CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
    CLIPProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
