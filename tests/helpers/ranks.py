"""Two processes that share a process group on Gloo, without Ray."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

SIZE = 2
Together = Callable[..., list[Any]]
"""Calls a function in every process with the process's rank and more arguments; its results, in the ranks' order."""


@contextmanager
def two_ranks(folder: Path) -> Iterator[Together]:
    """Processes that live until the end, meeting at a file in `folder`."""
    with ExitStack() as stack:
        context = multiprocessing.get_context("spawn")
        # A pool of each, so that each gets its own rank's calls.
        pools = [stack.enter_context(ProcessPoolExecutor(1, context)) for _ in range(SIZE)]

        def together(function: Callable[..., Any], *arguments: Any) -> list[Any]:
            futures = [pool.submit(function, rank, *arguments) for rank, pool in enumerate(pools)]
            return [future.result(timeout=120) for future in futures]

        together(_meet, str(folder / "store"))
        yield together
        together(_part)


def _meet(rank: int, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=SIZE)


def _part(_: int) -> None:
    dist.destroy_process_group()
