"""A tutorial as a program: its fenced blocks are files and commands, and run in order as a reader would run them.

- A block of Python or YAML whose first line is `# NAME` is that file; with `# NAME, continued` it is appended to it.
- A block of `bash` runs in a shell that stops at the first command that fails.
- A block of `text` is what a command prints. It must be a part of what the block of commands above it printed, seconds
  aside.

Other blocks do not exist in a tutorial that runs; an indented block is not a part of the program.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.helpers.paths import ROOT

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# ([\w./-]+\.\w+)(, continued)?\n")
TIMEOUT_S = 600
VOLATILE = re.compile(r"\d+\.\d s\b")


def run_tutorial(name: str, folder: Path) -> str:
    """Run a page of docs/tutorials in an empty folder, and return what its commands printed.

    `tempflow` is this tree's. Nothing is downloaded. No setting is changed.
    """
    commands = folder.parent / f"{folder.name}-commands"
    commands.mkdir()
    tempflow = commands / "tempflow"
    tempflow.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m system "$@"\n')
    tempflow.chmod(0o755)
    path = os.pathsep.join([str(commands), str(Path(sys.executable).parent), os.environ["PATH"]])
    variables = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    printed, last = [], ""
    for kind, text in BLOCK.findall((ROOT / "docs" / "tutorials" / f"{name}.md").read_text()):
        if kind == "bash":
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", text],
                cwd=folder, env=variables, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
            )  # fmt: skip
            assert done.returncode == 0, f"{text}{done.stdout}{done.stderr}"
            last = done.stdout + done.stderr
            printed.append(last)
        elif kind == "text":
            assert VOLATILE.sub("", text.strip()) in VOLATILE.sub("", last), last
        else:
            named = FILE.match(text)
            assert named, f"a block of {kind or 'no kind'} has no `# NAME` in its first line:\n{text}"
            with (folder / named[1]).open("a" if named[2] else "w") as file:
                file.write(text)
    return "".join(printed)
