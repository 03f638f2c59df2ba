"""Recipes that are small: the least that a recipe says, and one of four tiny steps."""

from pathlib import Path
from typing import Any

import pytest
import yaml

ONE_PROCESS = ("placement=colocated", "rollout.workers=1")
"""One process that generates and learns. It starts fastest, where the number of processes does not matter."""
MINIMAL = {
    "steps": 2,
    "policy": {"model": "somewhere"},
    "scorers": [{"name": "size", "scorer": "jpeg_size"}],
    "data": {"train": "prompts.txt"},
}


def write_minimal(folder: Path, **changes: Any) -> str:
    """Write the least that a recipe says, with changes to its keys; returns its path."""
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(MINIMAL | changes))
    return str(path)


@pytest.fixture
def recipe(sd3_folder, tmp_path) -> Path:
    """A recipe of four tiny steps; the run folder is beside it."""
    return tiny_recipe(sd3_folder, tmp_path)


def tiny_recipe(model: Path, folder: Path) -> Path:
    prompts = folder / "prompts.txt"
    prompts.write_text("".join(f"prompt number {i}\n" for i in range(12)))
    path = folder / "tiny.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "steps": 4,
                "output": str(folder / "runs"),
                "policy": {
                    "model": str(model),
                    "height": 16,
                    "width": 16,
                    "num_steps": 4,
                    "guidance": 1.0,
                    "max_sequence_length": 1,
                    "dtype": "fp32",
                    "device": "cpu",
                    "lora": {"rank": 4, "alpha": 8},
                },
                "plan": {"name": "trunk", "seeds": 2, "explorations": 3},
                "learner": {"lr": 1e-2, "num_cpus": 0.2, "ema": {"every": 1}},
                "rollout": {"workers": 2, "num_cpus": 0.2, "micro_batch": 8, "decode_batch": 8},
                "scorers": [{"name": "size", "scorer": "jpeg_size", "num_cpus": 0.1}],
                "data": {"train": str(prompts), "heldout": str(prompts), "prompts_per_step": 3},
                "eval": {"every": 2, "prompts": 6, "batch": 4, "grid": 2},
                "checkpoint": {"every": 2},
            }
        )
    )
    return path
