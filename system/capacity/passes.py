"""What each kind of pass costs: learning from a micro-batch, sampling one, decoding one, encoding a prompt.

The family's own code runs on tensors without data. A transformer's blocks are alike, so that operators and peak memory
grow by the same amount with each further block of a kind: a model with two blocks of each kind is traced, and one with
one more block of each, and the rest is extrapolated. Operators are then exact, and so is the peak; with checkpointing,
the peak is exact to 1%. Not seen are workspaces inside a kernel, such as those of convolutions.
"""

from __future__ import annotations

import math
from collections import Counter
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from actors.learner.masters import Masters
from actors.policy.families.family import DTYPES, Family
from actors.policy.policy import Policy
from actors.policy.settings import LoraSettings, PolicySettings
from actors.policy.trained import targeted
from system.capacity.architecture import (
    architecture,
    assemble,
    build_part,
    parts,
    random_conditioning,
    read_config,
)
from system.capacity.trace import META, Kind, Operator, Trace, traced, without_data

LEAST = 2
"""Blocks of each kind in the smaller trace. The first and the last block of a model have neighbours of another kind."""

Counts = tuple[tuple[str, int], ...]
"""Blocks of each kind."""


def block_counts(config: dict[str, Any]) -> Counts:
    """The blocks of a transformer by kind, from its configuration. SD3.5's with two attentions are a kind."""
    if dual := len(config.get("dual_attention_layers", ())):
        return (("dual", dual), ("plain", config["num_layers"] - dual))
    return tuple(
        (key, config[key])
        for key in ("num_layers", "num_single_layers", "n_layers", "n_refiner_layers")
        if key in config
    )


def with_blocks(counts: Counts) -> dict[str, Any]:
    """The keys of a configuration that give a transformer this many blocks of each kind."""
    found = dict(counts)
    if "dual" in found:
        return {"num_layers": found["dual"] + found["plain"], "dual_attention_layers": list(range(found["dual"]))}
    return found


def learner_pass(settings: PolicySettings, rows: int, compares: bool) -> Trace:
    """Forward and backward of a micro-batch.

    Args:
        rows: of the micro-batch; guidance doubles them in the model.
        compares: whether the loss needs one more forward, without a gradient, while the graph is alive.
    """
    return _extrapolated("learn", _shapes_of(settings), rows, compares)


def rollout_pass(settings: PolicySettings, rows: int) -> Trace:
    """A forward without a gradient."""
    plain = settings.model_copy(update={"gradient_checkpointing": False})
    return _extrapolated("sample", _shapes_of(plain), rows, False)


def _shapes_of(settings: PolicySettings) -> str:
    """What a trace depends on."""
    plain = {"device": "cpu", "adapter": None, "compile": False, "attention": None, "num_steps": 2}
    return settings.model_copy(update=plain).model_dump_json()


@cache
def _extrapolated(kind: str, shapes: str, rows: int, compares: bool) -> Trace:
    settings = PolicySettings.model_validate_json(shapes)
    counts = block_counts(read_config(architecture(settings.model) / "transformer"))
    least = tuple((name, min(LEAST, count)) for name, count in counts)
    total = base = pass_of_blocks(kind, settings, rows, compares, least)
    for index, (name, count) in enumerate(counts):
        if count > LEAST:
            more = (*least[:index], (name, LEAST + 1), *least[index + 1 :])
            total += (pass_of_blocks(kind, settings, rows, compares, more) - base) * (count - LEAST)
    return total


def pass_of_blocks(kind: str, settings: PolicySettings, rows: int, compares: bool, counts: Counts) -> Trace:
    """A pass of a model with so many blocks, traced as it is."""
    folder = architecture(settings.model)
    transformer = build_part(folder, "transformer", META, DTYPES[settings.dtype], with_blocks(counts))
    policy = Policy(settings, seed=0, family=assemble(settings, {"transformer": transformer}))
    family = policy.family
    family.device = META
    with without_data():
        x_NZ, sigma_N = torch.empty(rows, *family.latent_shape), torch.full((rows,), 0.5)
        one = random_conditioning(family)
        conditioning = {name: tensor.expand(rows, *tensor.shape[1:]) for name, tensor in one.items()}
        if kind == "sample":
            with torch.no_grad():
                return traced(lambda: family.velocity(x_NZ, sigma_N, conditioning))
        for master in Masters(policy.parameters).tensors.values():
            master.grad = torch.empty_like(master)  # as from the second micro-batch on
        return traced(lambda: _learn(policy, x_NZ, sigma_N, conditioning, compares))


def _learn(policy: Policy, x_NZ: Tensor, sigma_N: Tensor, conditioning: dict[str, Tensor], compares: bool) -> None:
    v_NZ = policy.family.velocity(x_NZ, sigma_N, conditioning)
    target_NZ = x_NZ
    if compares:
        with torch.no_grad():
            target_NZ = policy.family.velocity(x_NZ, sigma_N, conditioning)
    (v_NZ - target_NZ).square().mean().backward()


@cache
def _decoded(shapes: str, rows: int) -> Trace:
    settings = PolicySettings.model_validate_json(shapes)
    folder = architecture(settings.model)
    transformer = build_part(
        folder, "transformer", META, torch.float32, with_blocks(_one_of_each(read_config(folder / "transformer")))
    )
    vae = build_part(folder, "vae", META)
    family = assemble(settings, {"transformer": transformer, "vae": vae})
    family.device = META
    with without_data():
        latent_NZ = torch.empty(rows, *family.latent_shape)
        return traced(lambda: family.decode(latent_NZ))


def decode_pass(settings: PolicySettings, rows: int) -> Trace:
    """Latents to pixels, by the VAE in its own dtype."""
    return _decoded(_shapes_of(settings), rows)


def _one_of_each(config: dict[str, Any]) -> Counts:
    """One block of each kind that the model has, which is enough where blocks do not count."""
    return tuple((name, min(1, count)) for name, count in block_counts(config))


def encode_pass(settings: PolicySettings, guided: bool) -> Trace:
    """Text encoders on one prompt, and on the negative one: each weight multiplied once with each token."""
    folder = architecture(settings.model)
    operators: Counter[Operator] = Counter()
    for part, (count, num_bytes) in text_encoders(settings).items():
        config = read_config(folder / part)
        tokens = config.get("max_position_embeddings", math.inf) if config["model_type"].startswith("clip") else 0
        length = int(tokens or settings.max_sequence_length)
        kind: Kind = "matmul_bf16" if settings.dtype == "bf16" else "matmul_fp32"
        operators[Operator(kind, 2 * count * length, num_bytes)] += 1 + guided
    return Trace(operators)


def sizes(module: nn.Module) -> tuple[int, int]:
    """Numbers in a module's parameters and buffers, and their bytes."""
    tensors = [*module.parameters(), *module.buffers()]
    return sum(t.numel() for t in tensors), sum(t.numel() * t.itemsize for t in tensors)


@cache
def part_sizes(model: str, part: str, dtype: torch.dtype) -> tuple[int, int]:
    """Numbers and bytes of a part of a model."""
    return sizes(build_part(architecture(model), part, META, dtype))


def text_encoders(settings: PolicySettings) -> dict[str, tuple[int, int]]:
    """Numbers and bytes of each text encoder, which computes in the policy's dtype."""
    names = (name for name in parts(architecture(settings.model)) if name.startswith("text_encoder"))
    return {name: part_sizes(settings.model, name, DTYPES[settings.dtype]) for name in names}


@cache
def _trained(model: str, adapter: str | None) -> int:
    transformer = build_part(architecture(model), "transformer")
    if adapter is None:
        return sum(parameter.numel() for parameter in transformer.parameters())
    lora = LoraSettings.model_validate_json(adapter)
    linear = {name: module for name, module in transformer.named_modules() if isinstance(module, nn.Linear)}
    return sum(lora.rank * (linear[name].in_features + linear[name].out_features) for name in targeted(linear, lora))


def trained_parameters(settings: PolicySettings) -> int:
    """How many numbers are trained: those of the adapter, or all of the transformer's parameters."""
    return _trained(settings.model, settings.lora.model_dump_json() if settings.lora else None)


@cache
def largest_block_bytes(model: str, dtype: torch.dtype) -> int:
    """Bytes of the largest block, which a sharded transformer gathers as it runs."""
    from actors.policy.blocks import blocks

    return max(sizes(block)[1] for block in blocks(build_part(architecture(model), "transformer", META, dtype)))


def latent_shape(settings: PolicySettings) -> tuple[int, ...]:
    """Z of one image."""
    return _family_without_weights(_shapes_of(settings)).latent_shape


@cache
def _family_without_weights(shapes: str) -> Family:
    settings = PolicySettings.model_validate_json(shapes)
    folder = architecture(settings.model)
    blocks = with_blocks(_one_of_each(read_config(folder / "transformer")))
    return assemble(settings, {"transformer": build_part(folder, "transformer", META, torch.float32, blocks)})
