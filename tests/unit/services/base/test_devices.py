"""Which device a process takes, and how it sets PyTorch up before CUDA starts."""

import json
import re
import subprocess
import sys

import pytest
import torch

from services.base.devices import device_of, machine_fault
from services.base.errors import UserError


@pytest.fixture
def gpu(monkeypatch):
    """A machine on which Ray has given this process its GPU as number 1."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)


@pytest.mark.parametrize("setting", ["auto", "cuda"])
def test_a_gpu_has_an_index_without_which_no_process_group_starts(gpu, setting):
    assert device_of(setting) == torch.device("cuda", 1)
    assert device_of("cpu") == torch.device("cpu")
    assert device_of("cuda:0") == torch.device("cuda", 0)


@pytest.mark.parametrize("setting", ["gpu", "mps", "cuda:", "cuda:x", "", "cpu:0"])
def test_a_device_that_is_none_is_refused(gpu, setting):
    with pytest.raises(UserError, match="it must be auto, cpu, cuda or cuda:N"):
        device_of(setting)


def test_without_a_gpu_auto_is_the_cpu_and_cuda_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of("auto") == torch.device("cpu")
    with pytest.raises(UserError, match="finds no GPU here; set it to auto or cpu"):
        device_of("cuda")


SCORER = """
import os, sys
from services.base.devices import preparing_scorer
deterministic, when = sys.argv[1:]
with preparing_scorer(3 if when == "as it loads" else 1, 0, deterministic == "yes"):
    if when == "as it loads":
        import torch
print("torch" in sys.modules)
import torch
print(torch.get_num_threads(), os.environ["CUDA_VISIBLE_DEVICES"] == "", torch.are_deterministic_algorithms_enabled())
"""


@pytest.mark.parametrize(
    ("deterministic", "when", "expected"),
    [
        ("no", "when it is called", ["False", "1", "True", "False"]),
        ("no", "as it loads", ["True", "3", "True", "False"]),
        ("yes", "when it is called", ["True", "1", "True", "True"]),
    ],
)
def test_pytorch_is_imported_for_a_scorer_only_if_it_must_be_set_up(deterministic, when, expected):
    command = [sys.executable, "-c", SCORER, deterministic, when]
    env = {"OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": "3", "PATH": "", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == expected


PREPARED = """
import json, os, sys
from services.base.devices import prepare_torch
from services.base.errors import UserError
said = ""
try:
    prepare_torch(2, float(sys.argv[1]), sys.argv[2] == "yes")
except UserError as error:
    said = str(error)
import torch
print(json.dumps([
    os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("CUBLAS_WORKSPACE_CONFIG"), torch.get_num_threads(),
    torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory, said,
]))
"""


@pytest.mark.parametrize(
    ("num_gpus", "deterministic", "expected"),
    [
        ("0", "no", ["", None, 2, False, True]),
        ("0.5", "no", ["3", None, 2, False, True]),
        ("1", "yes", ["3", ":4096:8", 2, True, False]),
    ],
)
def test_a_role_without_gpus_sees_none_and_a_deterministic_one_is_so_before_cuda_starts(
    num_gpus, deterministic, expected
):
    command = [sys.executable, "-c", PREPARED, num_gpus, deterministic]
    env = {"CUDA_VISIBLE_DEVICES": "3", "PATH": "", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=True)
    *found, said = json.loads(done.stdout)
    assert found == expected
    if num_gpus == "0":
        assert not said
    else:
        assert re.fullmatch(r"this role asks for [\d.]+ GPUs, but PyTorch \S+ finds none \(.+\); install .*", said)


FAILS = """
import logging, torch
from services.base.devices import ending_with_its_gpu
logging.basicConfig()

@ending_with_its_gpu()
def work(error):
    raise error

try:
    work(ValueError("another"))
except ValueError:
    print("goes on", flush=True)
work({error})
print("never")
"""
NCCL = (
    "NCCL error in: NCCLUtils.cpp:94, remote process exited or there was a network error\\n"
    "ncclRemoteError: A call failed possibly due to a network error.\\nLast error:\\nsocket closed\\n"
)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            'torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered\\nmore")',
            "(CUDA error: uncorrectable ECC error encountered); the",
        ),
        (
            f'torch.distributed.DistBackendError("{NCCL}")',
            "or there was a network error ncclRemoteError: A call failed possibly due to a network error. Last error: "
            "socket closed); the",
        ),
    ],
)
def test_a_process_whose_gpu_fails_ends_and_says_why(error, said):
    env = {"PATH": "", "PYTHONPATH": ":".join(sys.path)}
    script = FAILS.format(error=error)
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (1, "goes on\n")
    assert "the GPU of this process failed (" in done.stderr
    assert said in done.stderr


@pytest.mark.parametrize(
    ("said", "is_of_the_machine"),
    [
        ("uncorrectable ECC error encountered", True),
        ("CUDA-capable device(s) is/are busy or unavailable", True),
        ("no kernel image is available for execution on the device", True),
        ("an illegal memory access was encountered", False),
        ("device-side assert triggered", False),
    ],
)
def test_a_fault_of_the_machine_is_a_sentence_and_one_of_a_program_is_not(said, is_of_the_machine):
    sentence = machine_fault(torch.AcceleratorError(f"CUDA error: {said}\nadvice for developers"))
    if is_of_the_machine:
        assert sentence.startswith(f"the GPU failed (CUDA error: {said}); `nvidia-smi -q` and")
    else:
        assert sentence is None
    assert machine_fault(RuntimeError("uncorrectable ECC error encountered")) is None
