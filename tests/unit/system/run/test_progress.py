"""The progress of a run where there is no terminal."""

import io

from rich.console import Console

from system.run.progress import Progress


def test_each_line_says_how_much_time_is_left_except_where_it_is_unknown_or_over():
    file = io.StringIO()
    with Progress(3, Console(file=file, width=80)) as progress:
        progress.finished({"step": 0, "nfe": 0})
        progress.finished({"step": 1, "nfe": 10, "seconds/step": 40.0})
        progress.finished({"step": 2, "nfe": 20, "seconds/step": 50.0})
        progress.finished({"step": 3, "nfe": 30, "seconds/step": 60.0})
    assert [line.split(" | ")[3:] for line in file.getvalue().splitlines()] == [
        [],
        ["about 1 min 20 s left"],
        ["about 45 s left"],
        [],
    ]
