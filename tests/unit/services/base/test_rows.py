"""Files of rows of every kind: what is read, and what is refused in one sentence."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from services.base.errors import UserError
from services.base.rows import read_rows

ODD = "a\u2028b\u0085c\x0cd\x0be\x1cf\u2029g"
"""Characters at which `str.splitlines` splits and a file of lines does not."""


def rows_of(path):
    rows = read_rows(str(path), "prompt file", "prompt")
    return [rows[i] for i in range(len(rows))]


@pytest.mark.parametrize("name", ["p.txt", "p", "P.TXT"])
def test_text_is_a_row_a_line(tmp_path, name):
    (tmp_path / name).write_bytes(f"\ufeff one \r\n\n{ODD}\rlast".encode())
    assert rows_of(tmp_path / name) == [{"prompt": "one"}, {"prompt": ODD}, {"prompt": "last"}]


GENEVAL = {
    "prompt": "a dog left of a cup",
    "tag": "position",
    "include": [{"class": "cup", "count": 1}, {"class": "dog", "count": 1, "position": ["left of", 0]}],
}


@pytest.mark.parametrize("ensure_ascii", [True, False])
def test_json_keeps_what_is_nested_and_columns_that_some_rows_have(tmp_path, ensure_ascii):
    rows = [GENEVAL, {"prompt": ODD}, {"prompt": "😀", "tag": 3, "more": [1, "x", None]}]
    lines = [json.dumps(row, ensure_ascii=ensure_ascii) for row in rows]
    (tmp_path / "p.jsonl").write_text("\ufeff" + "\n\n".join(lines) + "\n", "utf-8")
    (tmp_path / "p.JSON").write_text(json.dumps(rows, ensure_ascii=ensure_ascii, indent=1), "utf-8")
    for name in ("p.jsonl", "p.JSON"):
        assert rows_of(tmp_path / name) == rows
        read = read_rows(str(tmp_path / name), "prompt file", "prompt")
        assert read.columns == ["prompt", "tag", "include", "more"]
        assert list(read.categories("tag")) == ["position", None, "3"]
        assert list(read.texts("prompt")) == ["a dog left of a cup", ODD, "😀"]


@pytest.mark.parametrize(("suffix", "tab"), [(".csv", ","), (".TSV", "\t")])
def test_tables_are_read_by_column(tmp_path, suffix, tab):
    text = f'\ufeffid,prompt,tag\r\n1,"a, b\nsays ""hi""",x\r\n\r\n2,{ODD},\r\n'
    (tmp_path / f"p{suffix}").write_bytes(text.replace(",", tab).encode())
    assert rows_of(tmp_path / f"p{suffix}") == [
        {"id": "1", "prompt": f'a{tab} b\nsays "hi"', "tag": "x"},
        {"id": "2", "prompt": ODD, "tag": None},
    ]


def test_parquet_of_any_text_type_and_its_other_columns(tmp_path):
    texts = ["a", "b", ODD]
    for kind in (pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())):
        table = pa.table({"n": [1, None, 3], "prompt": pa.array(texts).cast(kind), "deep": [[{"x": 1}], [], None]})
        pq.write_table(table, tmp_path / "P.PARQUET", row_group_size=2)
        read = read_rows(str(tmp_path / "P.PARQUET"), "prompt file", "prompt")
        assert (len(read), list(read.texts("prompt"))) == (3, texts)
        assert list(read.categories("n")) == ["1", None, "3"]
        assert rows_of(tmp_path / "P.PARQUET")[0] == {"n": 1, "prompt": "a", "deep": [{"x": 1}]}


def test_categories_are_texts_numbers_and_truth_values(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"a": true}\n{"a": 1.5}\n{"a": null}\n{"a": "x"}\n{"b": [1]}\n')
    pq.write_table(pa.table({"a": [True, False], "b": [b"x", b"y"]}), tmp_path / "p.parquet")
    lines, table = (read_rows(str(tmp_path / f"p.{kind}"), "file", "prompt") for kind in ("jsonl", "parquet"))
    assert list(lines.categories("a")) == ["true", "1.5", None, "x", None]
    assert list(table.categories("a")) == ["true", "false"]
    with pytest.raises(UserError, match=r"line 5: `b` is \[1\]; make it text or a number"):
        lines.categories("b")
    with pytest.raises(UserError, match="column `b` contains binary"):
        table.categories("b")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", "one\ncafé".encode("latin-1"), r"is not UTF-8 \(line 2\); save it as UTF-8"),
        ("p.csv", "prompt\none".encode("utf-16"), "is UTF-16; save it as UTF-8"),
        ("p.txt", "one".encode("utf-16-le"), "contains NUL characters"),
        ("p.jsonl", b'{"prompt": "a"}\n{oops', "line 2: not JSON: Expecting property name"),
        ("p.jsonl", b'{"prompt": "a"}\n["a"]', r'line 2: a row must be an object with columns, not \["a"\]'),
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt": 5}', "line 2: `prompt` is 5, not text"),
        ("p.jsonl", b'{"prompt": "a"}\n{"tag": "x"}', "line 2: `prompt` is missing"),
        (
            "p.jsonl",
            b'{"prompt": "\\ud83d\\ude00"}\n{"prompt": "\\uD83D"}',
            "line 2: a text contains half of a surrogate",
        ),
        ("p.jsonl", b'{"prompt": "a", "n": ' + b"9" * 5000 + b"}", "line 1: not JSON that can be read"),
        ("p.jsonl", b"[" * 100_000, "line 1: not JSON that can be read"),
        ("p.json", b'[{"prompt": "a"}, "b"]', 'row 2: a row must be an object with columns, not "b"'),
        ("p.json", b'[{"prompt": "\\ude00"}]', "row 1: a text contains half of a surrogate"),
        ("p.json", b'{"prompt": "a"}', "must be an array of objects"),
        ("p.json", b'{"prompt": "a"}\n{"prompt": "b"}', "not JSON: Extra data"),
        ("p.csv", b"prompt,tag\na,b\nc,d,e", "line 3: 3 cells below a header of 2 columns"),
        ("p.csv", b"prompt,prompt\na,b", "two columns `prompt`"),
        ("p.csv", b"prompt,tag\na,b\n,d", "line 3: `prompt` is missing"),
        ("p.tsv", b'prompt\ttag\n"JAZZ" on a sign\tb', "line 2: .*expected after.*or contains a line break, as in CSV"),
        ("p.parquet", b"nonsense", "not a readable Parquet file"),
        ("p.xlsx", b"", r"has the suffix \.xlsx, which is not supported; use one of \.parquet, \.jsonl, .*\.txt"),
        ("p.txt.gz", b"", r"has the suffix \.gz"),
    ],
)
def test_a_bad_file_is_one_sentence_that_names_it(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as refused:
        read_rows(str(tmp_path / name), "prompt file", "prompt").texts("prompt")
    assert str(tmp_path / name) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_bad_columns_of_parquet_are_named(tmp_path):
    def refuses(table, message):
        pq.write_table(table, tmp_path / "p.parquet")
        with pytest.raises(UserError, match=message):
            read_rows(str(tmp_path / "p.parquet"), "prompt file", "prompt").texts("prompt")

    refuses(pa.table({"prompt": [1, 2]}), "column `prompt` contains int64; convert it to text")
    refuses(pa.table({"prompt": ["a", None]}), "row 2: `prompt` is missing")
    refuses(pa.table([["a"], ["b"]], names=["prompt", "prompt"]), "two columns `prompt`")
    latin = pa.Array.from_buffers(pa.string(), 1, pa.array([b"caf\xe9"]).buffers())
    refuses(pa.table({"prompt": latin}), "not a readable Parquet file .*UTF8")


def test_a_file_that_is_missing_or_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"no prompt file at `.*gone\.txt`"):
        read_rows(str(tmp_path / "gone.txt"), "prompt file", "prompt")
    with pytest.raises(UserError, match="no prompt file at"):
        read_rows(str(tmp_path), "prompt file", "prompt")
