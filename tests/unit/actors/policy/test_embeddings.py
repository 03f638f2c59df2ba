"""Embeddings: one encoding a prompt, equal bits from memory and disk, bounded memory."""

import shutil

import pyarrow as pa
import pytest
import torch

from actors.policy.embeddings import Embeddings
from actors.policy.policy import Policy
from tests.helpers.families import FAMILIES
from tests.helpers.tiny import tiny_settings


class Counting:
    """A family that counts what it encodes."""

    def __init__(self, family) -> None:
        self.family, self.encoded = family, []

    def __getattr__(self, name):
        return getattr(self.family, name)

    def encode(self, prompts):
        self.encoded += prompts
        return self.family.encode(prompts)


def same(left, right) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture(scope="module")
def family(sd3_folder):
    return Policy(tiny_settings(sd3_folder, guidance=4.5), seed=0).family


def test_a_prompt_is_encoded_once_and_alone(family):
    counting = Counting(family)
    embed = Embeddings(counting, 2**20)
    both = embed(["a cat", "a much longer dog", "a cat"])
    assert counting.encoded == ["a cat", "a much longer dog"]
    assert same({name: rows[2:] for name, rows in both.items()}, embed(["a cat"]))
    assert same(embed(["a cat"]), family.encode(["a cat"]))
    assert len(counting.encoded) == 2


@pytest.mark.parametrize("case", FAMILIES, ids=str)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_disk_keeps_every_bit_for_other_workers(case, dtype, tiny_folder, tmp_path):
    settings = tiny_settings(tiny_folder(case), guidance=case.guidances[-1], dtype=dtype, **case.settings)
    first, second = (Counting(Policy(settings, seed=0).family) for _ in range(2))
    fresh = Embeddings(first, 0, tmp_path)(["a cat", "b"])
    assert same(Embeddings(second, 0, tmp_path)(["a cat", "b"]), fresh)
    assert not second.encoded
    assert len(list(tmp_path.iterdir())) == 2
    longer = settings.model_copy(update={"max_sequence_length": settings.max_sequence_length + 1})
    other = Counting(Policy(longer, seed=0).family)
    Embeddings(other, 0, tmp_path)(["b"])
    assert other.encoded == ["b"]


def test_a_model_that_takes_the_place_of_another_gets_embeddings_of_its_own(sd3_folder, tmp_path):
    model, kept = tmp_path / "model", tmp_path / "kept"
    shutil.copytree(sd3_folder, model)
    counting = Counting(Policy(tiny_settings(model, guidance=4.5), seed=0).family)
    for encoded in (1, 1, 2, 2):
        if encoded == 2:
            (model / "note").write_text("another model")
        Embeddings(counting, 0, kept)(["a cat"])
        assert len(counting.encoded) == encoded


@pytest.mark.parametrize("torn", [0, 8, 200])
def test_a_torn_file_is_written_again(family, tmp_path, torn):
    counting = Counting(family)
    whole = Embeddings(counting, 0, tmp_path)(["a cat"])
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    file.write_bytes(content[:torn])
    assert same(Embeddings(counting, 0, tmp_path)(["a cat"]), whole)
    assert len(counting.encoded) == 2
    assert file.read_bytes() == content


def test_two_workers_may_write_the_same_prompt_at_once(family, tmp_path, monkeypatch):
    """Workers on different nodes share the folder, and their processes may have the same number."""
    new_file, opened = pa.ipc.new_file, []

    def while_another_writes(*arguments):
        opened.append(arguments)
        file = new_file(*arguments)
        if len(opened) == 1:
            Embeddings(family, 0, tmp_path)(["a cat"])
        return file

    monkeypatch.setattr(pa.ipc, "new_file", while_another_writes)
    fresh = Embeddings(family, 0, tmp_path)(["a cat"])
    assert len(opened) == 2
    counting = Counting(family)
    assert same(Embeddings(counting, 0, tmp_path)(["a cat"]), fresh)
    assert not counting.encoded
    assert len(list(tmp_path.iterdir())) == 1


def test_memory_is_bounded_and_the_oldest_prompt_goes_first(family):
    counting = Counting(family)
    one = sum(rows.nbytes for rows in family.encode(["x"]).values())
    embed = Embeddings(counting, 2 * one)
    for prompt in ("a", "b", "a", "c", "a", "b"):
        embed([prompt])
    assert counting.encoded == ["a", "b", "c", "b"]
