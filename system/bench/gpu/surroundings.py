"""What stands around the transformer: VAE, text encoders, reward models and the export of weights."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from services.base.devices import device_of
from services.scoring.hpsv3 import PIXELS
from system.bench.gpu.neighbours import NEIGHBOURS, Neighbour
from system.bench.gpu.record import Cell, Record
from system.bench.gpu.work import free
from system.bench.measure import alternate
from system.bench.models import bench_policy
from system.recipe.load import load_config

MB, GIGA = 1e6, 1e9
ROUNDS = {"cpu": 1, "cuda": 3}
BATCH = {"cpu": 1, "cuda": 8}
SIDE_PX = {"cpu": 64, "cuda": 512}
EXPORTED = ("sd35_pickscore", "sd35-medium")
"""The recipe and the model whose weights are exported on a GPU; on a CPU it is the miniature."""
MODELS, PREPROCESSING, EXPORTS = "Models", "Preprocessing of images in one CPU process", "Export of weights"


def measure(record: Record) -> None:
    """A row for each model, for each preprocessing, and for the export of an adapter and of all weights."""
    device = device_of(record.device)
    if record.small:
        record.note("There is no GPU: the models have few layers, and all of them compute in fp32.")
    for name, neighbour in NEIGHBOURS.items():
        if record.has_time(name):
            with record.attempt(name):
                _measure_model(record, name, neighbour, device)
            free()
    for name, images_per_s in preprocessing(SIDE_PX[device.type]):
        record.row(PREPROCESSING, scorer=name, **{"images a second": images_per_s})
    for what in ("an adapter", "all weights"):
        if record.has_time(f"the export of {what}"):
            with record.attempt(f"the export of {what}"):
                num_bytes, best = export(record.device, whole=what == "all weights")
                cells = {"MB": num_bytes / MB, "seconds": best, "MB/s": num_bytes / MB / best}
                record.row(EXPORTS, weights=what, **cells)
            free()


def _measure_model(record: Record, name: str, neighbour: Neighbour, device: torch.device) -> None:
    count = BATCH[device.type]
    try:
        model = neighbour.make(device, record.small)
        torch.manual_seed(0)
        dtype = next(model.parameters()).dtype
        inputs = {
            key: tensor.to(device, dtype if tensor.is_floating_point() else None)
            for key, tensor in neighbour.inputs(count, SIDE_PX[device.type]).items()
        }
        with torch.no_grad():
            best = alternate({name: partial(model, **inputs)}, ROUNDS[device.type], device)[name]
    except torch.OutOfMemoryError:
        record.row(MODELS, model=name, batch=count, note="out of memory")
        return
    cells: dict[str, Cell] = {
        "parameters, 10⁹": sum(p.numel() for p in model.parameters()) / GIGA,
        "batch": count,
        "of": f"{neighbour.of}s",
        "a second": count / best,
    }
    record.row(MODELS, model=name, **cells)


def preprocessing(side_px: int) -> Iterator[tuple[str, float]]:
    """Images a second that PickScore's and HPSv3's image processors prepare, by the scorer's name."""
    noise_HWC = np.random.default_rng(0).integers(0, 256, (side_px, side_px, 3), np.uint8)
    images, size = [Image.fromarray(noise_HWC)] * 4, {"shortest_edge": PIXELS, "longest_edge": PIXELS}
    calls: dict[str, Any] = {
        "PickScore": partial(CLIPImageProcessorPil(), images, return_tensors="pt"),
        "HPSv3": partial(Qwen2VLImageProcessorPil(), images, size=size, return_tensors="pt"),
    }
    for name, seconds in alternate(calls, ROUNDS["cuda"], torch.device("cpu")).items():
        yield name, len(images) / seconds


def export(device: str, whole: bool) -> tuple[int, float]:
    """Bytes that the learner exports for the workers, and the best seconds of copying and checksumming them."""
    recipe, model = ("shapes", None) if device == "cpu" else EXPORTED
    settings = load_config(recipe).policy.model_copy(update={"device": device} | ({"lora": None} if whole else {}))
    policy, _ = bench_policy(settings, model)
    num_bytes = policy.export(0).label.num_bytes
    return num_bytes, alternate({"export": lambda: policy.export(0)}, ROUNDS[device], policy.device)["export"]
