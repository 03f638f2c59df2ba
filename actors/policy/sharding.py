"""FSDP2: a transformer that is too large for one device is sharded over the learner's ranks."""

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from actors.policy.blocks import blocks


def shard(transformer: nn.Module, ranks: int, compute: torch.dtype, device: torch.device) -> None:
    """Shard a transformer: each rank keeps its rows of every parameter. Blocks are gathered one at a time as they run.

    Gradients of sharded parameters are summed over ranks in fp32, not averaged.

    Args:
        transformer: a diffusers model, which may be on `meta`; its `_no_split_modules` name the classes of its blocks.
        compute: the dtype that gathered weights have.
        device: the device on which the rows are, or will be.
    """
    mesh = init_device_mesh(device.type, (ranks,))
    # Inputs come in the dtype that the family chose: timesteps, for one, in fp32.
    precision = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32, cast_forward_inputs=False)
    name = type(transformer).__name__
    for module in (*blocks(transformer), transformer):
        # The root frees its gathered weights, too: at the next forward, the shards may hold another policy.
        fully_shard(module, mesh=mesh, mp_policy=precision, reshard_after_forward=True)
    type(transformer).__name__ = name  # fully_shard makes a class of another name, which diffusers would save
    for module in transformer.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            # Gloo cannot scale within a reduction.
            module.set_force_sum_reduction_for_comms(True)


def rows_here(tensor: DTensor) -> slice:
    """The rows that this rank holds: FSDP2 gives each rank ⌈rows / ranks⌉ of them, and the last ranks the rest."""
    most = -(-tensor.shape[0] // tensor.device_mesh.size())
    start = min(most * tensor.device_mesh.get_local_rank(), tensor.shape[0])
    return slice(start, start + tensor.to_local().shape[0])


def full(tensor: Tensor) -> Tensor:
    """The whole tensor. If it is sharded, every rank must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, sharing its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def is_sharded(tensor: Tensor) -> bool:
    return isinstance(tensor, DTensor)


def placed(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, moved to the device of `like` and sharded in the same way."""
    tensor = tensor.to(like.device)
    return distribute_tensor(tensor, like.device_mesh, like.placements) if isinstance(like, DTensor) else tensor
