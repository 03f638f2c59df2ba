"""metrics.jsonl: torn lines are left out and missing steps named; nothing that may be read is dropped."""

import pytest

from system.run.metrics_file import MetricsFile, missing_steps


@pytest.fixture
def metrics(tmp_path) -> MetricsFile:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    for step in range(5):
        file.append({"step": step, "loss": float("nan")})
    return file


def steps(metrics: MetricsFile) -> list[int]:
    return [line["step"] for line in metrics.read()]


@pytest.mark.parametrize(
    "torn",
    [
        b'{"step": 2, "lo',
        b"\0" * 30,
        b"not json",
        b"[2]",
        b'{"step": "2"}',
        b'{"step": true}',
        b'{"loss": 1}',
        b'{"a": "\xff"}',
    ],
    ids=repr,
)
@pytest.mark.parametrize("place", [0, 2, 4])
def test_a_torn_line_is_left_out_wherever_it_is(metrics, torn, place):
    lines = metrics.path.read_bytes().splitlines()
    lines[place] = torn
    metrics.path.write_bytes(b"\n".join(lines))
    assert steps(metrics) == [step for step in range(5) if step != place]
    metrics.append({"step": 5})


def test_nothing_is_there_before_anything_is_recorded(tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    assert metrics.read() == []
    metrics.forget_after(-1)
    assert not metrics.path.exists()


def test_later_steps_and_a_torn_end_are_dropped_and_a_torn_line_before_them_stays(metrics):
    lines = metrics.path.read_bytes().splitlines(keepends=True)
    lines[1] = b'{"step": 1, \xff\n'
    metrics.path.write_bytes(b"".join(lines) + b'{"st')
    metrics.forget_after(2)
    assert metrics.path.read_bytes() == b"".join(lines[:3])
    metrics.append({"step": 3})
    assert steps(metrics) == [0, 2, 3]


def test_a_file_without_anything_to_drop_is_not_written_again(metrics):
    before = metrics.path.stat().st_ino
    metrics.forget_after(4)
    assert metrics.path.stat().st_ino == before


def test_a_whole_line_whose_end_of_line_was_cut_off_counts_and_the_next_is_a_line_of_its_own(metrics):
    metrics.path.write_bytes(metrics.path.read_bytes().rstrip(b"\n"))
    metrics.forget_after(4)
    metrics.append({"step": 5})
    assert steps(metrics) == [0, 1, 2, 3, 4, 5]


def test_the_last_line_gets_more_keys_and_holes_are_null(metrics):
    assert metrics.amend({"eval": 0.5})["step"] == 4
    assert metrics.read()[-1] == {"step": 4, "loss": None, "eval": 0.5}
    assert steps(metrics) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("recorded", "missing"),
    [
        ([], "0–9"),
        (range(12), None),
        ([0, 2, 3, 4, 5, 6, 7, 8], "1, 9"),
        ([0, 1, 3, 5, 9], "2, 4, 6–8"),
        ([3], "0–2, 4–9"),
    ],
)
def test_missing_steps_are_named_in_ranges(recorded, missing):
    assert missing_steps([{"step": step} for step in recorded], 9) == missing
