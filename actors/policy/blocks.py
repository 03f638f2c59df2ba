"""The repeated blocks of a transformer. Each is compiled alone and, if the transformer is sharded, gathered alone."""

from typing import Any

import torch
from torch import nn

MOST_GRAPHS = 64
"""The most graphs that PyTorch may keep for one block's code. Each combination of a kind of block, a shape, and with or
without gradients needs one. By default PyTorch keeps 8 and runs further ones eagerly, which gives other bits.
"""


def blocks(transformer: nn.Module) -> list[nn.Module]:
    """The blocks of a diffusers model, by the classes that its `_no_split_modules` names."""
    names: Any = transformer._no_split_modules
    return [module for module in transformer.modules() if type(module).__name__ in names]


def compile_blocks(transformer: nn.Module) -> None:
    """Compile each block alone, with static shapes.

    Blocks of one structure share a graph, so that compiling takes as long as for one block of each kind. Each shape has
    a graph of its own, whichever shape comes first: a resumed run computes with the graphs of an uninterrupted one.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MOST_GRAPHS)
    for block in blocks(transformer):
        block.compile(dynamic=False)
