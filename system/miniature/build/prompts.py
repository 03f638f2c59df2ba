"""The prompt lists of the shapes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from system.miniature.world import caption, split

ROWS = {"train": 4096, "heldout": 512}


def write_prompts(folder: Path, seed: int) -> None:
    """Write train.parquet and heldout.parquet with the columns prompt and category, shuffled.

    There are three single-object captions per relation. There are fewer different single-object captions than rows for
    them, so each occurs several times.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for side, (name, count) in enumerate(ROWS.items()):
        rng = np.random.default_rng([seed, 5, side])
        rows = []
        for category, wanted in (("single", count * 3 // 4), ("relation", count // 4)):
            scenes = split(category)[side]
            rounds = -(-wanted // len(scenes))
            order = np.concatenate([rng.permutation(len(scenes)) for _ in range(rounds)])[:wanted]
            rows += [{"prompt": caption(scenes[i]), "category": category} for i in order]
        pq.write_table(pa.Table.from_pylist([rows[i] for i in rng.permutation(count)]), folder / f"{name}.parquet")
