"""GPUs as data: their memory, and the rates that a roofline needs.

Rates on paper are sustained ones. Those of the H100 are assumed for large kernels. Every other card is assumed to reach
the same share of its data sheet's peak (dense, without sparsity): 66% of bf16 products, 46% of bf16 for attention, 72%
of fp32, 51% of TF32 and 81% of the memory's bandwidth. `tempflow bench gpu` measures a real card.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, fields
from pathlib import Path

from services.base.errors import UserError

GB = 1e9
TINY = 1e-6
"""Tolerance for rounding, so that fractions of a GPU can add up to a whole one."""


@dataclass(frozen=True)
class Card:
    """A GPU. A measured one comes from the `card` object of `gpu.json`, which has exactly these keys."""

    name: str
    """The card's name; PyTorch's own where it is measured."""
    memory_gb: float
    """The card's total memory as PyTorch reports it, in GB of 10⁹ bytes."""
    matmul_bf16_tflops: float
    """Sustained rate of large bf16 matrix products, in 10¹² floating-point operations a second (a multiplication and an
    addition count 2)."""
    matmul_fp32_tflops: float
    """The same in fp32 without TF32."""
    matmul_tf32_tflops: float
    """The same in fp32 with TF32, which convolutions in fp32 use by default."""
    attention_bf16_tflops: float
    """The same of scaled_dot_product_attention in bf16, forward."""
    memory_tb_per_s: float
    """Sustained rate of reads and writes of the card's memory, in 10¹² bytes a second."""
    compute_capability: str
    """CUDA's, such as `9.0`."""
    measured: bool = False
    """Whether the rates were measured on such a card; else they are on paper."""

    @property
    def memory_bytes(self) -> float:
        return self.memory_gb * GB

    @property
    def source(self) -> str:
        """Where the rates come from, in words."""
        return "measured" if self.measured else "on paper"

    @classmethod
    def measured_in(cls, path: Path) -> Card:
        """A measured card, from the JSON that `tempflow bench gpu` writes.

        Raises:
            UserError: the file is missing, or has no `card` object with exactly the fields of this class.
        """
        try:
            found = json.loads(path.read_text())["card"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"`{path}` is not a file of `tempflow bench gpu` ({type(error).__name__}: {error}); "
                "run that command on the card, or name a card"
            ) from error
        wanted = {field.name: field.type for field in fields(cls) if field.name != "measured"}
        if not isinstance(found, dict) or found.keys() - {"measured"} != wanted.keys():
            keys = found.keys() if isinstance(found, dict) else set()
            raise UserError(
                f"the card in `{path}` has other fields than this version reads "
                f"({', '.join(sorted(wanted.keys() ^ (keys - {'measured'}))) or 'no object'}); measure it again"
            )
        for key, kind in wanted.items():
            value = found[key]
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if kind == "str" and not isinstance(value, str):
                raise UserError(f"the card in `{path}`: {key} is {value!r}, not a text; measure it again")
            if kind == "float" and not (number and math.isfinite(value) and value > 0):
                raise UserError(f"the card in `{path}`: {key} is {value!r}, not a positive number; measure it again")
        return cls(**{key: found[key] for key in wanted}, measured=True)


H100 = Card("H100", 84.9, 650, 48, 250, 450, 2.7, "9.0")
"""The SXM board."""


def _like_h100(
    name: str, memory_gb: float, bf16: float, fp32: float, tf32: float, bandwidth: float, capability: str
) -> Card:
    """A card that reaches the H100's share of its own peaks: TFLOP/s of dense matrices, and TB/s."""
    return Card(
        name,
        memory_gb,
        round(H100.matmul_bf16_tflops * bf16 / 989),
        round(H100.matmul_fp32_tflops * fp32 / 67),
        round(H100.matmul_tf32_tflops * tf32 / 494.5),
        round(H100.attention_bf16_tflops * bf16 / 989),
        round(H100.memory_tb_per_s * bandwidth / 3.35, 2),
        capability,
    )


CARDS = {
    card.name: card
    for card in (
        H100,
        _like_h100("H200", 150.1, 989, 67, 494.5, 4.8, "9.0"),
        _like_h100("A100-40", 42.3, 312, 19.5, 156, 1.555, "8.0"),
        _like_h100("A100-80", 84.9, 312, 19.5, 156, 2.039, "8.0"),
        _like_h100("A40", 47.8, 149.7, 37.4, 74.8, 0.696, "8.6"),
        _like_h100("RTX-A6000", 51.0, 154.8, 38.7, 77.4, 0.768, "8.6"),
        _like_h100("RTX-6000-Ada", 51.0, 364.2, 91.1, 182.1, 0.96, "8.9"),
        _like_h100("L40S", 47.7, 362, 91.6, 183, 0.864, "8.9"),
        _like_h100("RTX-4090", 25.4, 165.2, 82.6, 82.6, 1.008, "8.9"),
        _like_h100("B200", 191.5, 2250, 75, 1125, 8.0, "10.0"),
    )
}
"""Cards on paper, by name. Peaks are those of NVIDIA's data sheets (SXM where there are several boards)."""


def is_called(full_name: str, name: str) -> bool:
    """Whether PyTorch's full name of a card (`NVIDIA A100-SXM4-80GB`) is that of a card called `name` (`A100-80`).

    Each part of `name` must begin a word of the full name, and no digit may follow: an H100 is no GH100, an A100 of
    40 GB none of 80, and an A40 no A4000.
    """
    words = re.findall(r"\w+", full_name.lower())
    parts = re.findall(r"\w+", name.lower())
    return bool(parts) and all(any(re.match(rf"{part}(?!\d)", word) for word in words) for part in parts)


def parse_gpus(text: str, measured: Card | None = None) -> tuple[int, Card]:
    """`8xH100`: a number and a card, whose rates are those of `measured` if it is given.

    Raises:
        UserError: it is no such text, the card is not known, or it is another one than the measured card.
    """
    count, _, name = text.partition("x")
    if not count.isdigit() or not int(count) or not name:
        raise UserError(f"--gpus: `{text}` is not a number of cards; give it as 8xH100")
    if measured is not None:
        if not is_called(measured.name, name):
            raise UserError(
                f"--gpus names the card `{name}`, but --card has the rates of `{measured.name}`; leave out --card, or "
                "name in --gpus the card that was measured"
            )
        return int(count), measured
    found = next((card for card in CARDS.values() if card.name.lower() == name.lower()), None)
    if found is None:
        raise UserError(f"--gpus: no card `{name}`; there are {', '.join(CARDS)}, or give --card with a measured one")
    return int(count), found
