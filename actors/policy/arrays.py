"""Tensors as NumPy arrays, and back."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


def to_array(tensor: Tensor) -> np.ndarray:
    """A copy on the CPU; bf16, which NumPy lacks, as int16 of the same bits."""
    tensor = tensor.detach().cpu()
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy().copy()


def to_arrays(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Named tensors as arrays, each as by `to_array`."""
    return {name: to_array(tensor) for name, tensor in tensors.items()}


def to_tensor(array: np.ndarray) -> Tensor:
    """The inverse of `to_array`."""
    tensor = torch.from_numpy(np.array(array))
    return tensor.view(torch.bfloat16) if tensor.dtype == torch.int16 else tensor
