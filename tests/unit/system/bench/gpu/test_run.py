"""The runner: what is done stays, what fails is told and does not stop the rest, and no Ray is needed."""

import json
import os
import subprocess
import sys
import time

import psutil
import pytest
from rich.console import Console

from services.base.errors import UserError
from system.bench.gpu import run
from system.bench.gpu.parts import PARTS
from system.bench.gpu.record import Check, Findings, State
from system.bench.gpu.run import run_gpu, run_process
from tests.helpers.paths import ROOT

QUIET = Console(quiet=True)
TEN_MINUTES_S = 600


@pytest.fixture
def parts(monkeypatch):
    """Parts that take no time: their device, which of them fail, and the names of those that have run."""

    class Parts:
        device, failing = "one card", ()

        def __init__(self) -> None:
            self.ran: list[str] = []

        def __call__(self, name, path):
            self.ran.append(name)
            failed = name in self.failing
            checks = [Check("numbers", not failed, "0.2 apart" if failed else "equal")]
            findings = Findings(self.device, False, "0.1", State.FAILED if failed else State.PASSED, 2.0, checks)
            findings.save(path)
            return findings

    parts = Parts()
    monkeypatch.setattr(run, "run_process", parts)
    return parts


def test_the_estimates_and_the_bounds_leave_room_for_ten_minutes():
    assert sum(part.estimate_s for part in PARTS.values()) <= TEN_MINUTES_S - 60
    assert sum(part.bound_s for part in PARTS.values()) <= TEN_MINUTES_S
    assert all(part.estimate_s < part.bound_s for part in PARTS.values())


def test_a_failure_is_told_and_the_other_parts_run(parts, tmp_path, capsys):
    parts.failing = ("parity",)
    assert run_gpu(tmp_path, [], False, Console(file=sys.stdout, width=200)) == 1
    assert parts.ran == list(PARTS)
    assert "numbers: FAILED: 0.2 apart" in capsys.readouterr().out
    found = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert {name: part["state"] for name, part in found.items()} == dict.fromkeys(PARTS, "passed") | {
        "parity": "failed"
    }


def test_a_second_call_runs_what_failed_or_is_missing_and_again_runs_all(parts, tmp_path):
    parts.failing = ("card",)
    assert run_gpu(tmp_path, ["parity", "card"], False, QUIET) == 1
    assert parts.ran == ["card", "parity"]
    parts.ran, parts.failing = [], ()
    assert run_gpu(tmp_path, [], False, QUIET) == 0
    assert parts.ran == [name for name in PARTS if name != "parity"]
    parts.ran = []
    assert run_gpu(tmp_path, ["ratio"], True, QUIET) == 0
    assert parts.ran == ["ratio"]


def test_results_are_written_after_each_part(parts, tmp_path, monkeypatch):
    """A call that is interrupted in its third part keeps two."""

    def interrupted(name, path):
        if name == list(PARTS)[2]:
            raise KeyboardInterrupt
        return parts(name, path)

    monkeypatch.setattr(run, "run_process", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_gpu(tmp_path, [], False, QUIET)
    assert list(json.loads((tmp_path / "gpu.json").read_text())["parts"]) == list(PARTS)[:2]


def test_one_folder_holds_one_card(parts, tmp_path):
    run_gpu(tmp_path, ["card"], False, QUIET)
    parts.device = "another card"
    with pytest.raises(UserError, match=r"has results of `one card` \(card\)"):
        run_gpu(tmp_path, ["parity"], False, QUIET)
    assert not run.part_file(tmp_path, "parity").exists()


def test_what_cannot_be_run_is_named(parts, tmp_path):
    with pytest.raises(UserError, match="no `speed`; there are card, parity"):
        run_gpu(tmp_path, ["speed"], False, QUIET)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--output"):
        run_gpu(tmp_path / "file", [], False, QUIET)
    assert not parts.ran


def test_a_part_that_hangs_or_dies_without_a_word_has_failed(tmp_path):
    hangs = run_process("card", tmp_path / "hangs.json", timeout_s=0.2)
    assert hangs.state is State.FAILED
    assert hangs.traceback.startswith("the part was killed after 0.2 seconds")
    dies = run_process("nowhere", tmp_path / "dies.json", timeout_s=120)
    assert dies.state is State.FAILED
    assert "ended with code 1" in dies.traceback
    assert "KeyError: 'nowhere'" in dies.traceback


def test_the_process_of_a_part_ends_with_a_command_that_is_terminated(tmp_path):
    """Else it would use the card beside the next command."""
    command = [sys.executable, "-m", "system", "bench", "gpu", "--part", "parity", "--output", str(tmp_path)]
    env = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    bench = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.DEVNULL)
    path = tmp_path / "parts" / "parity.json"
    while not path.exists():
        assert bench.poll() is None
        time.sleep(0.05)
    (part,) = psutil.Process(bench.pid).children()
    bench.terminate()
    assert bench.wait(60) == run.EXIT_TERMINATED
    assert not part.is_running()


HANGS = """
import sys, time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from system.bench.gpu import process

def hangs(record):
    record.row("Speed", model="one")
    time.sleep(600)

process.GRACE_S, process.PARTS = 0, {"card": replace(process.PARTS["card"], bound_s=0.1)}
process.import_module = lambda name: SimpleNamespace(measure=hangs)
process.run_part("card", Path(sys.argv[1]), "cpu")
"""


def test_a_part_that_hangs_ends_by_itself_and_says_where(tmp_path):
    command = [sys.executable, "-c", HANGS, str(tmp_path / "card.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "Timeout" in done.stderr
    assert "in hangs" in done.stderr
    found = Findings.load(tmp_path / "card.json")
    assert found.state is State.RUNNING
    assert found.tables[0].rows == [{"model": "one"}]


def test_it_runs_where_ray_is_not_installed_and_shows_itself_on_one_page(tmp_path):
    """Through the command line, with a package in Ray's place that cannot be imported."""
    (tmp_path / "ray.py").write_text("raise ImportError('there is no Ray')")
    env = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "system", "bench", "gpu", "--part", "card", "--json"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["card"]["name"] == found["parts"]["card"]["device"]
    assert found["parts"]["card"]["small"]
    assert "There is no GPU here" in (tmp_path / "bench-gpu" / "gpu.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gpu", "sd35_pickscore"], "has models of its own"),
        (["gpu", "--part", "speed"], "no `speed`"),
        (["pool", "--part", "card"], "only `bench gpu` has parts"),
    ],
)
def test_the_command_refuses_in_one_sentence(in_process, arguments, message):
    done = in_process("bench", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
