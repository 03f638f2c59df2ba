"""Prompt files of every kind, and the order of a run."""

import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from services.errors import UserError
from system.prompts import read_prompts, rows_of_step


def test_every_kind_of_file(tmp_path):
    pq.write_table(pa.table({"prompt": ["a", "b"], "category": ["x", None]}), tmp_path / "p.parquet")
    (tmp_path / "p.txt").write_text("a\n\n  b \n")
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": p, "tag": "t"}) + "\n" for p in "ab"))
    for suffix in ("parquet", "txt", "jsonl"):
        prompts = read_prompts(str(tmp_path / f"p.{suffix}"))
        assert [prompts[i] for i in range(len(prompts))] == ["a", "b"]
    assert read_prompts(str(tmp_path / "p.parquet")).category(0) == "x"
    assert read_prompts(str(tmp_path / "p.txt")).category(0) is None
    assert read_prompts(str(tmp_path / "p.jsonl"), category_column="tag").category(1) == "t"


def test_bad_files_are_named(tmp_path):
    def bad(name, content, message):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(UserError, match=message):
            read_prompts(str(path))

    bad("a.parquet", b"nonsense", "not a readable Parquet")
    bad("a.jsonl", b'{"prompt": "a"}\n{oops\n', "line 2: not JSON")
    bad("b.jsonl", b'{"text": "a"}\n', "no column `prompt`.*text")
    bad("a.txt", b"\n\n", "is empty")
    pq.write_table(pa.table({"prompt": [1, 2]}), tmp_path / "n.parquet")
    with pytest.raises(UserError, match="holds int64"):
        read_prompts(str(tmp_path / "n.parquet"))
    pq.write_table(pa.table({"prompt": ["a", None]}), tmp_path / "h.parquet")
    with pytest.raises(UserError, match="empty rows"):
        read_prompts(str(tmp_path / "h.parquet"))
    with pytest.raises(UserError, match="no prompt file"):
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
from system.prompts import read_prompts, rows_of_step
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
