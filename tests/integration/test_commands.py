"""The other commands on a tiny model: dry run, eval, sample, report."""

import re

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from actors.policy.policy import Policy
from tests.helpers.tiny import tiny_settings


@pytest.fixture
def adapter(sd3_folder, tmp_path):
    policy = Policy(tiny_settings(sd3_folder, num_steps=4), seed=0)
    arrays = {
        name: np.random.default_rng(0).normal(0, 0.3, array.shape).astype(np.float32)
        for name, array in policy.arrays().items()
    }
    policy.save(tmp_path / "lora", arrays)
    return tmp_path / "lora"


def test_dry_run_counts_what_a_step_costs_and_starts_nothing(recipe, in_process, tmp_path):
    done = in_process("train", recipe, "--dry-run")
    assert done.returncode == 0, done.stderr
    rows = {line.split("│")[1].strip(): line for line in done.stdout.splitlines() if line.count("│") > 4}
    nfe = 3 * (2 * 3 + 2 * 3 * (3 + 2 + 1))
    assert f" {nfe} " in rows["rollout"]
    assert f" {3 * 2 * 3 * 3} " in rows["rollout"]
    assert f" {3 * 3 * 2 * 3} " in rows["learner"]
    assert not (tmp_path / "runs").exists()


def test_eval_compares_base_and_adapter_in_pairs(recipe, adapter, tempflow, ray_head, tmp_path):
    done = tempflow("eval", recipe, "--adapter", adapter, "--output", "scores.parquet", address=ray_head.address)
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


def test_sample_writes_the_same_images_each_time_and_others_with_an_adapter(recipe, adapter, in_process, tmp_path):
    def sample(folder, *arguments):
        done = in_process("sample", recipe, "--prompt", "a cat", "--prompt", "a dog", "--output", folder, *arguments)
        assert done.returncode == 0, done.stderr
        return [np.asarray(Image.open(path)) for path in sorted((tmp_path / folder).glob("*.png"))]

    first, again, adapted = sample("one"), sample("two"), sample("three", "--adapter", adapter)
    assert [image.shape for image in first] == [(16, 16, 3)] * 2
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(first, adapted, strict=True))
    assert in_process("sample", recipe, "--prompt", "x", "--adapter", "nowhere").returncode == 2


def test_report_of_no_run_is_refused(in_process, tmp_path):
    done = in_process("report", tmp_path)
    assert done.returncode == 2
    assert "tempflow:" in done.stderr
