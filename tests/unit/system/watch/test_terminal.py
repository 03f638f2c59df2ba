"""The run in a terminal."""

from io import StringIO

from rich.console import Console

from system.watch.reader import Reader
from system.watch.terminal import BARS, sparkline, view
from tests.helpers.watched_runs import line, write_config, write_line, write_run


def shown(run, width=100) -> str:
    reader = Reader(run)
    reader.poll()
    console = Console(width=width, record=True, file=StringIO())
    console.print(view(reader, 1003.0, width))
    return console.export_text()


def test_a_sparkline_has_the_lowest_and_the_highest_bar():
    assert sparkline([0.0, 1.0], 10) == BARS[0] + BARS[-1]
    assert sparkline(list(range(8)), 8) == BARS
    assert sparkline([0, 0, 8, 8], 2) == BARS[0] + BARS[-1]
    assert sparkline([3.0] * 5, 3) == BARS[3] * 3
    assert sparkline([], 5) == ""


def test_the_screen_has_the_state_the_curves_and_the_warnings(tmp_path):
    run = write_run(tmp_path / "mine", steps=2)
    said = shown(run)
    assert "mine  running" in said
    assert "step 2 of 3" in said
    assert any(row.split() == ["Training", "reward", "size", "▁█", "0.2"] for row in said.splitlines())
    write_line(run, line(3, warnings=["the \x1b[31mwatcher [bold]falls"]))
    said = shown(run)
    assert "step 3  the \\x1b[31mwatcher [bold]falls" in said
    assert "finished" in said


def test_an_empty_run_is_waiting(tmp_path):
    write_config(tmp_path / "mine")
    assert "waiting for the first line" in shown(tmp_path / "mine")
