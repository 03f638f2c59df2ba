"""What a call costs, found by running it without data: operators, and the most memory that is in use at once.

The call runs on the `meta` device, where tensors have a shape and a dtype but no values, so that a model of any size is
traced in seconds on any machine. Each operator is one kernel: compiled code fuses some of them and needs less time and
memory than is said here.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from system.capacity.cards import Card

Kind = Literal["matmul_bf16", "matmul_fp32", "matmul_tf32", "attention_bf16", "memory"]
"""The rate of a card that bounds an operator, beside its memory's."""

META = torch.device("meta")

aten = torch.ops.aten
ATTENTION_FORWARD = {
    aten._scaled_dot_product_flash_attention_for_cpu,
    aten._scaled_dot_product_flash_attention,
    aten._scaled_dot_product_efficient_attention,
    aten._scaled_dot_product_cudnn_attention,
}
ATTENTION_BACKWARD = {
    aten._scaled_dot_product_flash_attention_for_cpu_backward,
    aten._scaled_dot_product_flash_attention_backward,
    aten._scaled_dot_product_efficient_attention_backward,
    aten._scaled_dot_product_cudnn_attention_backward,
}


class Operator(NamedTuple):
    """One operator: which rate bounds it, its floating-point operations, and the bytes that it reads and writes."""

    kind: Kind
    flops: int
    num_bytes: int


@dataclass
class Trace:
    """What a call costs."""

    operators: Counter[Operator] = field(default_factory=Counter)
    """How often each operator runs; extrapolated numbers stay whole."""
    peak_bytes: float = 0
    """Most bytes of tensors that the call made and still held at one time."""

    def __add__(self, other: Trace) -> Trace:
        return Trace(_sum(self.operators, other.operators, 1), self.peak_bytes + other.peak_bytes)

    def __sub__(self, other: Trace) -> Trace:
        return Trace(_sum(self.operators, other.operators, -1), self.peak_bytes - other.peak_bytes)

    def __mul__(self, count: int) -> Trace:
        return Trace(Counter({one: count * n for one, n in self.operators.items()}), count * self.peak_bytes)

    @property
    def flops(self) -> float:
        """Floating-point operations of matrix products, convolutions and attention."""
        return sum(one.flops * count for one, count in self.operators.items())

    def seconds(self, card: Card) -> float:
        """By a roofline for each operator: the longer of computing and of moving its bytes."""
        rates = {kind: 1e12 * getattr(card, f"{kind}_tflops") for kind in _COMPUTES}
        bandwidth = 1e12 * card.memory_tb_per_s
        return sum(
            count * max(one.flops / rates[one.kind] if one.flops else 0.0, one.num_bytes / bandwidth)
            for one, count in self.operators.items()
        )


_COMPUTES = ("matmul_bf16", "matmul_fp32", "matmul_tf32", "attention_bf16")


def _sum(left: Counter[Operator], right: Counter[Operator], sign: int) -> Counter[Operator]:
    total = Counter(left)
    for one, count in right.items():
        total[one] += sign * count
    return Counter({one: count for one, count in total.items() if count})


class Tracer(TorchDispatchMode):
    """Counts the operators that run inside it, on `meta` or on real tensors, and the bytes of the tensors they make."""

    def __init__(self) -> None:
        super().__init__()
        self.trace = Trace()
        self.live_bytes = 0
        self._storages: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        given = [leaf for leaf in tree_iter((args, kwargs)) if isinstance(leaf, Tensor)]
        made = [leaf for leaf in tree_iter(out) if isinstance(leaf, Tensor)]
        before = {tensor.untyped_storage()._cdata for tensor in given}
        new = [tensor for tensor in made if tensor.untyped_storage()._cdata not in before]
        for tensor in new:
            self._watch(tensor.untyped_storage())
        if new or func._schema.is_mutable:
            packet = func._overloadpacket
            if packet not in (aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty):
                self.trace.operators[_operator(packet, args, kwargs, out, given, made)] += 1
        return out

    def _watch(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages:
            return

        def gone(_: Any) -> None:
            self._storages.pop(key, None)
            self.live_bytes -= size

        self._storages[key] = weakref.ref(storage, gone)
        self.live_bytes += size
        self.trace.peak_bytes = max(self.trace.peak_bytes, self.live_bytes)


def _operator(packet: Any, args: Any, kwargs: Any, out: Any, given: list[Tensor], made: list[Tensor]) -> Operator:
    num_bytes = sum(min(t.numel() * t.itemsize, t.untyped_storage().nbytes()) for t in (*given, *made))
    if packet in ATTENTION_FORWARD or packet in ATTENTION_BACKWARD:
        query, key, value = args[1:4] if packet in ATTENTION_BACKWARD else args[:3]
        flops = sdpa_flop_count(query.shape, key.shape, value.shape)
        if packet in ATTENTION_BACKWARD:
            flops = flops * 5 // 2  # five products instead of two: the scores are computed again
        return Operator("attention_bf16" if query.dtype is torch.bfloat16 else "matmul_fp32", flops, num_bytes)
    if packet not in flop_registry:
        return Operator("memory", 0, num_bytes)
    flops = flop_registry[packet](*args, **kwargs, out_val=out)
    kind: Kind = "matmul_fp32"
    if given[-1].dtype is torch.bfloat16:
        kind = "matmul_bf16"
    elif packet in (aten.convolution, aten._convolution, aten.convolution_backward):
        kind = "matmul_tf32"
    return Operator(kind, int(flops), num_bytes)


def traced(call: Callable[[], Any]) -> Trace:
    """What one call costs; its result is held until it ends."""
    tracer = Tracer()
    with tracer:
        result = call()
    del result
    return tracer.trace


@contextmanager
def without_data() -> Iterator[None]:
    """Tensors that are made here are on `meta`: they have a shape and a dtype but no values.

    Attention runs as one kernel, as it does on a CPU or a GPU; on `meta`, PyTorch would take it apart.
    """
    with META, patch.object(torch.nn.functional, "scaled_dot_product_attention", _attention):
        yield


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`torch.nn.functional.scaled_dot_product_attention` as one kernel, the CPU's, on any device."""
    assert not enable_gqa
    fused = aten._scaled_dot_product_flash_attention_for_cpu
    attended, _ = fused(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)
    return attended
