"""`tempflow eval`: the base model, adapters and checkpoints, in pairs."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from actors.learner.parts import whole
from system.commands.evaluate import comparisons
from system.export import weights
from tests.helpers.evaluations import evaluation_of
from tests.helpers.learners import random_adapter

T_5 = 2.570582
"""Student's t of 5 degrees of freedom, for a two-sided interval of 95%."""


@pytest.fixture
def adapter(sd3_folder, tmp_path):
    return random_adapter(sd3_folder, tmp_path / "lora")


def numbers(text: str) -> list[float]:
    return [float(found) for found in re.findall(r"[-+]?\d+\.\d+", text)]


def sizes_in(file: Path) -> dict[str, np.ndarray]:
    """The scores of the scorer `size` in a table of `tempflow eval`, by model."""
    table = pq.read_table(file)
    models = np.array(table["model"].to_pylist())
    return {name: table["size"].to_numpy()[models == name] for name in dict.fromkeys(models)}


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_eval_compares_base_and_adapter_in_pairs(recipe, adapter, in_process, tmp_path, dtype):
    done = in_process(
        *("eval", recipe, f"policy.dtype={dtype}", "--local"),
        *("--adapter", f"mine={adapter}", "--output", "scores.parquet"),
    )
    assert done.returncode == 0, done.stderr
    table = pq.read_table(tmp_path / "scores.parquet")
    assert table.column_names == ["set", "model", "row", "image", "prompt", "category", "size"]
    models, scores = np.array(table["model"].to_pylist()), table["size"].to_numpy()
    base, adapted = scores[models == "base"], scores[models == "mine"]
    assert len(base) == len(adapted) == 6
    assert (base != adapted).any()
    difference = adapted - base
    half = T_5 * difference.std(ddof=1) / np.sqrt(6)
    expected = [base.mean(), adapted.mean(), difference.mean(), half]
    assert numbers(done.stdout) == pytest.approx(expected, abs=1e-4)


def test_models_may_be_compared_with_another_one_than_the_base(recipe, adapter, in_process, tmp_path):
    done = in_process("eval", recipe, "--local", "--adapter", f"mine={adapter}", "--against=mine", "--output=a.parquet")
    assert done.returncode == 0, done.stderr
    assert "differences from mine" in " ".join(done.stdout.split())
    sizes = sizes_in(tmp_path / "a.parquet")
    assert list(sizes) == ["mine", "base"]
    difference = sizes["base"] - sizes["mine"]
    assert numbers(done.stdout)[2:] == pytest.approx(
        [difference.mean(), T_5 * difference.std(ddof=1) / 6**0.5], abs=1e-4
    )


def test_several_images_of_a_prompt_count_as_one_prompt_in_the_interval(recipe, adapter, in_process, tmp_path):
    done = in_process(
        "eval", recipe, "eval.images_per_prompt=2", "--local", "--adapter", adapter, "--output", "scores.parquet"
    )
    assert done.returncode == 0, done.stderr
    table = pq.read_table(tmp_path / "scores.parquet")
    assert table["image"].to_pylist() == [0, 1] * 12
    score_2PK = table["size"].to_numpy().reshape(2, 6, 2)
    assert (score_2PK[0, :, 0] != score_2PK[0, :, 1]).all(), "each image starts from its own noise"
    difference_P = (score_2PK[1] - score_2PK[0]).mean(1)
    half = T_5 * difference_P.std(ddof=1) / np.sqrt(6)
    *_, middle, found = numbers(done.stdout)
    assert [middle, found] == pytest.approx([difference_P.mean(), half], abs=1e-4)


def test_hybrid_sampling_lies_between_the_base_and_the_adapter(recipe, adapter, in_process, tmp_path):
    """Of four steps, 0.1 is none, 0.5 the first two, and 1 is all."""
    shares = [text for share in ("0.1", "0.5", "1") for text in ("--base-after", share)]
    done = in_process(
        "eval", recipe, "--local", "--adapter", f"mine={adapter}", *shares, "--output", "a.parquet", "--page", "a.html"
    )
    assert done.returncode == 0, done.stderr
    sizes = sizes_in(tmp_path / "a.parquet")
    assert list(sizes) == ["base", "mine (base after 0.1)", "mine (base after 0.5)", "mine"]
    base, none, half, whole = sizes.values()
    np.testing.assert_array_equal(none, base)
    assert (half != base).any()
    assert (half != whole).any()


def test_the_page_has_every_image_and_what_the_filters_read(recipe, adapter, in_process, tmp_path):
    prompts = tmp_path / "own.jsonl"
    rows = [{"prompt": "a <b>cat</b>", "category": "x & y"}, {"prompt": "two dogs"}, {"prompt": "a hen"}]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = in_process(
        *("eval", recipe, "--local", "--prompts", prompts, "--adapter", f"mine={adapter}"),
        *("--output", "a.parquet", "--page", "pages/a.html"),
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "pages" / "a.html").read_text()
    assert page.count('src="data:image/png;base64,') == 2 * 3
    assert "<b>cat</b>" not in page
    assert 'data-category="x &amp; y"' in page
    table = pq.read_table(tmp_path / "a.parquet").to_pylist()
    found = [json.loads(text.replace("&#34;", '"')) for text in re.findall(r'data-scores="([^"]+)"', page)]
    assert [scores["mine"]["size"] for scores in found] == [row["size"] for row in table if row["model"] == "mine"]


def test_a_checkpoint_gives_what_its_saved_adapter_gives_and_is_read_once(recipe, in_process, tmp_path, monkeypatch):
    trained = in_process("train", recipe, "--local", "name=run")
    assert trained.returncode == 0, trained.stderr
    run, read = tmp_path / "runs" / "run", []
    monkeypatch.setattr(weights, "whole", lambda name, folder: read.append(folder.path[-11:]) or whole(name, folder))
    done = in_process(
        *("eval", run, "--local", "--adapter", run / "lora", "--checkpoint", f"last={run}", "--checkpoint"),
        *(f"{run}@2", "--output", "a.parquet"),
    )
    assert done.returncode == 0, done.stderr
    sizes = sizes_in(tmp_path / "a.parquet")
    assert list(sizes) == ["base", "run/lora", "last", "run@2"]
    assert read == ["step_000004", "step_000002"]
    _, lora, last, earlier = sizes.values()
    np.testing.assert_array_equal(lora, last)
    np.testing.assert_array_equal(last, pq.read_table(run / "eval" / "step_000004.parquet")["size"])
    np.testing.assert_array_equal(earlier, pq.read_table(run / "eval" / "step_000002.parquet")["size"])


def test_what_cannot_be_compared_is_refused(recipe, adapter, in_process, tmp_path):
    for said, *arguments in (
        ("two models are named `lora`", "--adapter", f"lora={adapter}", "--adapter", f"lora={adapter}"),
        ("no prompts to evaluate", "data.heldout=null"),
        ("there is no folder `nowhere`", "--checkpoint", "nowhere@best"),
        ("--adapter: there is no folder", "--adapter", "nowhere"),
        ("--against: no model is named `his`; name one of base, mine", "--adapter", f"mine={adapter}", "--against=his"),
        ("`soon` is not a step", "--checkpoint", "runs/x@soon"),
    ):
        done = in_process("eval", recipe, "--local", *arguments)
        assert (done.returncode, said in done.stderr.replace("\n", " ")) == (2, True), done.stderr


def test_categories_of_prompts_are_shown_as_they_are_and_never_obeyed():
    result = evaluation_of(prompt=["x"], category=["a[/b]\x1b[31m"], size=[1.5])
    console = Console(file=io.StringIO(), width=300, force_terminal=True, color_system=None)
    for table in comparisons({"base": {"heldout": result}}):
        console.print(table)
    assert r"size/a[/b]\x1b[31m" in console.file.getvalue()
    assert "\x1b" not in console.file.getvalue()
