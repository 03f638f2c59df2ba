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


def test_a_resumed_run_says_after_which_step_it_continues_and_whether_anything_is_left():
    file = io.StringIO()
    with Progress(3, Console(file=file, width=80)) as progress:
        progress.restored(0)
        progress.restored(2)
        progress.finished({"step": 3, "nfe": 30})
        progress.restored(3)
    continues, _, over = file.getvalue().splitlines()
    assert continues == "continues    after step 2 of 3"
    assert over == "continues    after step 3 of 3; nothing is left to train, a larger `steps` trains longer"
