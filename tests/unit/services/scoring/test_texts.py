"""The embeddings of texts that are kept: how often a text tower runs, and how many are kept."""

import torch

from services.scoring import texts
from services.scoring.texts import TextEmbeddings


class Tower:
    """Embeds a text as its length, and notes the batches that it gets."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def __call__(self, batch: list[str]) -> torch.Tensor:
        self.batches.append(batch)
        return torch.tensor([[float(len(text))] for text in batch])


def test_each_text_is_embedded_once_in_full_batches():
    tower = Tower()
    embeddings = TextEmbeddings(tower, 2)
    assert [float(embedding_D) for embedding_D in embeddings(["a", "bb", "a", "ccc"])] == [1, 2, 1, 3]
    assert [float(embedding_D) for embedding_D in embeddings(["ccc", "dddd"])] == [3, 4]
    assert tower.batches == [["a", "bb"], ["ccc", "ccc"], ["dddd", "dddd"]]
    assert embeddings([]) == []


def test_the_text_that_was_used_longest_ago_is_dropped_first(monkeypatch):
    monkeypatch.setattr(texts, "KEPT", 2)
    tower = Tower()
    embeddings = TextEmbeddings(tower, 1)
    for text in ("a", "b", "a", "c", "a", "b"):
        embeddings([text])
    assert tower.batches == [["a"], ["b"], ["c"], ["b"]]
    assert list(embeddings.kept) == ["a", "b"]


def test_a_call_may_have_more_texts_than_are_kept(monkeypatch):
    monkeypatch.setattr(texts, "KEPT", 2)
    embeddings = TextEmbeddings(Tower(), 2)
    assert [float(embedding_D) for embedding_D in embeddings(["a", "bb", "ccc", "a"])] == [1, 2, 3, 1]
    assert list(embeddings.kept) == ["bb", "ccc"]


def test_a_kept_embedding_does_not_hold_the_memory_of_its_batch():
    (embedding_D,) = TextEmbeddings(Tower(), 64)(["a"])
    assert embedding_D.untyped_storage().nbytes() == embedding_D.nbytes
