"""The second reward of the shapes: a tiny Qwen2-VL with HPSv3's head, trained by HPSv3's ranking loss.

Each of two images of one caption gets a Gaussian, [μ, ln σ]. The loss is the mean of −ln sigmoid of their difference
(arXiv 2508.03789) over samples, as in the package `hpsv3`. The files have the layout of the real HPSv3 and the keys of
transformers 4.45, so that the scorer `hpsv3` loads both in the same way.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from torch import nn
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, Qwen2VLConfig, Qwen2VLModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from services.scoring.hpsv3 import CHAT, CHECKPOINT_FILE, IMAGE_TOKEN, REWARD_TOKEN, HPSv3, reward_head
from system.miniature.build.training.optimizer import Optimizer
from system.miniature.build.training.reward import JudgedImages, Preferences
from system.miniature.world import all_scenes, caption

INSTRUCTION = "How well does this show {prompt} ? <|Reward|>"
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", IMAGE_TOKEN]
PATCH_PX = 8
MERGE = 2
SIZE_PX = 64
WIDTH = 96
PAIRS = 24
LEARNING_RATE = 2e-3
Z_SAMPLES = 64


def new_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token per word of captions, instruction and chat template."""
    texts = [caption(s) for category in ("single", "relation") for s in all_scenes(category)]
    frame = CHAT.format(image="", text=INSTRUCTION.format(prompt=""))
    for special in (*SPECIALS, REWARD_TOKEN):
        frame = frame.replace(special, " ")
    words = sorted({word for text in (*texts, frame) for word in text.split()})
    vocab = {token: i for i, token in enumerate([*SPECIALS, "<unk>", *words])}
    tokenizer = Tokenizer(WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token=SPECIALS[0],
        eos_token="<|im_end|>",
        additional_special_tokens=SPECIALS[1:],
    )


def new_model(tokenizer: PreTrainedTokenizerFast) -> tuple[Qwen2VLModel, nn.Module]:
    """An untrained model: one token per 16 x 16 pixels, and a vocabulary that ends with the reward token."""
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("vision_start", "vision_end", "image_pad")}
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer) + 1,
            "hidden_size": WIDTH,
            "intermediate_size": 2 * WIDTH,
            "num_hidden_layers": 3,
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
            "max_position_embeddings": 256,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]},
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "depth": 3,
            "embed_dim": WIDTH,
            "hidden_size": WIDTH,
            "num_heads": 3,
            "mlp_ratio": 2,
            "patch_size": PATCH_PX,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
        },
        image_token_id=ids["image_pad"],
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
    )
    return Qwen2VLModel._from_config(config, dtype=torch.float32), reward_head(WIDTH)


class HpsTrainer:
    """The model in training. It runs forward on whole batches of one sequence length."""

    def __init__(self) -> None:
        self.tokenizer = new_tokenizer()
        self.model, self.head = new_model(self.tokenizer)
        self.reward_id = len(self.tokenizer)
        self.tokenizer.add_tokens([REWARD_TOKEN], special_tokens=True)
        self.images = Qwen2VLImageProcessorPil(patch_size=PATCH_PX, merge_size=MERGE)
        self.size = {"shortest_edge": SIZE_PX**2, "longest_edge": SIZE_PX**2}
        self.image_tokens = (SIZE_PX // PATCH_PX // MERGE) ** 2

    def token_ids(self, prompts: Sequence[str]) -> torch.Tensor:
        """The token ids of prompts, (N, L), padded on the right."""
        image = IMAGE_TOKEN * self.image_tokens
        texts = [CHAT.format(image=image, text=INSTRUCTION.format(prompt=prompt)) for prompt in prompts]
        return self.tokenizer(texts, padding=True, padding_side="right", return_tensors="pt").input_ids

    def gaussians(self, ids_BL: torch.Tensor, images_BHWC: np.ndarray) -> torch.Tensor:
        """[μ, ln σ] of each image, (B, 2)."""
        vision = self.images([Image.fromarray(image) for image in images_BHWC], size=self.size, return_tensors="pt")
        hidden_BLD = self.model(
            input_ids=ids_BL,
            position_ids=torch.arange(ids_BL.shape[1]).expand(3, *ids_BL.shape),
            pixel_values=vision["pixel_values"],
            image_grid_thw=vision["image_grid_thw"],
            use_cache=False,
        ).last_hidden_state
        reads_B = (ids_BL == self.reward_id).int().argmax(-1)
        return self.head(hidden_BLD[torch.arange(len(ids_BL)), reads_B])

    def save(self, folder: Path) -> None:
        """Write the checkpoint, the base and the instruction as the scorer `hpsv3` reads them."""
        base = folder / "base"
        self.model.config.save_pretrained(base)
        self.images.save_pretrained(base)
        new_tokenizer().save_pretrained(base)
        (folder / "instruction.txt").write_text(INSTRUCTION + "\n")
        state = {_published_key(key): value.contiguous() for key, value in self.model.state_dict().items()}
        state |= {f"rm_head.{key}": value for key, value in self.head.state_dict().items()}
        save_file(state, folder / CHECKPOINT_FILE)


def load_hps(folder: Path) -> HPSv3:
    """Load the scorer from the files that `HpsTrainer.save` wrote."""
    base, instruction = folder / "base", folder / "instruction.txt"
    return HPSv3(str(folder), str(base), str(instruction), pixels=SIZE_PX**2, dtype="fp32", device="cpu")


def _published_key(key: str) -> str:
    return key.replace("language_model.", "model.", 1) if key.startswith("language_model.") else key


def ranking_loss(first_B2: torch.Tensor, second_B2: torch.Tensor, win_B: torch.Tensor) -> torch.Tensor:
    """The mean of −w·ln sigmoid(z) − (1 − w)·ln sigmoid(−z), with z ~ N(μ_first − μ_second, σ_first² + σ_second²).

    Args:
        win_B: w, the probability that the first image is better: 1, or ½ for a tie.
    """
    mean_B = first_B2[:, 0] - second_B2[:, 0]
    std_B = (first_B2[:, 1].mul(2).exp() + second_B2[:, 1].mul(2).exp()).sqrt()
    z_BS = mean_B[:, None] + std_B[:, None] * torch.randn(len(mean_B), Z_SAMPLES)
    return functional.binary_cross_entropy_with_logits(z_BS, win_B[:, None].expand_as(z_BS))


def train_hps(vae: AutoencoderKL, samples: JudgedImages, seed: int, steps: int, out: Path) -> None:
    """Train and save the model. Prints how often the better image of a pair wins."""
    rng = np.random.default_rng([seed, 8])
    torch.manual_seed(seed)
    data, trainer = Preferences(vae, samples, rng), HpsTrainer()
    ids_PL = trainer.token_ids(data.captions)
    both = nn.ModuleDict({"model": trainer.model, "head": trainer.head})
    optimizer = Optimizer(both, LEARNING_RATE, steps, fall=0.6)
    start, losses, wins = time.monotonic(), [], []
    both.train()
    for step in range(1, steps + 1):
        rows = data.draw(PAIRS, rng)
        images, win_B = data.images[data.pairs_P2[rows].T.ravel()], data.win_P[rows]
        first_B2, second_B2 = trainer.gaussians(ids_PL[rows].repeat(2, 1), images).chunk(2)
        loss = ranking_loss(first_B2, second_B2, win_B)
        optimizer.step(loss)
        losses.append(loss.item())
        wins.append((first_B2[:, 0] > second_B2[:, 0])[win_B == 1].float().mean().item())
        if step % 100 == 0:
            mean, won, seconds = np.mean(losses[-100:]), np.mean(wins[-100:]), time.monotonic() - start
            print(f"hps step {step}/{steps} loss {mean:.4f} won {won:.3f} {seconds:.0f} s", flush=True)
    trainer.save(out)
