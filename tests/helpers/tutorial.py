"""A tutorial as a program: its fenced blocks are files and commands, and run in order as a reader would run them.

- A block of Python or YAML whose first line is `# NAME` is that file; with `# NAME, continued` it is appended to it.
- A block of `bash` has commands. Each must succeed. `tempflow` and `python` run in the process of the test, which has
  imported PyTorch already; a shell runs the rest, such as `cat > FILE <<'END'`.
- A block of `text` is what the commands of the block above it printed, or a part of that. Seconds may differ.

A tutorial that runs has no other blocks. An indented block is not a part of the program.
"""

import io
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from tests.helpers.command_line import Cli
from tests.helpers.paths import ROOT

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# ([\w./-]+\.\w+)(, continued)?\n")
COMMAND = re.compile(r"^(?:tempflow|python) .*\n", re.MULTILINE)
REDIRECTED = re.compile(r"(.*?)\s>\s(\S+)")
SECONDS = re.compile(r"\d+\.\d s\b")


def run_tutorial(name: str, folder: Path, tempflow: Cli) -> str:
    """Run a page of docs/tutorials in an empty folder, and return what its commands printed.

    No setting is changed, nothing is downloaded, and no Ray starts.

    Args:
        folder: where the commands run; `tempflow` runs there, too.
        tempflow: the fixture `in_process`.
    """
    printed = [""]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr(sys, "path", [str(folder), *sys.path])
        before = set(sys.modules)
        try:
            for kind, text in BLOCK.findall((ROOT / "docs" / "tutorials" / f"{name}.md").read_text()):
                if kind == "bash":
                    printed.append("".join(_run(command, tempflow) for command in _commands(text)))
                elif kind == "text":
                    assert SECONDS.sub("", text.strip()) in SECONDS.sub("", printed[-1]), printed[-1]
                else:
                    named = FILE.match(text)
                    assert named, f"a block of {kind or 'no kind'} has no `# NAME` in its first line:\n{text}"
                    with Path(named[1]).open("a" if named[2] else "w") as file:
                        file.write(text)
        finally:
            for module in set(sys.modules) - before:
                if str(folder) in str(getattr(sys.modules[module], "__file__", "")):
                    del sys.modules[module]
    return "".join(printed)


def _commands(text: str) -> Iterator[str]:
    """The commands that run in this process, each alone, and between them the text for a shell."""
    end = 0
    for found in COMMAND.finditer(text):
        yield from filter(None, [text[end : found.start()]])
        yield found[0]
        end = found.end()
    yield from filter(None, [text[end:]])


def _run(command: str, tempflow: Cli) -> str:
    """Run one command, and return what it printed on the screen."""
    if not COMMAND.fullmatch(command):
        done = subprocess.run(["bash", "-euc", command], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, f"{command}{done.stderr}"
        return done.stdout
    redirected = REDIRECTED.fullmatch(command.strip())
    program, *words = shlex.split(redirected[1] if redirected else command)
    arguments = [found for word in words for found in (sorted(map(str, Path().glob(word))) if "*" in word else [word])]
    if program == "python":
        with redirect_stdout(io.StringIO()) as out:
            runpy.run_path(arguments[0], run_name="__main__")
        return out.getvalue()
    done = tempflow(*arguments)
    assert done.returncode == 0, f"{command}{done.stdout}{done.stderr}"
    if redirected:
        Path(redirected[2]).write_text(done.stdout)
        return done.stderr
    return done.stdout + done.stderr
