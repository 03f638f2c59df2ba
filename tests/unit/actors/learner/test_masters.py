"""fp32 masters under bf16 weights, of an adapter or of a whole model; its reference and its saved files."""

import pytest
import torch
from diffusers import SD3Transformer2DModel

from actors.learner.settings import EmaSettings, GrpoSettings, LearnerSettings
from actors.policy.arrays import to_array, to_tensor
from actors.policy.policy import Policy
from actors.policy.trained import read_trained
from services.base.errors import UserError
from services.base.storage import Folder
from tests.helpers.learners import keep, learner_of, tasks_of
from tests.helpers.tiny import stir, tiny_settings

FULL = {"lora": None, "dtype": "bf16"}
TRAINED = pytest.mark.parametrize("trained", [FULL, {"dtype": "bf16"}], ids=["every weight", "adapter"])
SMALL_LR = LearnerSettings(lr=1e-6, weight_decay=0, micro_batch=3, max_drift=10)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("optimizer_steps", [1, 2])
def test_ratio_is_exactly_one_with_every_weight_trained(sd3_folder, dtype, optimizer_steps):
    changes = {"lora": None, "dtype": dtype, "guidance": 4.5}
    settings = LearnerSettings(lr=1e-3, micro_batch=3, max_drift=10)
    objective = GrpoSettings(optimizer_steps=optimizer_steps, kl=0.1)
    stats = learner_of(sd3_folder, objective, settings, **changes).update(tasks_of(sd3_folder, **changes))
    assert stats.first_ratio_deviation == 0.0
    assert stats.kl == 0.0 if optimizer_steps == 1 else stats.kl > 0


@TRAINED
def test_steps_too_small_for_bf16_add_up_in_the_masters(sd3_folder, trained):
    learner = learner_of(sd3_folder, settings=SMALL_LR, **trained)
    masters = {name: tensor.detach().clone() for name, tensor in learner.masters.tensors.items()}
    learner.update(tasks_of(sd3_folder, **trained))
    moved = max(
        float((tensor.detach() - masters[name]).abs().max()) for name, tensor in learner.masters.tensors.items()
    )
    assert 5e-7 < moved < 2e-6
    for name, parameter in learner.policy.parameters.items():
        master = learner.masters.tensors[name]
        assert parameter.dtype == torch.bfloat16
        assert master.dtype == learner.optimizer.state[master]["exp_avg"].dtype == torch.float32
        assert torch.equal(master.bfloat16(), parameter)


@TRAINED
def test_gradients_of_micro_batches_add_up_in_fp32(sd3_folder, trained):
    batch = tasks_of(sd3_folder, **trained)
    norms = [
        learner_of(sd3_folder, settings=LearnerSettings(micro_batch=n, max_drift=10), **trained).update(batch).grad_norm
        for n in (1, 16)
    ]
    assert norms[0] == pytest.approx(norms[1], rel=0.02)


def test_the_reference_is_the_base_before_training(sd3_folder):
    policy = Policy(tiny_settings(sd3_folder, lora=None), seed=0)
    base = policy.export(0).checksum
    stir(policy)
    trained = policy.export(1).checksum
    with policy.base():
        assert policy.export(0).checksum == base
    assert policy.export(1).checksum == trained != base


def test_a_policy_that_keeps_no_base_has_no_copy_of_it(sd3_folder):
    policy = Policy(tiny_settings(sd3_folder, lora=None), seed=0, keeps_base=False)
    with pytest.raises(RuntimeError, match="keeps_base"), policy.base():
        pass
    adapter = Policy(tiny_settings(sd3_folder), seed=0, keeps_base=False)
    with adapter.base():
        assert not any(name for name, module in adapter.transformer.named_modules() if is_on(module))


def is_on(module) -> bool:
    """Whether a layer adds its adapter."""
    return hasattr(module, "lora_A") and not module.disable_adapters


@TRAINED
@pytest.mark.parametrize("ema", [None, EmaSettings(every=1)])
def test_a_restored_learner_continues_bit_for_bit(sd3_folder, tmp_path, ema, trained):
    batch = tasks_of(sd3_folder, **trained)
    settings = LearnerSettings(lr=1e-4, ema=ema, max_drift=10)
    learner = learner_of(sd3_folder, settings=settings, **trained)
    learner.update(batch)
    keep(learner, tmp_path)
    learner.update(batch)
    again = learner_of(sd3_folder, settings=settings, **trained)
    again.restore(Folder.at(str(tmp_path)), 1)
    again.update(batch)
    assert again.export().checksum == learner.export().checksum
    assert again.evaluated().checksum == learner.evaluated().checksum
    workers = Policy(tiny_settings(sd3_folder, **trained), seed=0)
    assert workers.load(again.evaluated().arrays) == again.evaluated().checksum


def test_the_saved_transformer_is_read_by_diffusers_and_by_us(sd3_folder, tmp_path):
    policy = Policy(tiny_settings(sd3_folder, **FULL), seed=0)
    stir(policy)
    policy.save(tmp_path / "transformer")
    theirs = SD3Transformer2DModel.from_pretrained(tmp_path / "transformer", dtype=torch.bfloat16)
    state = theirs.state_dict()
    assert all(torch.equal(state[name], parameter) for name, parameter in policy.parameters.items())
    started = Policy(tiny_settings(sd3_folder, adapter=str(tmp_path / "transformer"), **FULL), seed=0)
    assert started.export(0).checksum == policy.export(0).checksum
    with pytest.raises(UserError, match=r"holds a whole transformer"):
        read_trained(tmp_path / "transformer", tiny_settings(sd3_folder).lora, "--adapter")


def test_a_saved_adapter_keeps_the_masters_bits(sd3_folder, tmp_path):
    settings = LearnerSettings(lr=1e-4, max_drift=10)
    learner = learner_of(sd3_folder, settings=settings, dtype="bf16")
    learner.update(tasks_of(sd3_folder, dtype="bf16"))
    learner.save_model(tmp_path)
    saved = read_trained(tmp_path, learner.policy.settings.lora, "--adapter")
    for name, master in learner.masters.tensors.items():
        assert torch.equal(to_tensor(saved[name]), master.detach())
    assert any(not torch.equal(master, master.bfloat16().float()) for master in learner.masters.tensors.values())


def test_training_goes_on_from_the_masters_of_a_saved_adapter(sd3_folder, tmp_path):
    settings = LearnerSettings(lr=1e-4, max_drift=10)
    first = learner_of(sd3_folder, settings=settings, dtype="bf16")
    first.update(tasks_of(sd3_folder, dtype="bf16"))
    first.save_model(tmp_path)
    second = learner_of(sd3_folder, settings=settings, dtype="bf16", adapter=str(tmp_path))
    for name, master in first.masters.tensors.items():
        assert torch.equal(second.masters.tensors[name], master)
    assert second.export().checksum == first.export().checksum


def test_bf16_keeps_its_bits_as_an_array():
    tensor = torch.randn(3, 5).bfloat16()
    assert torch.equal(to_tensor(to_array(tensor)), tensor)
