"""Chooses the device of a process and sets up PyTorch, before PyTorch touches a GPU."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from services.base.allocator import keep_freed_memory
from services.base.errors import UserError

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)


def _set_environment(num_gpus: float, deterministic: bool) -> None:
    """Set what PyTorch reads when it is imported or first touches a GPU. Freed CPU memory stays with the process.

    All GPUs are hidden from a role that asks for none. Ray (2.60) would leave them visible, and `device: auto` would
    then use the first one, which belongs to another role.
    """
    keep_freed_memory()
    if not num_gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")  # loses less memory to fragments


def prepare_torch(threads: int, num_gpus: float, deterministic: bool) -> None:
    """Set up PyTorch in an actor. Call this first, because CUDA reads its environment only once.

    A role that asks for a fraction of a GPU gets this share of its memory, because PyTorch would otherwise keep memory
    that another role needs.

    Args:
        threads: CPU threads of one operation. Another number changes the last bits of results.
        num_gpus: the number of GPUs that the role asks Ray for.
        deterministic: use only algorithms that give the same bits each time. On a GPU this excludes some usual ones,
            such as the backward of attention. An operation without such an algorithm raises a RuntimeError.

    Raises:
        UserError: the role asks for GPUs, but PyTorch finds none.
    """
    _set_environment(num_gpus, deterministic)
    import torch

    torch.set_num_threads(threads)
    if deterministic:
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if num_gpus and not torch.cuda.is_available():
        raise UserError(
            f"this role asks for {num_gpus:g} GPUs, but PyTorch {torch.__version__} finds none ({why_no_gpu()}); "
            "install a build of PyTorch that fits the machine's driver, or set the role's num_gpus to 0"
        )
    if 0 < num_gpus < 1:
        torch.cuda.set_per_process_memory_fraction(num_gpus)


@contextmanager
def preparing_scorer(threads: int, num_gpus: float, deterministic: bool) -> Iterator[None]:
    """Do what `prepare_torch` does, around the loading of a scorer. A scorer without PyTorch leaves it unimported.

    A scorer that asks a service or looks at pixels then starts 2 s earlier and with 200 MB less. If a scorer imports
    PyTorch only when it is called, PyTorch reads the number of threads from the environment.

    Raises:
        UserError: as `prepare_torch`.
    """
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if num_gpus or deterministic:
        prepare_torch(threads, num_gpus, deterministic)
        yield
        return
    _set_environment(num_gpus, deterministic)
    yield
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(threads)


def why_no_gpu() -> str:
    """Why PyTorch cannot use a GPU, in PyTorch's words: it has no CUDA, or the driver is missing or too old."""
    import torch

    try:
        torch.cuda.init()
    except (AssertionError, RuntimeError) as error:
        return " ".join(str(error).split())
    return "no GPU is visible"


DEVICE = re.compile(r"auto|cpu|cuda(:(\d+))?")
"""The allowed values of `device`. `cuda:1` is the second GPU that the process sees."""


def device_of(setting: str) -> torch.device:
    """The device that a setting names. A GPU has its index. `auto` is a GPU if PyTorch finds one, else the CPU.

    Raises:
        UserError: there is no such device, or the device is a GPU and PyTorch finds none.
    """
    import torch

    found = DEVICE.fullmatch(setting)
    if found is None:
        raise UserError(f"device `{setting}`: it must be auto, cpu, cuda or cuda:N")
    if setting == "cpu" or (setting == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        version = torch.__version__
        raise UserError(f"device is {setting}, but PyTorch {version} finds no GPU here; set it to auto or cpu")
    return torch.device("cuda", int(found[2]) if found[2] else torch.cuda.current_device())


def gpu_failure(error: BaseException) -> str | None:
    """What CUDA or NCCL said, in one line, if an error means that this process can use neither any more.

    None for any other error. Nothing that runs without PyTorch raises such an error.
    """
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(error, torch.AcceleratorError | torch.distributed.DistBackendError):
        return None
    lines = [line.strip() for line in str(error).splitlines()]
    if isinstance(error, torch.AcceleratorError):  # further lines are advice for developers
        return lines[0]
    return " ".join(line for line in lines if line and not line.startswith(("Exception raised from", "frame #")))


HARDWARE = re.compile(r"ECC|NVLink|hardware|busy or unavailable|driver|no kernel image|not yet init|unknown error")
"""What CUDA says when the machine is at fault; an illegal access or a failed assertion is a fault of a program."""


def machine_fault(error: BaseException) -> str | None:
    """A sentence about an error of CUDA that the machine causes, with what to do; None for any other error."""
    said = gpu_failure(error)
    if said is None or not HARDWARE.search(said):
        return None
    return (
        f"the GPU failed ({said}); `nvidia-smi -q` and the lines with Xid in `dmesg` say more; reset the GPU or take "
        "another one, and continue a run with --resume"
    )


@contextmanager
def ending_with_its_gpu() -> Iterator[None]:
    """End the process of an actor when its GPU fails (faulty memory, an error in a kernel, a lost GPU), or NCCL does.

    Neither can be used again in such a process. Ray then tells the caller that the actor died, and the caller starts
    another one. Works as a context manager and as a decorator.
    """
    try:
        yield
    except RuntimeError as error:
        said = gpu_failure(error)
        if said is None:
            raise
        log.critical("the GPU of this process failed (%s); the process ends, and another one replaces it", said)
        logging.shutdown()
        os._exit(1)


ASKED = re.compile(r"Tried to allocate ([\d.]+ \w+).*?total capacity of ([\d.]+ \w+)", re.DOTALL)
"""The sizes in PyTorch's message about a failed allocation: the request, and the GPU's memory."""
LIBRARY_ASKED = re.compile(r"CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED")
"""What cuBLAS and cuDNN say when they get no memory, which PyTorch raises as a plain RuntimeError."""


@contextmanager
def naming_full_memory(fix: str) -> Iterator[None]:
    """Turn an error about full GPU memory into one sentence. Works as a context manager and as a decorator.

    Args:
        fix: advice that lowers the need for memory.

    Raises:
        UserError: the sentence.
    """
    try:
        yield
    except RuntimeError as error:
        torch = sys.modules.get("torch")
        full = torch is not None and isinstance(error, torch.OutOfMemoryError)
        if not full and not LIBRARY_ASKED.search(str(error)):
            raise
        asked = ASKED.search(str(error))
        of = f" (PyTorch asked for {asked[1]}, the GPU has {asked[2]})" if asked else ""
        raise UserError(f"the memory of the GPU is full{of}; {fix}") from error
