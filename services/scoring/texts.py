"""The embeddings of texts, each computed once while it is among the latest.

The images of one prompt come in many batches and several requests, and each batch needs the embedding of the same text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

KEPT = 256
"""Texts whose embeddings are kept: more than the prompts of a training step. 256 of 1,024 numbers are 1 MB."""


class TextEmbeddings:
    """Computes and keeps embeddings. A text always has the same bits, whether it was kept or not.

    Matrix products have other last bits for other numbers of rows. Therefore a batch always has the same number, and
    the free rows repeat the first text.

    Args:
        embed: computes the embeddings (B, D) of exactly `batch_size` texts.
        batch_size: the number of texts in one call of `embed`.
    """

    def __init__(self, embed: Callable[[list[str]], torch.Tensor], batch_size: int) -> None:
        self.embed, self.batch_size = embed, batch_size
        self.kept: dict[str, torch.Tensor] = {}
        """(D,) by text. The text that was used last is at the end."""

    def __call__(self, texts: Sequence[str]) -> list[torch.Tensor]:
        """The embedding (D,) of each text."""
        found = {text: self.kept.pop(text) for text in dict.fromkeys(texts) if text in self.kept}
        missing = [text for text in dict.fromkeys(texts) if text not in found]
        for start in range(0, len(missing), self.batch_size):
            batch = missing[start : start + self.batch_size]
            embedding_BD = self.embed(batch + batch[:1] * (self.batch_size - len(batch)))
            found |= {text: embedding_D.clone() for text, embedding_D in zip(batch, embedding_BD, strict=False)}
        self.kept |= found
        for text in list(self.kept)[:-KEPT]:
            del self.kept[text]
        return [found[text] for text in texts]
