"""What must hold on a GPU: a rank joins, numbers are the CPU's, the first ratios are 1, and bits can be had again.

Each test is a function of the device. On `cuda` it is marked `gpu` (make test-gpu) and skipped where there is no CUDA
device; on `cpu` it is a quick test like any other, which shows that the function itself is right. All but the first
are the checks of `tempflow bench gpu`.
"""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from actors.learner.ranks import Ranks, Rendezvous, join
from system.bench.gpu.determinism import differing, run_process
from system.bench.gpu.models import MODELS, TINY, settings_of
from system.bench.gpu.parity import beyond, differences
from system.bench.gpu.ratio import still_ratio
from system.bench.gpu.work import policy_of, without_tf32

JOIN_TIMEOUT_S = 60
NEEDS_CUDA = (pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"))
CUDA = pytest.param("cuda", marks=NEEDS_CUDA)
DEVICES = pytest.mark.parametrize("device", ["cpu", CUDA])
EVERY_MODEL = pytest.mark.parametrize("model", MODELS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where the tiny models are built, once each."""
    return tmp_path_factory.mktemp("tiny")


@DEVICES
def test_a_rank_joins_its_process_group_and_sums(device, folder, monkeypatch):
    """The learner's actor joins with the device of its policy, and so does this test."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")  # `join` sets it for the process; this puts it back
    policy = policy_of(settings_of("StableDiffusion3Pipeline", folder, device=device), "transformer")
    meeting = Rendezvous("127.0.0.1", JOIN_TIMEOUT_S)
    join(meeting.endpoint, Ranks(0, 1), policy.device, JOIN_TIMEOUT_S)
    try:
        assert dist.get_backend() == ("nccl" if device == "cuda" else "gloo")
        tensor = torch.arange(5.0, device=policy.device)
        dist.all_reduce(tensor)
        assert tensor.tolist() == [0, 1, 2, 3, 4]
    finally:
        dist.destroy_process_group()


@EVERY_MODEL
@DEVICES
def test_a_device_gives_the_numbers_of_the_cpu(device, model, folder):
    with without_tf32():
        here, there = (settings_of(model, folder, dtype="fp32", device=name) for name in ("cpu", device))
        assert beyond(differences(here, there)) == []


@EVERY_MODEL
@pytest.mark.parametrize(
    ("device", "compiled"),
    [("cpu", False), pytest.param("cuda", False, marks=NEEDS_CUDA), pytest.param("cuda", True, marks=NEEDS_CUDA)],
)
def test_the_first_ratio_is_exactly_one_in_bf16(device, compiled, model, folder):
    deviation, grad_norm = still_ratio(settings_of(model, folder, dtype="bf16", device=device, compile=compiled))
    assert deviation == 0
    assert grad_norm > 0


@DEVICES
def test_deterministic_algorithms_give_the_same_bits_again(device):
    made = run_process(device, "deterministic")["made"]
    assert len(made) == len(TINY) + 1
    assert set(differing(made, made).values()) == {""}
