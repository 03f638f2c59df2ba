"""What must hold on a GPU: a rank joins, numbers are the CPU's, the first ratios are 1, and bits can be had again.

Each test is a function of the device. On `cuda` it is marked `gpu` (make test-gpu) and skipped where there is no CUDA
device; on `cpu` it is a quick test like any other, which shows that the function itself is right.
"""

import json
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.distributed as dist

from actors.learner.ranks import Ranks, Rendezvous, join
from actors.policy.settings import PolicySettings
from tests.helpers.families import FAMILIES, Case
from tests.helpers.gpu_work import change_of, family_settings, miniature_settings, policy_of, task_of, update_of
from tests.helpers.paths import ROOT

JOIN_TIMEOUT_S = 60
SCRIPT_TIMEOUT_S = 600
NEEDS_CUDA = (pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"))
CUDA = pytest.param("cuda", marks=NEEDS_CUDA)
DEVICES = pytest.mark.parametrize("device", ["cpu", CUDA])
MODELS = pytest.mark.parametrize("model", [*FAMILIES, "miniature"], ids=str)
BOUND = 1e-4
"""Of relative differences between devices in fp32. A change of every weight by a rounding of fp32 (6e-8) moves all that
is compared by at most 5e-6; a rounding of TF32 (3e-4) moves the update by 2e-3 or more."""
GREY_LEVELS = 1
"""Images may differ by so many of 255: halfway between two grey levels, one device may round up and the other down."""


def settings_of(model: Case | str, tiny_folder, **changes) -> PolicySettings:
    if isinstance(model, Case):
        return family_settings(model, tiny_folder(model), **changes)
    return miniature_settings(**changes)


@pytest.fixture
def without_tf32() -> Iterator[None]:
    """Products and convolutions of fp32 are fp32 on a GPU, too."""
    switches = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = False
    yield
    for switch, allowed in zip(switches, before, strict=True):
        switch.allow_tf32 = allowed


def relative(one: np.ndarray, other: np.ndarray) -> float:
    """The norm of the difference, as a share of the norm of `one`."""
    return float(np.linalg.norm(one - other) / np.linalg.norm(one))


@DEVICES
def test_a_rank_joins_its_process_group_and_sums(device, sd3_folder, monkeypatch):
    """The learner's actor joins with the device of its policy, and so does this test."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")  # `join` sets it for the process; this puts it back
    policy = policy_of(family_settings(FAMILIES[0], sd3_folder, device=device), "transformer")
    meeting = Rendezvous("127.0.0.1", JOIN_TIMEOUT_S)
    join(meeting.endpoint, Ranks(0, 1), policy.device, JOIN_TIMEOUT_S)
    try:
        assert dist.get_backend() == ("nccl" if device == "cuda" else "gloo")
        tensor = torch.arange(5.0, device=policy.device)
        dist.all_reduce(tensor)
        assert tensor.tolist() == [0, 1, 2, 3, 4]
    finally:
        dist.destroy_process_group()


@MODELS
@DEVICES
@pytest.mark.usefixtures("without_tf32")
def test_a_device_gives_the_numbers_of_the_cpu(device, model, tiny_folder):
    """In fp32. The other side runs other micro-batches, so that some of its roundings differ on a CPU, too."""
    here, there = (settings_of(model, tiny_folder, dtype="fp32", device=name) for name in ("cpu", device))
    decisions, images_MHWC = task_of(here, micro_batch=8)
    theirs, their_images_MHWC = task_of(there, micro_batch=6)
    assert relative(decisions.state_NZ, theirs.state_NZ) < BOUND
    assert relative(decisions.action_NKZ, theirs.action_NKZ) < BOUND
    assert relative(decisions.log_prob_NK, theirs.log_prob_NK) < BOUND
    assert np.abs(images_MHWC.astype(int) - their_images_MHWC).max() <= GREY_LEVELS

    learner, stats = update_of(here, decisions, micro_batch=8)
    their_learner, their_stats = update_of(there, decisions, micro_batch=5)
    assert their_stats.first_ratio_deviation == 0
    assert np.nanmax(their_stats.drift_max) < BOUND
    assert their_stats.grad_norm == pytest.approx(stats.grad_norm, rel=BOUND)
    assert relative(change_of(learner, here), change_of(their_learner, there)) < BOUND


@MODELS
@pytest.mark.parametrize(
    ("device", "compiled"),
    [("cpu", False), pytest.param("cuda", False, marks=NEEDS_CUDA), pytest.param("cuda", True, marks=NEEDS_CUDA)],
)
def test_the_first_ratio_is_exactly_one_in_bf16(device, compiled, model, tiny_folder):
    if compiled:
        torch.compiler.reset()  # a process compiles only so many versions of one forward, and runs the rest eagerly
    settings = settings_of(model, tiny_folder, dtype="bf16", device=device, compile=compiled)
    decisions, _ = task_of(settings)
    _, stats = update_of(settings, decisions)
    assert stats.first_ratio_deviation == 0
    assert stats.grad_norm > 0


@DEVICES
def test_deterministic_algorithms_give_the_same_bits_again(device):
    command = [sys.executable, "-m", "tests.gpu.determinism", device]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SCRIPT_TIMEOUT_S)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert len(found) == len(FAMILIES) + 1
    for name, digests in found.items():
        assert len(set(digests["rollouts"])) == 1, f"{name}: two rollouts differ"
        assert len(set(digests["updates"])) == 1, f"{name}: two learners differ"
        assert digests["updates"][0] != digests["before"][0], f"{name}: the update changed nothing"
