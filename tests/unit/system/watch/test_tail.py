"""Only new whole lines are read, whatever happens to the file."""

import json

import pytest

from services.base.storage import write_atomically
from system.run.metrics_file import MetricsFile
from system.watch.tail import Tail


@pytest.fixture
def file(tmp_path):
    return tmp_path / "metrics.jsonl"


def test_a_missing_file_is_empty_and_its_lines_are_read_once(file):
    tail = Tail(file)
    assert tail.read() == (False, [])
    file.write_bytes(b"a\nb\n")
    assert tail.read() == (False, [b"a\n", b"b\n"])
    assert tail.read() == (False, [])


def test_a_line_is_read_when_it_is_whole(file):
    tail = Tail(file)
    file.write_bytes(b'{"step": 1}\n{"st')
    assert tail.read() == (False, [b'{"step": 1}\n'])
    file.write_bytes(b'{"step": 1}\n{"step": 2}\n')
    assert tail.read() == (False, [b'{"step": 2}\n'])


def test_only_the_new_bytes_are_read(file, monkeypatch):
    file.write_bytes(b"%09d\n" * 10 % tuple(range(10)))
    tail = Tail(file)
    tail.read()
    with file.open("ab") as end:
        end.write(b"new\n")
    counted = []

    class Counting:
        def __init__(self, inner):
            self.inner = inner

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.inner.close()

        def seek(self, place):
            self.inner.seek(place)

        def read(self):
            counted.append(self.inner.read())
            return counted[-1]

    opened = type(file).open
    monkeypatch.setattr(type(file), "open", lambda path, mode: Counting(opened(path, mode)))
    assert tail.read() == (False, [b"new\n"])
    assert list(map(len, counted)) == [10 + 4]


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_a_run_that_resumes_is_read_from_the_start(file, kept):
    """`forget_after` replaces the file, as a resumed run does."""
    metrics, tail = MetricsFile(file), Tail(file)
    for step in range(4):
        metrics.append({"step": step})
    tail.read()
    metrics.forget_after(kept)
    metrics.append({"step": kept + 1, "again": True})
    again, lines = tail.read()
    assert again
    assert [json.loads(line) for line in lines] == [
        *({"step": s} for s in range(kept + 1)),
        {"step": kept + 1, "again": True},
    ]


def test_a_line_that_gets_more_keys_is_read_again(file):
    metrics, tail = MetricsFile(file), Tail(file)
    metrics.append({"step": 0})
    metrics.append({"step": 1})
    tail.read()
    metrics.amend({"eval/judge": 0.5})
    again, lines = tail.read()
    assert again
    assert json.loads(lines[-1]) == {"step": 1, "eval/judge": 0.5}


def test_a_file_that_vanishes_begins_again(file):
    tail = Tail(file)
    file.write_bytes(b"a\n")
    tail.read()
    file.unlink()
    assert tail.read() == (True, [])
    write_atomically(file, b"a\n")
    assert tail.read() == (False, [b"a\n"])
