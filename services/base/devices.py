"""What a process computes on, and how: decided before PyTorch touches a GPU."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from services.base.errors import UserError

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)


def prepare_torch(threads: int, num_gpus: float, deterministic: bool) -> None:
    """Set PyTorch up in an actor. Call it first, since CUDA reads its environment only once.

    A role that asks for no GPU sees none: Ray (2.60) leaves the GPUs of a node visible to an actor without `num_gpus`,
    and `device: auto` would take the first of them, which belongs to another role.

    Args:
        threads: CPU threads of one operation. They are part of the arithmetic: another count gives other last bits.
        num_gpus: what the role asks Ray for.
        deterministic: only use algorithms that give the same bits each time. On a GPU the usual backward of attention
            and others are not among them; an operation that has no such algorithm raises a RuntimeError.

    Raises:
        UserError: the role asks for GPUs and PyTorch finds none.
    """
    if not num_gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    import torch

    torch.set_num_threads(threads)
    if deterministic:
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if num_gpus and not torch.cuda.is_available():
        raise UserError(
            f"this role asks for {num_gpus:g} GPUs and PyTorch {torch.__version__} finds none ({_without_gpu()}); "
            "install a build of PyTorch that fits the machine's driver, or set the role's num_gpus to 0"
        )


def _without_gpu() -> str:
    """Why PyTorch cannot use a GPU, in its own words: it has no CUDA, the driver is missing, or it is too old."""
    import torch

    try:
        torch.cuda.init()
    except (AssertionError, RuntimeError) as error:
        return " ".join(str(error).split())
    return "no GPU is visible"


DEVICE = re.compile(r"auto|cpu|cuda(:(\d+))?")
"""What a `device` may be; `cuda:1` is the second of the GPUs that the process sees."""


def device_of(setting: str) -> torch.device:
    """The device that a setting names, a GPU with its index; `auto` takes the GPU where there is one.

    Raises:
        UserError: no such device, or it is a GPU and PyTorch finds none.
    """
    import torch

    found = DEVICE.fullmatch(setting)
    if found is None:
        raise UserError(f"device `{setting}`: it is auto, cpu, cuda or cuda:N")
    if setting == "cpu" or (setting == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        version = torch.__version__
        raise UserError(f"device is {setting} and PyTorch {version} finds no GPU here; set it to auto or cpu")
    return torch.device("cuda", int(found[2]) if found[2] else torch.cuda.current_device())


@contextmanager
def ending_with_its_gpu() -> Iterator[None]:
    """End the process of an actor when CUDA fails (a defect of the memory, a fault in a kernel, a GPU that is gone).

    CUDA cannot be used again in such a process. Its end makes Ray tell the caller that the actor died, and the caller
    puts another in its place. A context manager, and a decorator.
    """
    import torch

    try:
        yield
    except torch.AcceleratorError as error:
        said = str(error).strip().partition("\n")[0]
        log.critical("the GPU of this process failed (%s); the process ends, and another takes its place", said)
        logging.shutdown()
        os._exit(1)


ASKED = re.compile(r"Tried to allocate ([\d.]+ \w+).*?total capacity of ([\d.]+ \w+)", re.DOTALL)
"""What PyTorch says of an allocation that failed, and of the GPU's memory."""


@contextmanager
def naming_full_memory(fix: str) -> Iterator[None]:
    """Turn PyTorch's error of a full GPU into one sentence. A context manager, and a decorator.

    Args:
        fix: what lowers the need for memory.

    Raises:
        UserError: the sentence.
    """
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        asked = ASKED.search(str(error))
        of = f" (PyTorch asked for {asked[1]}, the GPU has {asked[2]})" if asked else ""
        raise UserError(f"the memory of the GPU is full{of}; {fix}") from error
