"""All parts, one after the other, each in a process of its own; then gpu.json, gpu.md and gpu.html. No Torch.

What is done stays: a part that has passed is not run again, unless that is asked for. One that failed is.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from services.base.errors import UserError
from services.base.plain import plain
from services.base.storage import write_atomically
from system.bench.gpu.page import write_page, write_tables
from system.bench.gpu.parts import LONGEST_S, PARTS
from system.bench.gpu.record import Findings, State
from system.run.outputs import make_output_folder

EXIT_TERMINATED = 128 + signal.SIGTERM
SAID_CHARS = 4000
"""The end of what a part's process said, where it left no traceback."""


def run_gpu(folder: Path, names: Sequence[str], again: bool, console: Console) -> int:
    """Run parts and write the results; returns the exit code, 1 if any of these parts failed.

    Args:
        folder: where results go, and where those of an earlier call are found.
        names: of the parts; all if empty.
        again: also run parts that have passed already.

    Raises:
        UserError: no such part, a folder that cannot be written to, or one with results of another card.
    """
    if unknown := [name for name in names if name not in PARTS]:
        raise UserError(f"--part: no `{unknown[0]}`; there are {', '.join(PARTS)}")
    make_output_folder(folder / "parts", "--output")
    chosen = [name for name in PARTS if name in (names or PARTS)]
    failed = []
    for number, name in enumerate(chosen, 1):
        title, path = f"{number}/{len(chosen)} {name}", part_file(folder, name)
        if path.exists() and not again and Findings.load(path).state is State.PASSED:
            console.print(plain(f"{title}: passed before; --again runs it again"))
            continue
        console.print(plain(f"{title}: about {PARTS[name].estimate_s:.0f} s on an H100, by a guess"))
        findings = run_process(name, path)
        _check_one_card(folder, name, findings.device)
        console.print(plain(f"{title}: {findings.state} in {findings.seconds:.0f} s on {findings.device}"))
        _say(findings, console)
        write_results(folder)
        if findings.state is not State.PASSED:
            failed.append(name)
    write_results(folder)
    console.print(plain(f"page         {folder / 'gpu.html'}"), soft_wrap=True)
    if failed:
        console.print(plain(f"failed: {', '.join(failed)}; the page says how, and {folder / 'parts'} holds the logs"))
    return int(bool(failed))


def part_file(folder: Path, name: str) -> Path:
    """Where a part's findings are; the output of its process is beside it, as NAME.log."""
    return folder / "parts" / f"{name}.json"


def run_process(name: str, path: Path, timeout_s: float = LONGEST_S) -> Findings:
    """Run a part in a process of its own, which is killed with all that it started after so many seconds."""
    path.unlink(missing_ok=True)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_TERMINATED))  # the part ends, too, as by Ctrl-C
    started, log = time.monotonic(), path.with_suffix(".log")
    environment = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True", **os.environ}
    with log.open("wb") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "system.bench.gpu.process", name, str(path)],
            stdout=said,
            stderr=subprocess.STDOUT,
            env=environment,
            process_group=0,  # of its own; but not a session, which would outlive a container's command
        )
        try:
            ended = f"the process of the part ended with code {process.wait(timeout_s)}"
        except subprocess.TimeoutExpired:
            ended = f"the part was killed after {timeout_s:g} seconds"
        finally:
            with suppress(ProcessLookupError):  # processes that it started may outlive it
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            signal.signal(signal.SIGTERM, before)
    findings = Findings.load(path) if path.exists() else Findings("unknown", False, "")
    if findings.state is State.RUNNING:  # it could not say itself how it ended
        findings.state, findings.seconds = State.FAILED, round(time.monotonic() - started, 2)
        findings.traceback = f"{ended}; the end of what it said:\n{log.read_text(errors='replace')[-SAID_CHARS:]}"
        findings.save(path)
    return findings


def _check_one_card(folder: Path, name: str, device: str) -> None:
    """Refuse to put results of two devices into one folder.

    Raises:
        UserError: another part has run on another device.
    """
    others = {part: findings.device for part, findings in read_results(folder).items() if part != name}
    for part, other in others.items():
        if other != device and "unknown" not in (other, device):
            part_file(folder, name).unlink()
            raise UserError(
                f"--output: `{folder}` has results of `{other}` ({part}), and this is `{device}`; name another"
            )


def _say(findings: Findings, console: Console) -> None:
    """The checks that failed, what was left out, and how the part ended if not by itself."""
    for check in findings.checks:
        if not check.passed:
            console.print(plain(f"  {check.name}: FAILED: {check.said}"), soft_wrap=True)
    for note in findings.notes:
        console.print(plain(f"  {note}"), soft_wrap=True)
    if findings.traceback:
        lines = findings.traceback.strip().splitlines()
        console.print(plain(f"  {lines[-1 if lines[0].startswith('Traceback') else 0]}"), soft_wrap=True)


def read_results(folder: Path) -> dict[str, Findings]:
    """The findings of the parts that have run, in the order of the parts."""
    return {name: Findings.load(part_file(folder, name)) for name in PARTS if part_file(folder, name).exists()}


def as_json(results: dict[str, Findings]) -> dict[str, Any]:
    """What gpu.json holds: `card` with the fields of `system.capacity.cards.Card`, or null, and `parts` by name."""
    parts = {name: {k: v for k, v in asdict(one).items() if k != "card"} for name, one in results.items()}
    return {"card": results["card"].card if "card" in results else None, "parts": parts}


def write_results(folder: Path) -> None:
    """Write gpu.json, gpu.md and gpu.html from the parts that have run."""
    results = read_results(folder)
    write_atomically(folder / "gpu.json", f"{json.dumps(as_json(results), indent=1)}\n".encode())
    write_tables(results, folder / "gpu.md")
    write_page(results, folder / "gpu.html")
