"""A whole training run on the device, killed with SIGKILL and resumed, has the bits of an undisturbed one.

`tempflow train shapes --local` in processes of their own: rollouts, rewards, updates, checkpoints and run folder are
the real ones.
"""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from system.bench.gpu.record import Record

STEPS, LINES = 4, 2
"""The run is killed when its metrics have so many lines: those of step 0 and of step 1."""
RUN_TIMEOUT_S = 300
SMALL = [
    f"steps={STEPS}",
    "checkpoint.every=1",
    "data.prompts_per_step=2",
    "data.heldout=null",
    "plan.seeds=2",
    "plan.explorations=3",
    "learner.threads=1",
    "deterministic=true",
]


def measure(record: Record) -> None:
    """Train once undisturbed; train again, kill it, resume it; compare."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        started = time.monotonic()
        _finish(_start(folder, "undisturbed", record.device), folder / "undisturbed")
        record.row("Runs", run="undisturbed", steps=STEPS, seconds=time.monotonic() - started)
        started = time.monotonic()
        killed = _start(folder, "killed", record.device)
        _kill_after(killed, folder / "killed", LINES)
        done = steps_of(folder / "killed")[-1]
        _finish(_start(folder, "killed", record.device, "--resume"), folder / "killed")
        record.row("Runs", run=f"killed after step {done} and resumed", steps=STEPS, seconds=time.monotonic() - started)
        wrong = differing(folder / "undisturbed", folder / "killed")
        record.check("the resumed run", not wrong, wrong or "every tensor of its last checkpoint has the same bits")


def differing(one: Path, other: Path) -> str:
    """What differs between two run folders, in words; empty where nothing does."""
    if steps_of(one) != steps_of(other):
        return f"the steps of metrics.jsonl differ: {steps_of(one)} and {steps_of(other)}"
    ours, theirs = (sorted((run / "checkpoints" / f"step_{STEPS:06d}").glob("*.safetensors")) for run in (one, other))
    if not ours or [file.name for file in ours] != [file.name for file in theirs]:
        return f"the checkpoints of step {STEPS} do not hold the same files"
    wrong = [a.name for a, b in zip(ours, theirs, strict=True) if a.read_bytes() != b.read_bytes()]
    return f"{', '.join(wrong)} of step {STEPS} differ" if wrong else ""


def steps_of(run: Path) -> list[int]:
    """The training steps in a run's metrics; a last line that is not whole yet does not count."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line)["step"] for line in lines if line.endswith("\n")]


def _start(folder: Path, name: str, device: str, *more: str) -> subprocess.Popen[bytes]:
    """A run's process, whose output goes to `NAME.log` in the folder."""
    on = [f"policy.device={device}"] + ["rollout.num_gpus=1", "learner.num_gpus=1"] * (device == "cuda")
    command = [sys.executable, "-m", "system", "train", "shapes", "--local", *more]
    with (folder / f"{name}.log").open("ab") as said:
        return subprocess.Popen(
            [*command, f"name={name}", f"output={folder}", *SMALL, *on], stdout=said, stderr=subprocess.STDOUT
        )


def _finish(process: subprocess.Popen[bytes], run: Path) -> None:
    """Wait for its end.

    Raises:
        RuntimeError: it failed.
    """
    if code := process.wait(RUN_TIMEOUT_S):
        raise _error(run, f"ended with code {code}")


def _kill_after(process: subprocess.Popen[bytes], run: Path, steps: int) -> None:
    """SIGKILL once the run has done so many steps.

    Raises:
        RuntimeError: it ended before, or takes too long.
    """
    deadline = time.monotonic() + RUN_TIMEOUT_S
    while len(steps_of(run)) < steps:
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise _error(run, f"did not reach step {steps}")
        time.sleep(0.01)
    process.kill()
    if process.wait() != -signal.SIGKILL:
        raise _error(run, "ended before it was killed")


def _error(run: Path, what: str) -> RuntimeError:
    said = run.with_name(f"{run.name}.log").read_text(errors="replace")
    return RuntimeError(f"the run `{run.name}` {what}:\n{said[-4000:]}")
