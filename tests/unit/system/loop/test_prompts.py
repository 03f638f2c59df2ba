"""Prompt files of every kind, and the order of a run."""

import datetime
import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from services.base.errors import UserError
from system.loop.prompts import check_categories, read_prompts, rows_of_step
from system.recipe.load import load_config


def test_prompts_have_a_text_a_category_and_the_rest_of_their_row(tmp_path):
    rows = [{"prompt": "a", "need": [{"count": 2}]}, {"prompt": "b", "tag": 7}]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows, pa.schema(
        [("prompt", pa.string()), ("need", pa.list_(pa.struct([("count", pa.int64())]))), ("tag", pa.int32())]
    )), tmp_path / "p.parquet")  # fmt: skip
    for kind in ("jsonl", "parquet"):
        prompts = read_prompts(str(tmp_path / f"p.{kind}"), category_column="tag")
        assert [prompts[i] for i in range(len(prompts))] == ["a", "b"]
        assert [prompts.category(i) for i in range(2)] == [None, "7"]
        assert prompts.row(0)["need"] == [{"count": 2}]
        assert prompts.row(1)["tag"] == 7
        assert "prompt" not in prompts.row(1)


def test_text_has_no_categories(tmp_path):
    (tmp_path / "p.txt").write_text("a\n\n  b \n")
    prompts = read_prompts(str(tmp_path / "p.txt"), prompt_column="text")
    assert [prompts[i] for i in range(len(prompts))] == ["a", "b"]
    assert (prompts.category(1), prompts.row(1)) == (None, {})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "a"}\n', "no column `prompt`; set data.prompt_column to one of .*text"),
        ("a.tsv", "Prompt\ta\nx\ty", "no column `prompt`.*Prompt"),
        ("a.txt", "\n\n", "is empty"),
        ("a.csv", "prompt,category\n", "is empty"),
    ],
)
def test_a_file_without_prompts_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        read_prompts(str(tmp_path / name))


def test_a_missing_file_is_named():
    with pytest.raises(UserError, match=r"no prompt file at `gone\.parquet`"):
        read_prompts("gone.parquet")


def test_order_is_a_pure_function_that_visits_each_prompt_once_an_epoch():
    epoch = [row for step in range(5) for row in rows_of_step(11, 2, step, seed=3)]
    assert len(set(epoch)) == 10
    assert rows_of_step(11, 2, 7, 3) == rows_of_step(11, 2, 7, 3)
    assert epoch[:2] != rows_of_step(11, 2, 5, 3)
    assert epoch != [row for step in range(5) for row in rows_of_step(11, 2, step, seed=4)]
    with pytest.raises(UserError, match="only 3 prompts"):
        rows_of_step(3, 4, 0, 0)


MILLIONS = """
import resource, sys, time
from system.loop.prompts import check_categories, read_prompts, rows_of_step
from system.recipe.load import load_config
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
prompts = read_prompts(sys.argv[1])
assert len(prompts) == 10_000_000
for step in range(200):
    for row in rows_of_step(len(prompts), 48, step, 0):
        assert prompts[row] == f"a photo of the thing with number {row}"
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_ten_million_prompts_take_bounded_memory(tmp_path):
    """Peak memory grows by the order of an epoch, its making, and the pages that were touched, not by the file."""
    path = tmp_path / "millions.parquet"
    with pq.ParquetWriter(path, pa.schema([("prompt", pa.string()), ("other", pa.int64())])) as writer:
        for start in range(0, 10_000_000, 500_000):
            rows = range(start, start + 500_000)
            texts = [f"a photo of the thing with number {row}" for row in rows]
            writer.write_table(pa.table({"prompt": texts, "other": list(rows)}))
    done = subprocess.run([sys.executable, "-c", MILLIONS, path], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 300_000, "kB"


def test_a_row_has_only_what_json_has(tmp_path):
    """Bytes and dates of a Parquet file are left out, and NaN is None, also in JSON."""
    table = pa.table(
        {
            "prompt": ["a"],
            "n": [float("nan")],
            "when": pa.array([datetime.date(2026, 1, 1)]),
            "image": [b"bytes"],
            "boxes": pa.array([[{"x": 1.5, "raw": b"x"}]]),
            "words": pa.array([["b", None]]),
            "kind": pa.array(["k"]).dictionary_encode(),
        }
    )
    pq.write_table(table, tmp_path / "p.parquet")
    assert read_prompts(str(tmp_path / "p.parquet")).row(0) == {"n": None, "words": ["b", None], "kind": "k"}
    (tmp_path / "p.jsonl").write_text('{"prompt": "a", "n": NaN, "boxes": [{"x": Infinity}]}\n')
    assert read_prompts(str(tmp_path / "p.jsonl")).row(0) == {"n": None, "boxes": [{"x": None}]}


def test_a_row_that_is_too_deep_is_named(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b", "deep": [[[[[[[[1]]]]]]]]}\n')
    with pytest.raises(UserError, match="the prompt in line 2: its row has more than 8 levels"):
        read_prompts(str(tmp_path / "p.jsonl")).row(1)


@pytest.mark.parametrize(
    ("rows", "overrides", "said"),
    [
        ([{"kind": "x"}], ["scorers.0.category_weights={x: 2}"], "no column `category`; set data.category_column"),
        (
            [{"category": "x"}],
            ["scorers.0.category_weights={y: 2}"],
            "category `y`, which .* does not have; it has `x`",
        ),
        ([{"category": "x"}], ["scorers.0.category_weights={x: 0}"], "the category `x`, for which no scorer"),
        (
            [{"category": "x"}, {}],
            ["scorers.0.weight=0", "scorers.0.category_weights={x: 1}"],
            "prompts without a category, for which no scorer",
        ),
    ],
)
def test_categories_without_a_reward_and_rewards_without_a_category_are_refused(tmp_path, rows, overrides, said):
    file = tmp_path / "p.jsonl"
    file.write_text("".join(json.dumps({"prompt": "a"} | row) + "\n" for row in rows))
    with pytest.raises(UserError, match=said):
        check_categories("p", read_prompts(str(file)), load_config("shapes", overrides))


def test_categories_that_all_have_a_reward_pass(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "a", "category": 1}\n{"prompt": "b", "category": "x"}\n')
    overrides = ["scorers.0.weight=0", "scorers.0.category_weights={'1': 1}", "scorers.1.category_weights={x: 1}"]
    check_categories("p", read_prompts(str(tmp_path / "p.jsonl")), load_config("shapes", overrides))
    check_categories("p", read_prompts(str(tmp_path / "p.jsonl"), category_column="none"), load_config("shapes"))
