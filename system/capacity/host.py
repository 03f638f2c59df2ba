"""The memory of a recipe's processes on the host, where models are read before they go to a GPU."""

from __future__ import annotations

from functools import cache

import torch
from torch import nn

from actors.policy.families.family import DTYPES
from actors.policy.settings import LoraSettings
from actors.policy.trained import targeted
from system.capacity.architecture import META, architecture, build_part, parts
from system.capacity.cards import GB
from system.capacity.counts import store_bytes
from system.capacity.in_flight import task_image_bytes
from system.capacity.memory import (
    ADAM_MOMENTS,
    FP32_BYTES,
    Process,
    asks,
    experience_bytes,
    first_plan,
    local_policy,
    own_parameters,
    processes,
)
from system.capacity.packing import NODE_GPUS, fewest
from system.capacity.passes import part_sizes, text_encoders
from system.recipe.model import RunConfig

LIBRARIES_BYTES = 0.6 * GB
"""Python, PyTorch, diffusers, transformers and Ray in each process; 0.53 GB were measured on a CPU."""
CUDA_BYTES = 1.5 * GB
"""What CUDA adds on the host in a process with a GPU, an assumption."""
ASSUMED = ("libraries", "embeddings")
"""What is assumed, or may stay far below its bound."""


def host_processes(config: RunConfig) -> list[Process]:
    """Every process of a run with its memory on the host. A process without a GPU has all of its memory there.

    Raises:
        UserError: the shapes of the policy's model are not known.
    """
    found = [Process("driver", 1, 0, {"libraries": LIBRARIES_BYTES})]
    for one in processes(config):
        if not one.gpus:
            held = {"libraries": LIBRARIES_BYTES} | _kept(config, one.role) | one.held
            found.append(Process(one.role, one.count, 0, held, one.phases))
            continue
        held = {"libraries": LIBRARIES_BYTES + CUDA_BYTES}
        phases = {"loading": _loaded_bytes(config, one)}
        works = _kept(config, one.role) | _pinned(config, one.role)
        if works:
            phases["working"] = sum(works.values())
        if one.role not in ("learner", "colocated"):
            found.append(Process(one.role, one.count, one.gpus, held, phases))
            continue
        saves = phases | {"saving a checkpoint": sum(works.values()) + _saved_bytes(config)}
        if config.learner.shard or one.count == 1:
            found.append(Process(one.role, one.count, one.gpus, held, saves))
        else:
            found.append(Process(f"first {one.role}", 1, one.gpus, held, saves))
            found.append(Process(one.role, one.count - 1, one.gpus, held, phases))
    return found


def host_bytes(config: RunConfig, found: list[Process]) -> float:
    """The host memory of all processes at their peaks, and the object store."""
    return sum(one.count * one.peak_bytes for one in found) + store_bytes(config)


def node_share(found: list[Process]) -> float:
    """The share of all host memory that one node needs: all of it up to NODE_GPUS GPUs, if processes are spread evenly
    over more.
    """
    return min(1.0, NODE_GPUS / max(1, fewest(*asks(found))))


def assumed_bytes(found: list[Process]) -> float:
    """The part of `host_bytes` that is assumed or a bound: a machine with less memory by this much may do."""
    return sum(one.count * sum(one.held.get(name, 0.0) for name in ASSUMED) for one in found)


def _generates(role: str) -> bool:
    return role in ("rollout", "colocated")


def _kept(config: RunConfig, role: str) -> dict[str, float]:
    """What a generator keeps: text embeddings up to their bound, and the task that it has just made."""
    if not _generates(role):
        return {}
    task = task_image_bytes(config, first_plan(config)) + experience_bytes(config)
    return {"embeddings": float(config.rollout.embedding_bytes), "a task": task}


def _loaded_bytes(config: RunConfig, one: Process) -> float:
    """Models are read into the host's memory whole, then copied to the GPU."""
    if one.role.startswith("scorer"):
        return one.held["weights"]
    policy = local_policy(config)
    size = part_sizes(policy.model, "transformer", DTYPES[policy.dtype])[1]
    if _generates(one.role):
        size += part_sizes(policy.model, "vae", DTYPES[policy.vae_dtype])[1]
        size += sum(num_bytes for _, num_bytes in text_encoders(policy).values())
    return float(size)


def _pinned(config: RunConfig, role: str) -> dict[str, float]:
    """Pinned tensors of a process with a GPU: offloaded text encoders and moments, and what merging overwrites.

    Moments that are offloaded are counted as they are; PyTorch pins up to twice as much for each tensor.
    """
    pinned: dict[str, float] = {}
    policy = local_policy(config)
    if _generates(role) and config.rollout.offload_text_encoders:
        pinned["text encoders"] = _pinned_encoders(policy.model, DTYPES[policy.dtype])
    if _generates(role) and config.rollout.merge_adapter and policy.lora:
        pinned["weights without the adapter"] = _pinned_targets(
            policy.model, policy.lora.model_dump_json(), policy.dtype
        )
    if role in ("learner", "colocated") and config.learner.optimizer != "adamw":
        pinned["Adam"] = ADAM_MOMENTS * FP32_BYTES * own_parameters(config)
    return pinned


def pinned_bytes(num_bytes: int) -> int:
    """What PyTorch pins for a tensor: the next power of two (`CachingHostAllocator.h`)."""
    return 1 << (num_bytes - 1).bit_length() if num_bytes else 0


@cache
def _pinned_encoders(model: str, dtype: torch.dtype) -> float:
    folder = architecture(model)
    modules = [build_part(folder, name, META, dtype) for name in parts(folder) if name.startswith("text_encoder")]
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    return float(sum(pinned_bytes(tensor.nbytes) for tensor in tensors))


@cache
def _pinned_targets(model: str, lora: str, dtype: str) -> float:
    transformer = build_part(architecture(model), "transformer", META, DTYPES[dtype])
    linear = {name: module for name, module in transformer.named_modules() if isinstance(module, nn.Linear)}
    chosen = targeted(linear, LoraSettings.model_validate_json(lora))
    return float(sum(pinned_bytes(linear[name].weight.nbytes) for name in chosen))


def _saved_bytes(config: RunConfig) -> float:
    """The files of a checkpoint, which are made before they are written; the largest twice while it is made.

    They hold the trained weights, Adam's moments and the weight sets in fp32, and the past versions.
    """
    learner = config.learner
    arrays = 1 + 2 * ADAM_MOMENTS + len(config.objective.weight_sets(learner.ema))
    past = learner.max_staleness * DTYPES[config.policy.dtype].itemsize
    return own_parameters(config) * (FP32_BYTES * arrays + past)
