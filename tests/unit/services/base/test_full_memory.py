"""A full GPU as a sentence."""

import pytest
import torch

from services.base.devices import naming_full_memory
from services.base.errors import UserError

SAID = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.19 GiB of which 1.20 GiB is "
    "free. "
    "Including non-PyTorch memory, this process has 77.99 GiB memory in use."
)


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        (SAID, "the memory of the GPU is full (PyTorch asked for 2.50 GiB, the GPU has 79.19 GiB); lower it"),
        ("CUDA error: out of memory", "the memory of the GPU is full; lower it"),
    ],
)
def test_it_says_what_was_asked_for_and_what_helps(said, sentence):
    @naming_full_memory("lower it")
    def work() -> None:
        raise torch.OutOfMemoryError(said)

    for _ in range(2):
        with pytest.raises(UserError) as full:
            work()
        assert str(full.value) == sentence


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="another"), naming_full_memory("lower it"):
        raise RuntimeError("another")
