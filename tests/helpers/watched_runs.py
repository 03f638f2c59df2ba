"""Run folders as a run leaves them, written by hand for those that watch a run."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from system.loop.pictures import small_image

HOSTILE = "<img src=x onerror=\"document.title='owned'\"> a \x1b[31mred\x1b[0m cat & " + "very " * 60 + "long caption"


def write_config(run: Path, **more: Any) -> None:
    config = {
        "name": run.name,
        "steps": 3,
        "method": "tempflow",
        "policy": {"model": "some/model", "num_steps": 4},
        "advantage": {"group": "seed"},
        "scorers": [{"name": "size", "weight": 1.0}, {"name": "judge", "weight": 0.0}],
    }
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.yaml").write_text(yaml.safe_dump(config | more))


def line(step: int, **more: Any) -> dict[str, Any]:
    """A line of metrics.jsonl."""
    training = {"reward/mean": step / 10, "reward/size/mean": step / 10, "seconds/step": 2.0, "idle/learner": 0.25}
    heldout = {"eval/judge": 0.5, "eval/judge/<x>": 0.4}
    return {"step": step, "time": 1000.0 + step, "nfe": step * 100, **(training if step else heldout), **more}


def write_line(run: Path, content: dict[str, Any], end: str = "\n") -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(content) + end)


def experience(step: int, rewards: dict[tuple[int, int, int, int], list[float | None]]) -> pa.Table:
    """A table of experience of trunks whose actions own one leaf each.

    Args:
        rewards: the rewards of the actions by (prompt row, decision, seed, branch step).
    """
    rows, next_leaf = [], dict.fromkeys((row for row, *_ in rewards), 0)
    for (row, decision, seed, at), values in rewards.items():
        known = [value for value in values if value is not None]
        for k, value in enumerate(values):
            leaf, next_leaf[row] = next_leaf[row], next_leaf[row] + 1
            rows.append(
                {
                    "step": step - 1,
                    "prompt_row": row,
                    "prompt": HOSTILE if row == 7 else f"prompt {row}",
                    "decision": decision,
                    "seed": seed,
                    "branch_step": at,
                    "exploration": k,
                    "leaf": leaf,
                    "reward/size": value,
                    "reward": value,
                    "advantage": 0.0 if value is None else value - sum(known) / len(known),
                }
            )
    return pa.Table.from_pylist(rows)


def write_step(run: Path, step: int, kept: int = 4) -> None:
    """A step of two prompts, 7 and 8, with two trunks of two forks each; the first leaves of prompt 7 have pictures."""
    rewards = {
        (row, 2 * seed + at, seed, at): [0.1 * step + 0.1 * k * (at + 1) * (row == 7) for k in range(3)]
        for row in (7, 8)
        for seed in (0, 1)
        for at in (0, 1)
    }
    for folder in ("experience", "pictures"):
        (run / folder).mkdir(exist_ok=True)
    pq.write_table(experience(step, rewards), run / "experience" / f"step_{step:06d}.parquet")
    images = [small_image(_flat((40 * leaf, 80, 20 * step % 256))) for leaf in range(kept)]
    table = pa.table({"prompt_row": [7] * kept, "leaf": list(range(kept)), "image": pa.array(images, pa.binary())})
    pq.write_table(table, run / "pictures" / f"step_{step:06d}.parquet")


def write_samples(run: Path, step: int) -> None:
    """Two held-out pictures and their scores."""
    folder = run / "samples" / f"step_{step:06d}"
    for place in (folder, run / "eval"):
        place.mkdir(parents=True, exist_ok=True)
    for i in range(2):
        Image.fromarray(_flat((0, 100 * i, 200))).save(folder / f"{i:03d}.png")
    scores = {
        "row": [0, 1],
        "image": [0, 0],
        "prompt": ["a dog", HOSTILE],
        "category": [None, None],
        "judge": [0.25, None],
    }
    pq.write_table(pa.table(scores), run / "eval" / f"step_{step:06d}.parquet")


def write_run(run: Path, steps: int = 2, **more: Any) -> Path:
    """A run after some steps."""
    write_config(run, **more)
    for step in range(steps + 1):
        write_line(run, line(step))
        if step:
            write_step(run, step)
    write_samples(run, 0)
    return run


def _flat(colour: tuple[int, int, int]) -> Any:
    return np.full((16, 16, 3), colour, np.uint8)
