"""What the card is, and the rates that it reaches in practice: the figures that estimates need."""

import subprocess

import psutil
import torch
from torch.nn.functional import scaled_dot_product_attention

from services.base.devices import device_of
from system.bench.gpu.record import Record
from system.bench.gpu.work import free, without_tf32
from system.bench.measure import alternate, matmul_peak, name_of
from system.capacity.cards import CARDS, GB, is_called

TERA = 1e12
RATES = {
    "matmul_bf16_tflops": ("matrix product in bf16", "TFLOP/s"),
    "matmul_fp32_tflops": ("matrix product in fp32 without TF32", "TFLOP/s"),
    "matmul_tf32_tflops": ("matrix product in fp32 with TF32", "TFLOP/s"),
    "attention_bf16_tflops": ("attention in bf16, forward", "TFLOP/s"),
    "memory_tb_per_s": ("memory, reads and writes", "TB/s"),
}
"""The rates of a card in words and their units, by the field of `Card`."""
ROUNDS = 10
SIDE = {"cpu": 256, "cuda": 8192}
"""Rows and columns of the square matrices. Some CPUs take seconds for a larger product in bf16."""
ATTENTION_BLHD = {"cpu": (1, 512, 4, 64), "cuda": (8, 4608, 24, 128)}
"""Rows, tokens, heads and their width. On a GPU they are FLUX's at 1,024 px."""
COPIED_BYTES = {"cpu": 2**26, "cuda": 2**32}


def measure(record: Record) -> None:
    """Measure every rate, and record the card with the fields of `system.capacity.cards.Card`."""
    device = device_of(record.device)
    rates = {
        "matmul_bf16_tflops": product_rate(device, torch.bfloat16) / TERA,
        **fp32_rates(device),
        "attention_bf16_tflops": attention_rate(device) / TERA,
        "memory_tb_per_s": memory_rate(device) / TERA,
    }
    on_paper = next((card for card in CARDS.values() if is_called(name_of(device), card.name)), None)
    for name, rate in rates.items():
        words, unit = RATES[name]
        expected = getattr(on_paper, name) if on_paper else None
        record.row("Rates", rate=words, unit=unit, measured=rate, **{"on paper": expected})
    about = {
        "driver": driver(),
        "CUDA": torch.version.cuda,
        "PyTorch": torch.__version__,
        "compute capability": capability(device) or None,
        "memory, GB": memory_bytes(device) / GB,
    }
    for what, value in about.items():
        record.row("The machine", what=what, value=value)
    record.findings.card = {
        "name": name_of(device),
        "memory_gb": memory_bytes(device) / GB,
        "compute_capability": capability(device),
        **rates,
    }
    wrong = [name for name, rate in rates.items() if not rate > 0]
    record.check("rates", not wrong, f"not positive: {', '.join(wrong)}" if wrong else "every rate is positive")


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a matrix product."""
    return matmul_peak(device, dtype, ROUNDS, SIDE[device.type])


def fp32_rates(device: torch.device) -> dict[str, float]:
    """FLOP/s / 1e12 of fp32 products, without and with TF32 (which a CPU lacks)."""
    with without_tf32():
        plain = product_rate(device, torch.float32) / TERA
        torch.backends.cuda.matmul.allow_tf32 = True
        return {"matmul_fp32_tflops": plain, "matmul_tf32_tflops": product_rate(device, torch.float32) / TERA}


def attention_rate(device: torch.device) -> float:
    """FLOP/s of `scaled_dot_product_attention` in bf16: two products of 2·B·H·L²·D each."""
    rows, tokens, heads, width = ATTENTION_BLHD[device.type]
    q, k, v = (torch.randn(rows, heads, tokens, width, device=device, dtype=torch.bfloat16) for _ in range(3))
    best = alternate({"attention": lambda: scaled_dot_product_attention(q, k, v)}, ROUNDS, device)["attention"]
    return 4 * rows * heads * tokens**2 * width / best


def memory_rate(device: torch.device) -> float:
    """Bytes a second that a copy within the device's memory reads and writes."""
    free()
    source = torch.zeros(COPIED_BYTES[device.type], device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    best = alternate({"copy": lambda: target.copy_(source)}, ROUNDS, device)["copy"]
    return 2 * source.numel() / best


def memory_bytes(device: torch.device) -> int:
    """Bytes of the card, or of the machine where there is none."""
    if device.type == "cpu":
        return psutil.virtual_memory().total
    return torch.cuda.get_device_properties(device).total_memory


def capability(device: torch.device) -> str:
    """Compute capability such as `9.0`; empty on a CPU."""
    return ".".join(map(str, torch.cuda.get_device_capability(device))) if device.type == "cuda" else ""


def driver() -> str | None:
    """Version of NVIDIA's driver; None where `nvidia-smi` is missing or fails."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return said.splitlines()[0].strip() if said.strip() else None
