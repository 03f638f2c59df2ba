"""A full GPU as a sentence."""

import numpy as np
import pytest
import torch

from actors.policy.policy import Policy
from services.base.devices import naming_full_memory
from services.base.errors import UserError
from services.scoring.loaded import LoadedScorer
from services.scoring.settings import ScorerSettings
from tests.helpers.tiny import tiny_settings

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


def test_a_library_that_gets_no_memory_is_the_same():
    said = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
    with pytest.raises(UserError, match=r"^the memory of the GPU is full; lower it$"), naming_full_memory("lower it"):
        raise RuntimeError(said)


def test_a_model_without_room_is_a_sentence_where_it_is_loaded(sd3_folder, monkeypatch):
    """The GPU is in use by another process, or the model is too large for it."""

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError(SAID)

    monkeypatch.setattr("actors.policy.families.sd3.SD3.load", full)
    with pytest.raises(UserError, match=r"asked for 2.50 GiB, the GPU has 79.19 GiB\); free it \(nvidia-smi lists"):
        Policy(tiny_settings(sd3_folder), 0)


class Full:
    """A scorer without room: as its model is loaded, or as it scores."""

    def __init__(self, loads: bool) -> None:
        if not loads:
            raise torch.OutOfMemoryError(SAID)

    def __call__(self, images_NHWC, prompts):
        raise torch.OutOfMemoryError(SAID)


def test_a_scorer_without_room_names_its_share():
    def scorer(loads: bool) -> LoadedScorer:
        return LoadedScorer(ScorerSettings(name="mine", scorer=f"{__name__}:Full", options={"loads": loads}))

    share = "raise num_gpus of the scorer `mine`, which is its share of the GPU"
    with pytest.raises(UserError, match=f"the GPU has 79.19 GiB.; {share}$"):
        scorer(loads=False)
    with pytest.raises(UserError, match=f"; {share}, or lower its options.batch_size$"):
        scorer(loads=True).score(np.zeros((1, 4, 4, 3), np.uint8), ["x"])
