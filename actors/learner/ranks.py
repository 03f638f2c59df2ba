"""The ranks of one learner: how they meet, and the sums that they compute together."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from services.base.devices import gpu_failure
from services.base.errors import UserError


@dataclass(frozen=True)
class Ranks:
    """One process of `size`. A collective of one process does nothing, and needs no process group."""

    rank: int = 0
    size: int = 1

    def sum(self, tensor: Tensor) -> None:
        """Replace the values of a tensor by their sums over all ranks."""
        if self.size > 1:
            dist.all_reduce(tensor)

    def max(self, tensor: Tensor) -> None:
        """Replace the values of a tensor by their largest ones over all ranks."""
        if self.size > 1:
            dist.all_reduce(tensor, dist.ReduceOp.MAX)

    def any(self, here: bool, device: torch.device) -> bool:
        """Whether `here` is true on at least one rank."""
        flag = torch.tensor(float(here), device=device)
        self.max(flag)
        return bool(flag)

    @torch.no_grad()
    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Replace each gradient by its sum over all ranks, in one collective.

        A rank without tasks adds zeros. A parameter without a gradient on any rank still has none, as with one rank.
        The result is that of DistributedDataParallel, but there is one collective for each optimizer step, and ranks
        may run different numbers of micro-batches.
        """
        if self.size == 1 or not parameters:
            return
        has = torch.tensor([float(p.grad is not None) for p in parameters], device=parameters[0].device)
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([has, *(grad.flatten() for grad in grads)])
        dist.all_reduce(flat)
        sums = flat[len(has) :].split([p.numel() for p in parameters])
        for parameter, count, total in zip(parameters, flat[: len(has)].tolist(), sums, strict=True):
            parameter.grad = total.view_as(parameter) if count else None


ALONE = Ranks()


class Rendezvous:
    """The meeting place of a group, held open by its first rank on one address of its node.

    Args:
        host: the address to listen on.
        timeout_s: how long a rank waits for the others, here and in each collective.
    """

    def __init__(self, host: str, timeout_s: float) -> None:
        listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        listener.bind((host, 0))
        listener.listen()
        self.endpoint = (host, listener.getsockname()[1])
        self.store = dist.TCPStore(
            *self.endpoint,
            is_master=True,
            timeout=timedelta(seconds=timeout_s),
            wait_for_workers=False,
            master_listen_fd=listener.detach(),
        )


def join(endpoint: tuple[str, int], ranks: Ranks, device: torch.device, timeout_s: float) -> None:
    """Enter the process group that meets at `endpoint`: NCCL on GPUs, Gloo on CPUs.

    Raises:
        UserError: NCCL cannot connect the ranks' GPUs.
    """
    if ipaddress.ip_address(endpoint[0]).is_loopback:
        # Gloo would listen on the address of the host's name.
        os.environ["GLOO_SOCKET_IFNAME"] = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    timeout = timedelta(seconds=timeout_s)
    store = dist.TCPStore(*endpoint, is_master=False, timeout=timeout, wait_for_workers=False)
    try:
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=store,
            rank=ranks.rank,
            world_size=ranks.size,
            timeout=timeout,
            device_id=device if device.type == "cuda" else None,
        )
    except dist.DistBackendError as error:
        raise UserError(
            f"NCCL cannot connect the learner's ranks ({gpu_failure(error)}); give each rank a GPU of its own, set "
            "NCCL_SOCKET_IFNAME to the network that the nodes share, or find out more with NCCL_DEBUG=INFO"
        ) from error
