"""FSDP2: a transformer that is too large for one device lies in shards on the learner's ranks."""

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from actors.policy.blocks import blocks


def shard(transformer: nn.Module, ranks: int, compute: torch.dtype, device: torch.device) -> None:
    """Leave each rank its rows of every parameter; blocks are gathered one at a time as they run.

    Gradients of sharded parameters are summed over ranks in fp32, not averaged.

    Args:
        transformer: a diffusers model, which may be on `meta`; its `_no_split_modules` name the classes of its blocks.
        compute: the dtype that gathered weights have.
        device: where the rows lie, or will lie.
    """
    mesh = init_device_mesh(device.type, (ranks,))
    # Inputs come in the dtype that the family chose: timesteps, for one, in fp32.
    precision = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32, cast_forward_inputs=False)
    name = type(transformer).__name__
    for module in (*blocks(transformer), transformer):
        # The root too gives back what it gathered: between two forwards the shards may hold another policy.
        fully_shard(module, mesh=mesh, mp_policy=precision, reshard_after_forward=True)
    type(transformer).__name__ = name  # fully_shard makes a class of another name, which diffusers would save
    for module in transformer.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            # Gloo cannot scale within a reduction.
            module.set_force_sum_reduction_for_comms(True)


def rows_here(tensor: DTensor) -> slice:
    """The rows that this rank holds: FSDP2 gives each rank ⌈rows / ranks⌉ of them, and the last ranks what is left."""
    most = -(-tensor.shape[0] // tensor.device_mesh.size())
    start = min(most * tensor.device_mesh.get_local_rank(), tensor.shape[0])
    return slice(start, start + tensor.to_local().shape[0])


def full(tensor: Tensor) -> Tensor:
    """All of a tensor, which every rank must ask for where it is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, sharing its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def is_sharded(tensor: Tensor) -> bool:
    return isinstance(tensor, DTensor)


def placed(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor on the device of `like`, and sharded as it is."""
    tensor = tensor.to(like.device)
    return distribute_tensor(tensor, like.device_mesh, like.placements) if isinstance(like, DTensor) else tensor
