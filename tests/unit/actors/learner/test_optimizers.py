"""AdamW with its moments on the CPU: the bits of AdamW, in one process and in the shards of two."""

from pathlib import Path

import pytest
import torch

from actors.learner.learner import Learner
from actors.learner.optimizers import MOMENTS, OffloadedAdamW, make_optimizer
from actors.learner.ranks import Ranks
from actors.learner.settings import GrpoSettings, LearnerSettings
from actors.policy.policy import Policy
from actors.policy.settings import PolicySettings
from services.base.storage import Folder
from tests.helpers.learners import KERNEL, PLAN, keep, learner_of, tasks_of
from tests.helpers.ranks import SIZE
from tests.helpers.tiny import tiny_settings

NEEDS_CUDA = (pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"))
DEVICES = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_CUDA)])
KINDS = pytest.mark.parametrize(
    "changes", [{"lora": None}, {"lora": None, "dtype": "bf16"}, {}], ids=["fp32", "bf16", "adapter"]
)
OBJECTIVE = GrpoSettings(optimizer_steps=2)


def settings_with(optimizer: str, **changes) -> LearnerSettings:
    return LearnerSettings(optimizer=optimizer, lr=1e-3, micro_batch=3, max_drift=10, **changes)


@KINDS
def test_the_bits_are_those_of_adamw_and_either_continues_the_other(sd3_folder, tmp_path, changes):
    batch = tasks_of(sd3_folder, **changes)
    exported = {}
    for optimizer in ("adamw", "adamw_offload"):
        learner = learner_of(sd3_folder, OBJECTIVE, settings_with(optimizer), **changes)
        assert isinstance(learner.optimizer, OffloadedAdamW) == (optimizer == "adamw_offload")
        learner.update(batch)
        (tmp_path / optimizer).mkdir()
        keep(learner, tmp_path / optimizer)
        learner.update(batch)
        exported[optimizer] = learner.export().checksum
    assert exported["adamw"] == exported["adamw_offload"]
    for written_by in ("adamw", "adamw_offload"):
        for continued_by in ("adamw", "adamw_offload"):
            learner = learner_of(sd3_folder, OBJECTIVE, settings_with(continued_by), **changes)
            learner.restore(Folder.at(str(tmp_path / written_by)), 1)
            learner.update(batch)
            assert learner.export().checksum == exported["adamw"]


def update(rank: int, policy: PolicySettings, optimizer: str, folder: Path) -> list[str]:
    """Checksums after two updates of a sharded learner, and after a checkpoint of the first and the second update."""

    def learner() -> Learner:
        settings = settings_with(optimizer, ranks=SIZE, shard=True)
        sharded = Policy(policy, 0, "transformer", keeps_base=False, ranks=SIZE)
        return Learner(sharded, KERNEL, OBJECTIVE, settings, PLAN.trained_steps, Ranks(rank, SIZE))

    tasks = tasks_of(policy.model, 4, lora=policy.lora, dtype=policy.dtype)
    batch = [
        (decisions if i % SIZE == rank else None, advantage_NK) for i, (decisions, advantage_NK) in enumerate(tasks)
    ]
    first, again = learner(), learner()
    first.update(batch)
    keep(first, folder)
    torch.distributed.barrier()
    first.update(batch)
    again.restore(Folder.at(str(folder)), 1)
    again.update(batch)
    return [one.export().checksum for one in (first, again)]


@pytest.mark.parametrize("changes", [{"lora": None}, {"lora": None, "dtype": "bf16"}], ids=["fp32", "bf16"])
def test_sharded_moments_give_the_same_bits_and_continue(sd3_folder, tmp_path, together, changes):
    settings = tiny_settings(sd3_folder, **changes)
    found = {}
    for optimizer in ("adamw", "adamw_offload"):
        (tmp_path / optimizer).mkdir()
        whole, again = together(update, settings, optimizer, tmp_path / optimizer)[0]
        assert whole == again
        found[optimizer] = whole
    assert found["adamw"] == found["adamw_offload"]


@DEVICES
def test_moments_stay_in_the_same_memory_of_the_cpu(device):
    parameters = [torch.randn(5, 3, device=device, requires_grad=True) for _ in range(3)]
    frozen = torch.randn(2, device=device, requires_grad=True)
    optimizer = make_optimizer(settings_with("adamw_offload"), [*parameters, frozen])
    places = []
    for _ in range(2):
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        states = [optimizer.state[parameter] for parameter in parameters]
        places.append([state[name].data_ptr() for state in states for name in MOMENTS])
        assert all(state[name].device.type == "cpu" for state in states for name in MOMENTS)
        assert all(state[name].is_pinned() == (device == "cuda") for state in states for name in MOMENTS)
        assert [float(state["step"]) for state in states] == [len(places)] * 3
    assert places[0] == places[1]
    assert not optimizer.state[frozen]
    assert len(optimizer.param_groups[0]["params"]) == 4
