"""`tempflow train` as far as it gets without Ray: dry runs, mistakes, and what it says of itself."""

import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from http.server import ThreadingHTTPServer
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from system.commands.main import app
from system.local.roles import LocalRoles
from system.run.progress import Progress
from tests.helpers.command_line import environment
from tests.helpers.recipes import ONE_PROCESS


def test_dry_run_counts_what_a_step_costs_and_starts_nothing(recipe, in_process, tmp_path):
    done = in_process("train", recipe, "--dry-run")
    assert done.returncode == 0, done.stderr
    nfe = 3 * (2 * 3 + 2 * 3 * (3 + 2 + 1))
    images, learning = 3 * 2 * 3 * 3, 3 * 3 * 2 * 3
    assert f"{nfe} NFE of sampling, {images} images, {learning} NFE of learning" in done.stdout
    assert not (tmp_path / "runs").exists()


def test_the_first_line_comes_before_heavy_imports(recipe, tmp_path):
    """PyTorch and Ray take seconds to import. The first line is printed when neither is."""
    code = (
        "import sys\n"
        "from rich.console import Console\n"
        "said = Console.print\n"
        "def first(self, *texts, **how):\n"
        "    said(self, *texts, **how)\n"
        "    heavy = {'torch', 'ray', 'transformers', 'diffusers'} & set(sys.modules)\n"
        "    print(sorted(heavy))\n"
        "    sys.exit(0)\n"
        "Console.print = first\n"
        "from system.commands.main import main\n"
        "main()\n"
    )
    command = [sys.executable, "-c", code, "train", str(recipe)]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120)
    first, heavy = done.stdout.splitlines()
    assert first == "checking     tiny: the recipe, its prompts, this machine"
    assert heavy == "[]"


def test_a_run_says_what_it_loads_and_what_to_do_next(recipe, in_process, tmp_path):
    done = in_process("train", recipe, "--local", "steps=1", "eval.prompts=2", *ONE_PROCESS)
    assert done.returncode == 0, done.stderr
    checking, folder, watch, loading, *_ = done.stdout.splitlines()
    assert (checking[:8], folder[:10]) == ("checking", "run folder")
    assert watch.startswith("watch it     tempflow watch ")
    assert loading.startswith("loading      ")
    assert loading.endswith("; scorers: size")
    (last,) = done.stderr.splitlines()
    run = tmp_path / "runs" / "tiny"
    assert last == (
        f"next         open {run}/report.html; open its page again: tempflow watch {run}; "
        f'make images: tempflow sample {run} --adapter {run}/lora --prompt "…"'
    )
    assert (run / "report.html").is_file()


def test_the_live_page_shows_the_run_from_before_the_models_load_to_its_end(recipe, in_process, monkeypatch):
    """Ask for the page from within the run: as the roles load, and after each step."""
    seen = []

    def look() -> None:
        with urlopen(f"{live_page_of(sys.stdout.getvalue())}api/run", timeout=30) as answer:
            state = json.load(answer)["state"]
        seen.append((state["kind"], state["step"]))

    monkeypatch.setattr(LocalRoles, "__init__", before(LocalRoles.__init__, look))
    monkeypatch.setattr(Progress, "finished", before(Progress.finished, look))
    done = in_process("train", recipe, "--local", "--page", "steps=2", "data.heldout=null", *ONE_PROCESS)
    assert done.returncode == 0, done.stderr
    assert seen == [("waiting", None), ("running", 0), ("running", 1), ("finished", 2)]
    with pytest.raises(URLError, match="refused"):
        urlopen(live_page_of(done.stdout), timeout=30)


def live_page_of(printed: str) -> str:
    """The address that a run has printed."""
    (line,) = (line for line in printed.splitlines() if line.startswith("live page    "))
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/, or tempflow top \S+/runs/tiny", line[13:])
    return line[13:].partition(",")[0]


def before(method: Callable, look: Callable[[], None]) -> Callable:
    """A method that looks first."""

    def call(*arguments, **named):
        look()
        return method(*arguments, **named)

    return call


class Output(io.StringIO):
    """Standard output, which is a terminal or not."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.mark.parametrize(
    ("option", "terminal", "served"),
    [
        ([], True, True),
        ([], False, False),
        (["--page"], False, True),
        (["--no-page"], True, False),
    ],
)
def test_a_page_is_served_on_a_terminal_unless_the_option_says_otherwise(recipe, monkeypatch, option, terminal, served):
    asked = []
    monkeypatch.setattr("system.training.train_run", lambda *arguments: asked.append(arguments[-1]) or 0)
    monkeypatch.setattr(sys, "stdout", Output(terminal))
    app(["train", str(recipe), *option], standalone_mode=False)
    assert asked == [served]


def test_a_run_without_a_port_for_its_page_trains_and_says_how_to_watch_it(recipe, in_process, monkeypatch):
    def refuse(server):
        raise OSError("Address not available")

    monkeypatch.setattr(ThreadingHTTPServer, "server_bind", refuse)
    done = in_process("train", recipe, "--local", "--page", "steps=1", "data.heldout=null", *ONE_PROCESS)
    assert done.returncode == 0, done.stderr
    assert "there is no live page (Address not available)" in done.stderr
    assert "watch it     tempflow watch " in done.stdout
    assert "live page" not in done.stdout
