"""Text from outside on the terminal: shown as it is, never obeyed."""

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from services.base.plain import plain, printable
from services.http.images import encode_image
from services.scoring.settings import ScorerSettings
from system.commands.score import run_score
from system.run.progress import Progress

HOSTILE = "a[/b] [red]x\x1b[31m\x07\u202e\udc80\n"
SHOWN = r"a[/b] [red]x\x1b[31m\x07\u202e\udc80\n"


def on_terminal(what) -> str:
    console = Console(file=io.StringIO(), width=300, force_terminal=True, color_system=None)
    console.print(what)
    return console.file.getvalue()


def test_nothing_in_a_text_is_obeyed_and_all_of_it_is_shown():
    assert printable(HOSTILE) == SHOWN
    assert printable("é 日本 – fine") == "é 日本 – fine"
    assert on_terminal(plain(HOSTILE)) == SHOWN + "\n"
    assert on_terminal(plain(Path("runs/[bold]"))) == "runs/[bold]\n"


def test_paths_of_scored_images_are_shown_as_they_are(tmp_path):
    path = tmp_path / "a[b] \x1b[31m.png"
    path.write_bytes(encode_image(np.zeros((8, 8, 3), np.uint8)))
    shown = on_terminal(run_score([path], ["x"], [ScorerSettings(name="size", scorer="jpeg_size")]))
    assert r"a[b] \x1b[31m.png" in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_shows_names_as_they_are(terminal):
    console = Console(file=io.StringIO(), width=300, force_terminal=terminal, color_system=None)
    with Progress(1, console) as progress:
        progress.finished({"step": 1, "nfe": 1, "eval/a[b]": 0.5})
    assert "a[b] 0.500" in console.file.getvalue()
