"""Log files: a JSON object a line, that says when, who and where."""

import io
import json
import logging
import threading
from datetime import UTC, datetime

import pytest
from rich.console import Console
from rich.live import Live

from services.base.logs import LogFile, ScreenHandler, at, log_to, logging_to

log = logging.getLogger("tests.logs")


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_says_when_who_and_where(tmp_path):
    with logging_to(LogFile(tmp_path / "logs" / "a.log", "mine", "driver")):
        with at(step=3), at(task=1):
            log.warning("lost %d of\n%s", 2, {"é": None})
        log.info("outside")
    inside, outside = lines(tmp_path / "logs" / "a.log")
    assert abs((datetime.now(UTC) - datetime.fromisoformat(inside.pop("time"))).total_seconds()) < 60
    assert inside.pop("pid") > 0
    assert inside.pop("host")
    assert inside == {
        "level": "WARNING",
        "logger": "tests.logs",
        "message": "lost 2 of\n{'é': None}",
        "run": "mine",
        "role": "driver",
        "step": 3,
        "task": 1,
    }
    assert "step" not in outside


def test_an_exception_comes_with_its_traceback_in_one_line(tmp_path):
    with logging_to(LogFile(tmp_path / "a.log", "mine", "driver")):
        try:
            [].pop()
        except IndexError:
            log.exception("failed")
    (line,) = lines(tmp_path / "a.log")
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("IndexError: pop from empty list")


def test_the_exception_that_ends_it_all_is_in_the_file(tmp_path, capsys):
    with (
        pytest.raises(RuntimeError),
        logging_to(LogFile(tmp_path / "a.log", "mine", "driver")),
        at(step=4),
    ):
        raise RuntimeError("out of memory\nand more")
    (line,) = lines(tmp_path / "a.log")
    assert (line["level"], line["message"]) == ("CRITICAL", "ended by RuntimeError: out of memory")
    assert line["exception"].endswith("RuntimeError: out of memory\nand more")
    assert capsys.readouterr().err == ""


def test_a_threads_place_is_its_own(tmp_path):
    def work() -> None:
        with at(task=7):
            log.info("in the thread")

    with logging_to(LogFile(tmp_path / "a.log", "mine", "driver")), at(step=1):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    (line,) = lines(tmp_path / "a.log")
    assert line["task"] == 7
    assert "step" not in line


def test_a_log_file_brings_its_fields(tmp_path):
    handler = log_to(LogFile(tmp_path / "a.log", "mine", "learner", {"rank": 0}))
    log.info("x")
    logging.getLogger().removeHandler(handler)
    handler.close()
    (line,) = lines(tmp_path / "a.log")
    assert (line["run"], line["role"], line["rank"]) == ("mine", "learner", 0)


def test_a_line_that_cannot_be_written_is_said_on_the_screen(tmp_path, capsys):
    (tmp_path / "full.log").symlink_to("/dev/full")
    with logging_to(LogFile(tmp_path / "full.log", "mine", "driver")):
        logging.getLogger("tests").warning("mind the gap")
    said = capsys.readouterr().err
    assert "No space left on device; not logged: mind the gap" in said
    assert "Traceback" not in said


def test_the_screen_shows_warnings_without_escapes(capsys):
    handler = ScreenHandler()
    logging.getLogger().addHandler(handler)
    log.info("nothing new")
    log.warning("lost \x1b[31m%d\nof 3", 2)
    logging.getLogger().removeHandler(handler)
    assert capsys.readouterr() == ("", "WARNING tests.logs: lost \\x1b[31m2\nof 3\n")


def test_a_live_table_stays_below_the_warnings(capsys):
    """Rich erases what is written to the terminal behind its back, so it has to print the warning itself."""
    handler, terminal = ScreenHandler(), Console(file=io.StringIO(), force_terminal=True, color_system=None)
    logging.getLogger().addHandler(handler)
    with Live("the table", console=terminal, auto_refresh=False):
        log.warning("a worker was lost")
    logging.getLogger().removeHandler(handler)
    assert "WARNING tests.logs: a worker was lost\nthe table" in terminal.file.getvalue()
    assert capsys.readouterr() == ("", "")
