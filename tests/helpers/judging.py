"""Scorers that read rows, give sub-scores and compare the images of a task, in a module that a recipe can name."""

import json
from pathlib import Path

JUDGE = """
import numpy as np

class Judge:
    columns = ("count",)

    def __call__(self, images_NHWC, prompts, rows):
        brightness = images_NHWC.mean(axis=(1, 2, 3)) / 255
        return {"brightness": brightness, "count": [row["count"] for row in rows]}

class Rank:
    groupwise = True

    def __call__(self, images_NHWC, prompts):
        assert len(set(prompts)) == 1
        brightness = images_NHWC.mean(axis=(1, 2, 3))
        return brightness.argsort(kind="stable").argsort() / len(prompts)
"""
SCORERS = [
    {
        "name": "judge",
        "scorer": "judging:Judge",
        "reward": {"brightness": 2.0, "count": 10.0},
        "request_images": 4,
        "num_cpus": 0.1,
    },
    {"name": "rank", "scorer": "judging:Rank", "num_cpus": 0.1},
]


def judged_by_rows(folder: Path) -> list[str]:
    """Write the scorers, and twelve prompts whose column `count` is their row number; returns a recipe's settings."""
    (folder / "judging.py").write_text(JUDGE)
    rows = [{"prompt": f"prompt number {i}", "count": i} for i in range(12)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = [f"data.{file}={folder / 'rows.jsonl'}" for file in ("train", "heldout")]
    return [f"scorers={json.dumps(SCORERS)}", *files]
