"""The adapter: exact exchange of weights, and files that can be read back."""

import errno
import os
import subprocess
import sys

import numpy as np
import pytest

from actors.policy.policy import Policy
from actors.policy.settings import LoraSettings
from actors.policy.trained import LORA_FILE, WEIGHTS_FILE, read_trained
from actors.policy.weights import checksum
from services.base.errors import UserError
from tests.helpers.paths import ROOT
from tests.helpers.tiny import stir, tiny_settings

LORA = LoraSettings(rank=4, alpha=8)


@pytest.mark.parametrize("whole", [False, True], ids=["adapter", "transformer"])
def test_a_failure_of_the_storage_is_an_os_error_also_where_safetensors_makes_text_of_it(sd3_folder, tmp_path, whole):
    policy = Policy(tiny_settings(sd3_folder, **({"lora": None} if whole else {})), seed=0)
    file = WEIGHTS_FILE if whole else LORA_FILE
    (tmp_path / file).mkdir()
    with pytest.raises(OSError, match="Is a directory") as failure:
        policy.save(tmp_path)
    assert failure.value.errno == errno.EISDIR


def test_two_policies_of_one_seed_start_equal_and_exchange_weights_exactly(sd3_folder):
    first, second = (Policy(tiny_settings(sd3_folder), seed=3) for _ in range(2))
    assert first.export(0).checksum == second.export(0).checksum
    stir(first)
    weights = first.export(5)
    assert (
        second.load(weights.arrays) == weights.checksum != checksum(Policy(tiny_settings(sd3_folder), seed=3).arrays())
    )
    assert weights.version == 5


def test_weights_of_another_shape_are_refused(sd3_folder):
    small = Policy(tiny_settings(sd3_folder, lora=LoraSettings(rank=2, alpha=4)), seed=0)
    with pytest.raises(UserError, match="another policy"):
        Policy(tiny_settings(sd3_folder), seed=0).load(small.arrays())


def test_checksum_sees_every_byte_name_and_shape():
    base = {"a": np.zeros((2, 3), np.float32), "b": np.ones(2, np.float32)}
    assert checksum(base) == checksum(dict(reversed(base.items())))
    for changed in (
        base | {"b": np.array([1, np.nextafter(np.float32(1), np.float32(2))], np.float32)},
        base | {"a": np.zeros((3, 2), np.float32)},
        {"a": base["a"], "c": base["b"]},
    ):
        assert checksum(changed) != checksum(base)


def test_saved_adapter_can_be_read_back(sd3_folder, tmp_path):
    policy = Policy(tiny_settings(sd3_folder), seed=0)
    stir(policy)
    other = {name: array + 1 for name, array in policy.arrays().items()}
    policy.save(tmp_path, other)
    assert checksum(read_trained(tmp_path, LORA, "policy.adapter")) == checksum(other)


def test_missing_models_are_named(sd3_folder, tmp_path):
    settings = tiny_settings(sd3_folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="model_index"):
        Policy(settings.model_copy(update={"model": str(tmp_path / "empty")}), 0)
    with pytest.raises(UserError, match=r"lora\.targets"):
        Policy(settings.model_copy(update={"lora": LoraSettings(targets=("nothing",))}), 0)


def test_training_may_start_from_an_earlier_adapter(sd3_folder, tmp_path):
    earlier = Policy(tiny_settings(sd3_folder), seed=0)
    stir(earlier)
    earlier.save(tmp_path)
    started = Policy(tiny_settings(sd3_folder, adapter=str(tmp_path)), seed=5)
    assert started.export(0).checksum == earlier.export(0).checksum
    with pytest.raises(UserError, match="another policy"):
        Policy(tiny_settings(sd3_folder, adapter=str(tmp_path), lora=LoraSettings(rank=2, alpha=8)), seed=0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_neither_loaded_nor_exported(sd3_folder, value):
    policy = Policy(tiny_settings(sd3_folder), seed=0)
    arrays = policy.arrays()
    next(iter(arrays.values())).flat[3] = value
    with pytest.raises(UserError, match="NaN or infinity"):
        policy.load(arrays)


def test_the_same_weights_are_saved_as_the_same_bytes_in_every_process(sd3_folder, tmp_path):
    code = (
        "import sys, pathlib\nfrom tests.helpers.tiny import tiny_settings\nfrom actors.policy.policy import Policy\n"
        "Policy(tiny_settings(pathlib.Path(sys.argv[1])), seed=0).save(pathlib.Path(sys.argv[2]))"
    )
    for seed in ("1", "2"):
        command = [sys.executable, "-c", code, str(sd3_folder), str(tmp_path / seed)]
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        subprocess.run(command, env=environment, cwd=ROOT, check=True, timeout=120)
    file = "pytorch_lora_weights.safetensors"
    assert (tmp_path / "1" / file).read_bytes() == (tmp_path / "2" / file).read_bytes()
