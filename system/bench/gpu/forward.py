"""Forwards and backwards of whole models, by latents in a forward: speed, share of the peak, and memory.

Models have the shapes of the published ones and random weights; on a CPU, the miniature takes their place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from actors.policy.families.family import DTYPES, Conditioning
from actors.policy.policy import Policy
from actors.policy.settings import PolicySettings
from services.base.devices import device_of
from system.bench.gpu.card import product_rate
from system.bench.gpu.page import THROUGHPUT
from system.bench.gpu.record import Cell, Record
from system.bench.gpu.work import free
from system.bench.measure import alternate, flops_of
from system.bench.models import FULL_SIZES, bench_policy
from system.capacity.architecture import architecture, build_part
from system.capacity.cards import GB
from system.capacity.passes import learner_pass, rollout_pass
from system.recipe.load import load_config

RECIPES = {"sd35-medium": "sd35_pickscore", "flux-dev": "flux_pickscore", "qwen-image": "qwen_pickscore"}
"""The models of full size, and the recipes that size, guidance and adapter are from."""
LATENTS = {"bf16": (1, 2, 4, 8), "fp32": (1,)}
SMALL_LATENTS = {"bf16": (1, 2), "fp32": (1, 2)}
ROUNDS = {"bf16": 3, "fp32": 1}
PASSES = {"sampling": 1, "learning": 3}
"""NFE of a forward, and of a forward with its backward."""
MEMORY = "Memory beside the weights, against the estimate of a recipe"
MOST_OF_MEMORY = 0.95
"""Weights may take so much of the memory that is free."""


def measure(record: Record) -> None:
    """Record the speed of each model by dtype, number of latents and kind of work."""
    device = device_of(record.device)
    peaks = {dtype: product_rate(device, DTYPES[dtype]) for dtype in LATENTS}
    models: list[tuple[str | None, str]] = [(None, "shapes")] if record.small else [*RECIPES.items()]
    for dtype in LATENTS:  # every model in bf16 first, which runs use
        for model, recipe in models:
            what = f"{model or recipe} in {dtype}"
            settings = load_config(recipe).policy.model_copy(update={"device": record.device, "dtype": dtype})
            if why := too_large(model, settings):
                record.note(f"{what} was left out: {why}.")
            elif record.has_time(what):
                with record.attempt(what):
                    measure_model(record, model, settings, peaks[dtype])
                free()


def too_large(model: str | None, settings: PolicySettings) -> str:
    """Why a model's weights do not fit on the device, in words; empty where they do."""
    if model is None or settings.device == "cpu":
        return ""
    needed, (left, _) = weight_bytes(model, settings), torch.cuda.mem_get_info()
    if needed <= MOST_OF_MEMORY * left:
        return ""
    return f"its weights take {needed / GB:.1f} GB, and {left / GB:.1f} GB of the card are free"


def weight_bytes(model: str, settings: PolicySettings) -> int:
    """Bytes of the transformer's weights in the compute dtype."""
    transformer = build_part(architecture(FULL_SIZES[model]), "transformer")
    return sum(p.numel() for p in transformer.parameters()) * DTYPES[settings.dtype].itemsize


def measure_model(record: Record, model: str | None, settings: PolicySettings, peak: float) -> None:
    """Record one model's speed by number of latents and kind of work, and its memory against the estimate.

    Args:
        model: one of `RECIPES`; None for the miniature.
        peak: the device's FLOP/s in matrix products of the settings' dtype.
    """
    policy, conditioning = bench_policy(settings, model)
    latents = (SMALL_LATENTS if record.small else LATENTS)[settings.dtype]
    largest: dict[str, tuple[int, int]] = {}
    for work, passes in PASSES.items():
        try:
            flops = flops_of(one_pass(policy, conditioning, 1, work))
        except torch.OutOfMemoryError:
            record.row(THROUGHPUT, model=model or "miniature", dtype=settings.dtype, work=work, note="out of memory")
            continue
        for count in latents:
            name = f"{work} of {model or 'the miniature'} in {settings.dtype} with {count} latents"
            if not record.has_time(name):
                return
            cells: dict[str, Cell] = {"model": model or "miniature", "dtype": settings.dtype, "work": work}
            cells["latents"] = count
            try:
                taken = timed(one_pass(policy, conditioning, count, work), ROUNDS[settings.dtype], policy.device)
            except torch.OutOfMemoryError:
                record.row(THROUGHPUT, **cells, note="out of memory")
                free()
                continue
            nfe = count * policy.family.forwards_per_row
            cells |= {
                "ms an NFE": taken.seconds / (nfe * passes) * 1e3,
                "NFE/s": nfe * passes / taken.seconds,
                "share of the matrix peak": flops * count / taken.seconds / peak,
                "peak memory, GB": taken.peak_bytes / GB if taken.peak_bytes else None,
            }
            record.row(THROUGHPUT, **cells)
            largest[work] = count, taken.made_bytes
    if model and settings.dtype == "bf16":
        _compare_memory(record, model, policy.settings, largest)


def _compare_memory(record: Record, model: str, settings: PolicySettings, measured: dict[str, tuple[int, int]]) -> None:
    """Rows of what a call holds at most beyond the weights, against what the estimate of a recipe says."""
    for work, (count, made_bytes) in measured.items():
        if record.has_time(f"the estimated memory of {work} of {model}"):
            expected = estimated_bytes(settings, count, work)
            cells = {"measured, GB": made_bytes / GB, "estimated, GB": expected / GB, "ratio": made_bytes / expected}
            record.row(MEMORY, model=model, work=work, latents=count, **cells)


def estimated_bytes(settings: PolicySettings, count: int, work: str) -> float:
    """What the estimate says that a forward of so many latents (and its backward) holds at most, beside the weights."""
    traced = rollout_pass(settings, count) if work == "sampling" else learner_pass(settings, count, compares=False)
    return traced.peak_bytes


def one_pass(policy: Policy, conditioning: Conditioning, count: int, work: str) -> Callable[[], None]:
    """One forward of so many latents; for `learning`, with its backward to the trained parameters."""
    family = policy.family
    generator = torch.Generator(policy.device).manual_seed(0)
    x_NZ = torch.randn(count, *family.latent_shape, device=policy.device, generator=generator)
    sigma_N = torch.full((count,), 0.5, device=policy.device)
    rows = {name: tensor.expand(count, *tensor.shape[1:]) for name, tensor in conditioning.items()}
    return partial(_forward if work == "sampling" else _learn, policy, x_NZ, sigma_N, rows)


@torch.no_grad()
def _forward(policy: Policy, x_NZ: torch.Tensor, sigma_N: torch.Tensor, rows: Conditioning) -> None:
    policy.family.velocity(x_NZ, sigma_N, rows)


def _learn(policy: Policy, x_NZ: torch.Tensor, sigma_N: torch.Tensor, rows: Conditioning) -> None:
    policy.family.velocity(x_NZ, sigma_N, rows).square().mean().backward()
    for parameter in policy.parameters.values():
        parameter.grad = None


@dataclass(frozen=True)
class Timed:
    """What a call took."""

    seconds: float
    """Seconds of the best round."""
    peak_bytes: int = 0
    """The most that was allocated, the weights included; 0 on a CPU."""
    made_bytes: int = 0
    """The same without what was allocated before."""


def timed(call: Callable[[], None], rounds: int, device: torch.device) -> Timed:
    """Time a call after one round that is not counted, and find the memory that it takes."""
    if device.type == "cpu":
        return Timed(alternate({"call": call}, rounds, device)["call"])
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    best = alternate({"call": call}, rounds, device)["call"]
    peak = torch.cuda.max_memory_allocated(device)
    return Timed(best, peak, peak - before)
