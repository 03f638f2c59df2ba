"""A GPU that is not there: tensors that say they are on `cuda:0`, and compute on the CPU with real values.

Within `pretend_card()`, PyTorch finds one GPU. A storage that is made there is marked; every operator then behaves
as CUDA's would where devices are concerned: it refuses tensors of both devices, a marked tensor is no NumPy array, and
each wait for the GPU is noted. What kernels a GPU has, and what bits they give, only a GPU can show.
"""

from __future__ import annotations

import traceback
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch._dynamo  # not within the context, where an import would run under its modes
from torch import Tensor
from torch._C import DisableTorchFunctionSubclass, TensorBase
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

CARD, CPU = torch.device("cuda", 0), torch.device("cpu")
NAME = "a GPU that is not there"
MEMORY_BYTES = 80 * 10**9

aten = torch.ops.aten
MOVES = {aten.copy_, aten._to_copy, aten._foreach_copy_}
"""Operators that take tensors of both devices."""
INDEXES = {aten.index, aten.index_put, aten.index_put_, aten._unsafe_index, aten._index_put_impl_}
"""Operators whose indices may be on the CPU; they are then copied, which waits."""
SIZED_BY_VALUES = {aten.nonzero, aten.masked_select, aten._unique2, aten.bincount}
"""Operators whose result has a size that depends on values, so that the CPU waits for them."""
READS = {Tensor.item, Tensor.tolist, Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__, Tensor.equal}
ARRAYS = {Tensor.numpy, Tensor.__array__}


class _Marks:
    """Which storages are on the card."""

    def __init__(self) -> None:
        self.storages: dict[int, weakref.ref[Any]] = {}
        self.pinned: dict[int, weakref.ref[Any]] = {}

    def put(self, tensor: Tensor, on_card: bool) -> None:
        storage = _storage(tensor)
        key = storage._cdata
        if on_card and key not in self.storages:
            self.storages[key] = weakref.ref(storage, lambda _: self.storages.pop(key, None))
        elif not on_card:
            self.storages.pop(key, None)

    def has(self, tensor: Tensor) -> bool:
        return _storage(tensor)._cdata in self.storages


def _storage(tensor: Tensor) -> Any:
    with DisableTorchFunctionSubclass():
        return tensor.untyped_storage()


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_iter(tree) if isinstance(leaf, Tensor)]


class Card:
    """The card: its marks, and the waits for it.

    Attributes:
        waits: the line of our code that waited, for each wait.
    """

    def __init__(self) -> None:
        self.marks = _Marks()
        self.waits: list[str] = []

    def wait(self, what: str) -> None:
        ours = [one for one in traceback.extract_stack() if "/tests/helpers/pretend" not in one.filename]
        frame = next((one for one in reversed(ours) if "site-packages" not in one.filename), ours[-1])
        self.waits.append(f"{frame.filename}:{frame.lineno} {what}")


class _Functions(TorchFunctionMode):
    """Calls of Python: a device that is named, a tensor that is moved or read."""

    def __init__(self, card: Card) -> None:
        super().__init__()
        self.card = card

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        card, marks = self.card, self.card.marks
        if func is Tensor.backward:
            one = torch.ones_like(args[0])
            with self:  # for what checkpointing runs again; `torch.autograd.backward` would leave it
                return torch.autograd.graph._engine_run_backward((args[0],), (one,), False, False, (), True, True)
        if func in (Tensor.cpu, Tensor.cuda):
            return self._to(args[0], CPU if func is Tensor.cpu else CARD, None, False, False)
        if func is Tensor.to:
            return self._to(args[0], *_wanted(args[1:], kwargs))
        if func is Tensor.pin_memory:
            if marks.has(args[0]):
                raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned")
            pinned = args[0].clone()
            key = _storage(pinned)._cdata
            marks.pinned[key] = weakref.ref(_storage(pinned), lambda _: marks.pinned.pop(key, None))
            return pinned
        if func in READS and marks.has(args[0]):
            card.wait(func.__name__)
        if func in ARRAYS and marks.has(args[0]):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy first.")
        if kwargs.get("device") is None or isinstance(func, torch._ops.OpOverload):  # those come from C++
            return func(*args, **kwargs)
        device = torch.device(kwargs["device"])
        if device.type == "meta":
            return func(*args, **kwargs)
        kwargs["device"] = CPU
        kwargs.pop("pin_memory", None)
        made = func(*args, **kwargs)
        for tensor in _tensors(made):
            if not any(_storage(tensor)._cdata == _storage(given)._cdata for given in _tensors((args, kwargs))):
                marks.put(tensor, device.type == "cuda")
        return made

    def _to(self, tensor: Tensor, device: Any, dtype: Any, non_blocking: bool, copy: bool) -> Tensor:
        marks = self.card.marks
        with DisableTorchFunctionSubclass():
            if tensor.is_meta or (device is not None and device.type == "meta"):
                return TensorBase.to(tensor, device=device, dtype=dtype, non_blocking=non_blocking, copy=copy)
            there = marks.has(tensor)
            wanted = there if device is None else device.type == "cuda"
            moves = wanted != there
            made = TensorBase.to(tensor, dtype=dtype or tensor.dtype, copy=copy or moves)
        if moves:
            marks.put(made, wanted)
            if not non_blocking:
                self.card.wait("a copy from the card" if there else "a copy to the card")
            elif there:
                raise AssertionError("a copy from the card that nobody waits for may be read too early")
        return made


def _wanted(args: Any, kwargs: dict[str, Any]) -> tuple[Any, Any, bool, bool]:
    """The device, the dtype, and whether to block and to copy, of a call of `Tensor.to`."""
    kwargs = dict(kwargs)
    device, dtype = kwargs.pop("device", None), kwargs.pop("dtype", None)
    args = list(args)
    if args and isinstance(args[0], Tensor):
        device, dtype = args[0].device, args[0].dtype
        args.pop(0)
    elif args:
        if args[0] is None or isinstance(args[0], (str, torch.device, int)):
            device = args.pop(0)
        if args and (args[0] is None or isinstance(args[0], torch.dtype)):
            dtype = args.pop(0)
    non_blocking = args.pop(0) if args else kwargs.pop("non_blocking", False)
    copy = args.pop(0) if args else kwargs.pop("copy", False)
    return (None if device is None else torch.device(device)), dtype, non_blocking, copy


class _Operators(TorchDispatchMode):
    """Operators, those of a backward included: both devices in one, and what is made on which."""

    def __init__(self, card: Card) -> None:
        super().__init__()
        self.card = card

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        marks, packet = self.card.marks, func._overloadpacket
        given = _tensors((args, kwargs))
        on_card = [tensor for tensor in given if marks.has(tensor)]
        on_cpu = [tensor for tensor in given if not marks.has(tensor) and not tensor.is_meta]
        goes = bool(on_card)
        if packet in MOVES:
            goes = marks.has(args[0]) if isinstance(args[0], Tensor) else goes
            if on_card and on_cpu and not (kwargs.get("non_blocking") or (len(args) > 2 and args[2])):
                self.card.wait(f"{packet}")
        elif on_card and on_cpu:
            self._check(func, packet, args, on_cpu)
        if goes and packet in SIZED_BY_VALUES:
            self.card.wait(f"{packet}")
        if goes and packet is aten.index and any(t.dtype in (torch.bool, torch.uint8) for t in _tensors(args[1])):
            self.card.wait("a mask as an index")
        before = {_storage(tensor)._cdata for tensor in given}
        made = func(*args, **kwargs)
        for tensor in _tensors(made):
            if not tensor.is_meta and _storage(tensor)._cdata not in before:
                marks.put(tensor, goes)
        return made

    def _check(self, func: Any, packet: Any, args: Any, on_cpu: list[Tensor]) -> None:
        if packet in INDEXES and self.card.marks.has(args[0]):
            values = [t for t in on_cpu if not any(t is index for index in _tensors(args[1]))]
            if all(not value.dim() for value in values):
                self.card.wait("indices on the CPU")
                return
        takes_scalars = torch.Tag.pointwise in func.tags or "foreach" in str(packet) or packet is aten.fill_
        if takes_scalars and all(not tensor.dim() for tensor in on_cpu):
            return
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! ({func}; "
            f"on the CPU: {[tuple(tensor.shape) for tensor in on_cpu]})"
        )


@contextmanager
def pretend_card() -> Iterator[Card]:
    """Within this context, this process has the card."""
    card = Card()
    original: Callable[[Tensor], torch.device] = TensorBase.device.__get__

    def device(tensor: Tensor) -> torch.device:
        with DisableTorchFunctionSubclass():
            if card.marks.has(tensor):
                return CARD
            return original(tensor)

    class Generator(torch.Generator):
        def __new__(cls, device: Any = "cpu") -> Generator:
            return super().__new__(cls, "cpu")

    properties = SimpleNamespace(name=NAME, total_memory=MEMORY_BYTES, multi_processor_count=132, major=9, minor=0)
    found = {
        "is_available": lambda: True,
        "_lazy_init": lambda: None,
        "init": lambda: None,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_name": lambda *_: NAME,
        "get_device_capability": lambda *_: (9, 0),
        "get_arch_list": lambda: ["sm_80", "sm_90"],
        "get_device_properties": lambda *_: properties,
        "mem_get_info": lambda *_: (MEMORY_BYTES, MEMORY_BYTES),
        "memory_allocated": lambda *_: 0,
        "memory_reserved": lambda *_: 0,
        "max_memory_allocated": lambda *_: 10**9,
        "reset_peak_memory_stats": lambda *_: None,
        "synchronize": lambda *_: None,
        "empty_cache": lambda: None,
        "set_per_process_memory_fraction": lambda *_: None,
        "manual_seed_all": lambda *_: None,
    }
    is_cuda = property(lambda tensor: device(tensor).type == "cuda")
    with (
        patch.multiple(torch.cuda, **found),
        patch.object(torch, "Generator", Generator),
        patch.object(Tensor, "device", property(device), create=True),
        patch.object(Tensor, "is_cuda", is_cuda, create=True),
        _Operators(card),
        _Functions(card),
    ):
        yield card
