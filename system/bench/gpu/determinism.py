"""Two processes that ask for deterministic algorithms give the same bits; and what such algorithms cost.

`python -m system.bench.gpu.determinism DEVICE deterministic|usual` prints what one process made, as JSON. It is a
process of its own because the settings must be made before CUDA starts.
"""

import hashlib
import json
import subprocess
import sys
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from actors.policy.arrays import to_arrays
from actors.policy.families.family import Conditioning
from actors.policy.kernels import make_kernel
from actors.policy.policy import Policy
from actors.policy.settings import PolicySettings
from actors.rollout.sampler import Sampler
from actors.trajectory import Decisions
from services.base.devices import prepare_torch
from services.base.errors import first_line
from system.bench.gpu.models import MINIATURE, TINY, settings_of
from system.bench.gpu.record import Record
from system.bench.gpu.work import (
    KERNEL,
    advantages,
    free,
    learner_of,
    plan_of,
    policy_of,
    stir,
    task_of,
    update_of,
)
from system.bench.measure import alternate
from system.bench.models import bench_policy
from system.recipe.load import load_config

PROCESS_TIMEOUT_S = 300
ENDS_BEFORE_S = 5
"""A process ends so much earlier than the part would be ended: else it would stay on the GPU beside the next part."""
LONG = {"height": 128, "width": 128}
"""1,024 image tokens of a tiny model: attention kernels share the work on a row among blocks only beyond some hundred
tokens, and only then does the order of their sums vary. A CPU would take minutes for it."""
TIMED_RECIPE, TIMED_MODEL = "sd35_pickscore", "sd35-medium"
TIMED = {"num_steps": 5}
TIMED_LATENTS, TIMED_DECISIONS, ROUNDS = 8, 2, 3

Failed = str
"""Why a model has no digests, such as an operation without a deterministic algorithm."""
Made = dict[str, dict[str, list[str]] | Failed]
"""By model: the digests of two `rollouts`, two `updates`, and of the weights `before`; or why there are none."""


def measure(record: Record) -> None:
    """Compare the bits of two processes, and their times with those of a process with the usual algorithms."""
    one, usual, two = (
        run_process(record.device, mode, record.left_s - ENDS_BEFORE_S)
        for mode in ("deterministic", "usual", "deterministic")
    )
    for model, wrong in differing(one["made"], two["made"]).items():
        with_usual = usual["made"][model]
        repeats = isinstance(with_usual, Failed) or all(
            len(set(with_usual[what])) == 1 for what in ("rollouts", "updates")
        )
        record.check(
            model,
            not wrong,
            (wrong or "rollouts and weights are equal, within a process and between two")
            + ("" if repeats else "; with the usual algorithms they differ"),
        )
    with record.attempt("what it costs"):
        for said in (one, usual):
            if "error" in said:
                raise RuntimeError(said["error"])
        for what, seconds in one["seconds"].items():
            record.row(
                f"What it costs, measured on {one['timed']}",
                **{"work": what, "usual, s": usual["seconds"][what], "deterministic, s": seconds},
                ratio=seconds / usual["seconds"][what],
            )


def run_process(device: str, mode: str, timeout_s: float = PROCESS_TIMEOUT_S) -> dict[str, Any]:
    """What one process made: `made`, and the `seconds` of its timed work on the model `timed`, or the work's `error`.

    Raises:
        RuntimeError: it failed; holds the end of what it said.
        subprocess.TimeoutExpired: it took too long, and was ended.
    """
    command = [sys.executable, "-m", "system.bench.gpu.determinism", device, mode]
    run = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    sys.stderr.write(run.stderr)
    if run.returncode:
        raise RuntimeError(f"the process with {mode} algorithms failed:\n{run.stderr[-4000:]}")
    return json.loads(run.stdout.splitlines()[-1])


def differing(one: Made, two: Made) -> dict[str, str]:
    """What failed, or differs within one process or between both, in words, by model; empty where all is well."""
    found = {}
    for model, here in one.items():
        there = two[model]
        if isinstance(here, Failed):
            found[model] = here
        elif isinstance(there, Failed):
            found[model] = there
        else:
            wrong = [what for what in ("rollouts", "updates") if len({*here[what], *there[what]}) > 1]
            differ = [f"{' and '.join(wrong)} differ"] if wrong else []
            unlearned = ["nothing was learned"] if here["updates"][0] == here["before"][0] else []
            found[model] = "; ".join([*differ, *unlearned])
    return found


def made(device: str, folder: Path) -> Made:
    """Digests of every family's tiny model and the miniature, in the dtypes of a run."""
    found: Made = {}
    for name, settings in _compared(device, folder):
        try:
            found[name] = digests(settings)
        except RuntimeError as error:
            traceback.print_exc()
            found[name] = first_line(error)
    return found


def _compared(device: str, folder: Path) -> Iterator[tuple[str, PolicySettings]]:
    """Names and settings of the models."""
    yield f"{MINIATURE}, fp32", settings_of(MINIATURE, folder, device=device)
    for model, tiny in TINY.items():
        size = LONG if device == "cuda" and not tiny.fixed_size else {}
        yield f"{model}, bf16", settings_of(model, folder, device=device, dtype="bf16", **size)


def digests(settings: PolicySettings) -> dict[str, list[str]]:
    """SHA-256 of two rollouts and of the weights after two updates, each by a new policy, and of the weights before."""
    (decisions, images), again = task_of(settings), task_of(settings)
    rollouts = [
        hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()
        for arrays in (
            (made.state_NZ, made.mean_NZ, made.log_prob_NK, shown) for made, shown in ((decisions, images), again)
        )
    ]
    updates = [update_of(settings, decisions)[0].export().checksum for _ in range(2)]
    free()
    return {"rollouts": rollouts, "updates": updates, "before": [policy_of(settings).export(0).checksum]}


def timed_policy(device: str) -> tuple[str, Policy, Conditioning]:
    """What is timed: a model of full size on a GPU, else the miniature."""
    if device == "cpu":
        settings, full_size, name = load_config("shapes").policy, None, f"the {MINIATURE}"
    else:
        settings, full_size, name = load_config(TIMED_RECIPE).policy, TIMED_MODEL, f"{TIMED_MODEL} with random weights"
    policy, conditioning = bench_policy(settings.model_copy(update={"device": device, **TIMED}), full_size)
    stir(policy, scale=0.01)
    return name, policy, conditioning


def seconds(policy: Policy, conditioning: Conditioning) -> dict[str, float]:
    """Best times of a rollout and of an update."""
    plan, kernel = plan_of(policy.settings), make_kernel(KERNEL, policy.sigmas)
    sampler = Sampler(policy.family, policy.sigmas, kernel, TIMED_LATENTS)
    learner = learner_of(policy, TIMED_DECISIONS)

    def rollout() -> Decisions:
        return sampler(plan, [(0, 0, 0, 0)], [0], conditioning).decisions

    decisions = replace(rollout(), conditioning=to_arrays(conditioning))
    scored = [(decisions, 1e-9 * advantages(decisions))]  # the weights hardly move
    return alternate({"a rollout": rollout, "an update": lambda: learner.update(scored)}, ROUNDS, policy.device)


def main(device: str, mode: str) -> None:
    threads = torch.get_num_threads() if device == "cuda" else 1
    prepare_torch(threads, num_gpus=int(device == "cuda"), deterministic=mode == "deterministic")
    with TemporaryDirectory() as folder:
        found: dict[str, Any] = {"made": made(device, Path(folder))}
    try:
        found["timed"], policy, conditioning = timed_policy(device)
        found["seconds"] = seconds(policy, conditioning)
    except RuntimeError as error:
        traceback.print_exc()
        found["error"] = first_line(error)
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
