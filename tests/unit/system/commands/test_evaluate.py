"""`tempflow eval`: the base model and an adapter, in pairs."""

import re

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.helpers.learners import random_adapter


@pytest.fixture
def adapter(sd3_folder, tmp_path):
    return random_adapter(sd3_folder, tmp_path / "lora")


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_eval_compares_base_and_adapter_in_pairs(recipe, adapter, in_process, tmp_path, dtype):
    done = in_process(
        "eval", recipe, f"policy.dtype={dtype}", "--local", "--adapter", adapter, "--output", "scores.parquet"
    )
    assert done.returncode == 0, done.stderr
    table = pq.read_table(tmp_path / "scores.parquet")
    models, scores = np.array(table["model"].to_pylist()), table["size"].to_numpy()
    base, adapted = scores[models == "base"], scores[models == "adapter"]
    assert len(base) == len(adapted) == 6
    assert (base != adapted).any()
    shown = [float(text) for text in re.findall(r"[-+]?\d+\.\d+", done.stdout)]
    difference = adapted - base
    half = 1.96 * difference.std(ddof=1) / np.sqrt(6)
    expected = [base.mean(), adapted.mean(), difference.mean(), difference.mean() - half, difference.mean() + half]
    assert shown == pytest.approx(expected, abs=1e-4)
