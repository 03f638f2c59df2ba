"""What several tiny pipelines share."""

import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer


def clip_tokenizer(max_length: int = 16) -> CLIPTokenizer:
    """A byte-level CLIP tokenizer of 514 ids, without merges."""
    symbols = sorted(ByteLevel.alphabet())
    words = symbols + [symbol + "</w>" for symbol in symbols] + ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=max_length)


def loud(model: torch.nn.Module) -> torch.nn.Module:
    """Random weights large enough that nothing is flat: fresh models put out zeros, which any code reproduces."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return model
