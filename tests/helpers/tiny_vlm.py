"""A tiny vision-language model that was trained for seconds to tell dark images from bright ones."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

SIDE_PX, PATCH_PX, WIDTH = 32, 16, 32
DARK, BRIGHT = "Score: 2", "Score: 8.5"
CHAT_TEMPLATE = (
    "{% for message in messages %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}<image>{% else %}{{ content['text'] }}{% endif %}{% endfor %}{% endfor %}"
    "<answer>"
)


def new_processor() -> LlavaProcessor:
    """Bytes, no merges, and images of one size."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>")
    fast.add_special_tokens({"additional_special_tokens": ["<image>", "<answer>"]})
    size = {"height": SIDE_PX, "width": SIDE_PX}
    image_processor = LlavaImageProcessorPil(size={"shortest_edge": SIDE_PX}, crop_size=size)
    return LlavaProcessor(
        image_processor,
        fast,
        patch_size=PATCH_PX,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
        num_additional_image_tokens=1,
    )


def new_model(processor: LlavaProcessor) -> LlavaForConditionalGeneration:
    tokenizer = processor.tokenizer
    shape = {"hidden_size": WIDTH, "intermediate_size": 64, "num_attention_heads": 2}
    vision = CLIPVisionConfig(
        **shape, num_hidden_layers=1, image_size=SIDE_PX, patch_size=PATCH_PX, projection_dim=WIDTH
    )
    text = LlamaConfig(
        **shape,
        num_hidden_layers=2,
        num_key_value_heads=2,
        vocab_size=len(tokenizer),
        max_position_embeddings=512,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    return LlavaForConditionalGeneration(config)


def save_tiny_vlm(folder: Path, question: str, steps: int = 150) -> float:
    """Train a model to answer `DARK` or `BRIGHT` to a question, and save it with its processor.

    Returns:
        The last loss.
    """
    torch.manual_seed(0)
    processor = new_processor()
    model = new_model(processor)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    greys = [0, 30, 60, 90, 160, 190, 220, 255]
    images = [torch.full((3, SIDE_PX, SIDE_PX), grey, dtype=torch.uint8).numpy().transpose(1, 2, 0) for grey in greys]
    answers = [BRIGHT if grey > 127 else DARK for grey in greys]
    texts = [f"<image>{question}<answer>{answer}<end>" for answer in answers]
    batch = processor(images=images, text=texts, padding=True, padding_side="right", return_tensors="pt")
    starts = (batch["input_ids"] == processor.tokenizer.convert_tokens_to_ids("<answer>")).cumsum(-1)
    labels = batch["input_ids"].where((starts > 0) & (batch["attention_mask"] > 0), torch.tensor(-100))
    for _ in range(steps):
        loss = model(**batch, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return loss.item()
