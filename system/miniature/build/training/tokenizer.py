"""A byte-pair tokenizer trained on the grammar of captions. It is a standard CLIPTokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterable

from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizer

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
MAX_TOKENS = 16
"""The length of the longest caption: fourteen words between the two special tokens."""


def new_tokenizer(captions: Iterable[str]) -> CLIPTokenizer:
    """A tokenizer whose vocabulary is the bytes and the merges that make each word of the grammar one token."""
    words = sorted({word for text in captions for word in text.split()})
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    model = Tokenizer(BPE(end_of_word_suffix="</w>"))
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = BpeTrainer(vocab_size=10_000, min_frequency=1, end_of_word_suffix="</w>", show_progress=False)
    model.train_from_iterator(words, trainer)
    merges = [tuple(pair) for pair in _merges(model)]
    entries = [*alphabet, *(letter + "</w>" for letter in alphabet), *("".join(pair) for pair in merges), BOS, EOS]
    vocab = {entry: i for i, entry in enumerate(dict.fromkeys(entries))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_TOKENS)


def _merges(model: Tokenizer) -> list[list[str]]:
    return json.loads(model.to_str())["model"]["merges"]
