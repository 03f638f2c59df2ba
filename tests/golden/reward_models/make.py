"""Make golden numbers of reward models: what their own packages give for tiny weights (tests/helpers/tiny_rewards.py).

In an environment that has this project's own packages (`pip install -e .`), and beside them, without their pins,

    pip install --no-deps hpsv2==1.2.0 image-reward==1.5 clip-anytorch==2.6.0 timm ftfy wcwidth torchvision==0.28.0
    PYTHONPATH=. python tests/golden/reward_models/make.py

Writes golden.json beside this file. CLIP's tokenizer is OpenAI's with its two special tokens in other places, because
the tiny vocabulary has bytes only. What the packages import for downloads is replaced by stand-ins, as are helpers of
transformers that have moved since.
"""

import importlib
import importlib.metadata
import json
import sys
import tempfile
import types
from pathlib import Path
from unittest import mock

import torch
import transformers.modeling_utils
from PIL import Image

from tests.helpers.tiny_rewards import (
    AESTHETIC_WIDTH,
    CASES,
    CLIP_TEXT,
    EDGE,
    PATCH,
    TEXT_LENGTH,
    bert_tokenizer,
    clip_shapes,
    clip_tokenizer,
    fill,
    head_shapes,
    picture,
)

HERE = Path(__file__).parent


def stand_in(name: str, **members: object) -> None:
    """A module with these members and no others."""
    module = types.ModuleType(name)
    module.__dict__.update(members)
    sys.modules[name] = module


def tokens(prompt: str) -> torch.Tensor:
    """(1, 77), padded with zeros as OpenAI's and open_clip's tokenizers do."""
    ids = clip_tokenizer()(prompt, truncation=True, max_length=TEXT_LENGTH).input_ids
    return torch.tensor([ids + [0] * (TEXT_LENGTH - len(ids))])


@torch.no_grad()
def clip_cosine() -> list[float]:
    """OpenAI's CLIP: the logits without the scale."""
    import clip
    from clip.model import CLIP

    width, heads, layers = (CLIP_TEXT[key] for key in ("hidden_size", "num_attention_heads", "num_hidden_layers"))
    model = CLIP(64, EDGE, layers, width, PATCH, TEXT_LENGTH, 514, width, heads, layers).eval()
    model.load_state_dict(fill(clip_shapes(64)))
    look = clip.clip._transform(EDGE)
    logits = [model(look(Image.fromarray(picture(case)))[None], tokens(case["prompt"]))[0] for case in CASES]
    return [float(logit / model.logit_scale.exp()) for logit in logits]


@torch.no_grad()
def hpsv2_score() -> list[float]:
    """hpsv2's own score function, with its own open_clip and a small model for ViT-H-14."""
    stand_in("clint")
    stand_in("clint.textui", progress=None)
    # The wheel lacks this module's vocabulary.
    stand_in("hpsv2.src.open_clip.tokenizer", HFTokenizer=None, SimpleTokenizer=None, tokenize=None, decode=None)
    img_score = importlib.import_module("hpsv2.img_score")
    model = importlib.import_module("hpsv2.src.open_clip.model")
    transform = importlib.import_module("hpsv2.src.open_clip.transform")
    width, layers = CLIP_TEXT["hidden_size"], CLIP_TEXT["num_hidden_layers"]
    vision = {"layers": layers, "width": width, "head_width": width, "patch_size": PATCH, "image_size": EDGE}
    text = {"context_length": TEXT_LENGTH, "vocab_size": 514, "width": width, "heads": 1, "layers": layers}
    tiny = model.CLIP(64, vision, text, output_dict=True).eval()
    img_score.model_dict.update(model=tiny, preprocess_val=transform.image_transform(EDGE, is_train=False))
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = str(Path(folder) / "tiny.pt")
        torch.save({"state_dict": fill(clip_shapes(64))}, checkpoint)
        with mock.patch.object(img_score, "get_tokenizer", return_value=lambda texts: tokens(texts[0])):
            pictures = [Image.fromarray(picture(case)) for case in CASES]
            scores = [
                img_score.score(image, case["prompt"], cp=checkpoint)[0]
                for image, case in zip(pictures, CASES, strict=True)
            ]
    return [float(score) for score in scores]


def image_reward_package() -> None:
    """Make ImageReward's package importable with today's transformers."""
    from transformers import pytorch_utils

    for name in ("apply_chunking_to_forward", "prune_linear_layer", "find_pruneable_heads_and_indices"):
        setattr(transformers.modeling_utils, name, getattr(pytorch_utils, name, None))
    stand_in("transformers.file_utils", ModelOutput=transformers.utils.ModelOutput)
    stand_in("timm.models.hub", download_cached_file=None)
    stand_in("fairscale.nn.checkpoint.checkpoint_activations", checkpoint_wrapper=None)
    package = types.ModuleType("ImageReward")
    package.__path__ = [str(importlib.metadata.distribution("image-reward").locate_file("ImageReward"))]
    sys.modules["ImageReward"] = package
    stand_in("ImageReward.models")
    sys.modules["ImageReward.models"].__path__ = [package.__path__[0] + "/models"]


@torch.no_grad()
def aesthetic() -> list[float]:
    """The aesthetic predictor as packaged with ImageReward, over OpenAI's CLIP."""
    import clip
    from clip.model import CLIP

    width, heads, layers = (CLIP_TEXT[key] for key in ("hidden_size", "num_attention_heads", "num_hidden_layers"))
    tiny = CLIP(AESTHETIC_WIDTH, EDGE, layers, width, PATCH, TEXT_LENGTH, 514, width, heads, layers).eval()
    tiny.load_state_dict(fill(clip_shapes(AESTHETIC_WIDTH)))
    module = importlib.import_module("ImageReward.models.AestheticScore")
    with mock.patch.object(clip, "load", return_value=(tiny, clip.clip._transform(EDGE))):
        scorer = module.AestheticScore(None).eval()
    scorer.mlp.load_state_dict(fill(head_shapes(AESTHETIC_WIDTH)))
    with tempfile.TemporaryDirectory() as folder:
        files = [str(Path(folder) / f"{i}.png") for i in range(len(CASES))]
        for case, file in zip(CASES, files, strict=True):
            Image.fromarray(picture(case)).save(file)
        return [scorer.score("", file) for file in files]


def inverted_mask(_: object, mask_BL: torch.Tensor) -> torch.Tensor:
    """As in transformers 4: 0 where the mask is 1, and the lowest number where it is 0."""
    return (1.0 - mask_BL[:, None, None, :]) * torch.finfo(torch.float32).min


@torch.no_grad()
def image_reward() -> tuple[list[float], dict[str, list[int]]]:
    """ImageReward's own score, and the shapes of its tiny weights."""
    pretrain = importlib.import_module("ImageReward.models.BLIP.blip_pretrain")
    vit = importlib.import_module("ImageReward.models.BLIP.vit")
    med = importlib.import_module("ImageReward.models.BLIP.med")
    module = importlib.import_module("ImageReward.ImageReward")
    small = vit.VisionTransformer(img_size=EDGE, patch_size=PATCH, embed_dim=64, depth=2, num_heads=1)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = bert_tokenizer(Path(folder))
        config = {"hidden_size": 768, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 12}
        config |= {"vocab_size": len(tokenizer), "max_position_embeddings": 40, "add_cross_attention": True}
        config |= {"layer_norm_eps": 1e-12, "hidden_act": "gelu", "type_vocab_size": 2, "pad_token_id": 0}
        file = Path(folder) / "med.json"
        file.write_text(json.dumps(config))
        with (
            mock.patch.object(pretrain, "create_vit", return_value=(small, 64)),
            mock.patch.object(pretrain, "init_tokenizer", return_value=tokenizer),
            mock.patch.object(med.BertPreTrainedModel, "init_weights"),
            mock.patch.object(med.BertModel, "get_head_mask", lambda self, mask, n: [None] * n, create=True),
            mock.patch.object(med.BertModel, "invert_attention_mask", inverted_mask, create=True),
        ):
            scorer = module.ImageReward(str(file)).eval()
            scorer.preprocess = module._transform(EDGE)
            state = {name: tensor for name, tensor in scorer.state_dict().items() if "position_ids" not in name}
            scorer.load_state_dict(fill(state), strict=False)
            scores = [scorer.score(case["prompt"], Image.fromarray(picture(case))) for case in CASES]
    return scores, {name: list(tensor.shape) for name, tensor in state.items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    image_reward_package()
    golden = {"clip": clip_cosine(), "hpsv2": hpsv2_score(), "aesthetic": aesthetic()}
    golden["imagereward"], golden["imagereward_shapes"] = image_reward()
    (HERE / "golden.json").write_text(json.dumps(golden, indent=1) + "\n")
    print(json.dumps({name: numbers for name, numbers in golden.items() if name != "imagereward_shapes"}, indent=1))
