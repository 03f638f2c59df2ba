"""Two rollouts and two updates of each model in one process that asks for deterministic algorithms.

python -m tests.gpu.determinism DEVICE prints, as JSON, the digests of both rollouts and the checksums of both learners.
It is a process of its own because the settings must be made before CUDA starts.
"""

import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from actors.policy.settings import PolicySettings
from services.base.devices import prepare_torch
from tests.helpers.families import FAMILIES
from tests.helpers.gpu_work import family_settings, miniature_settings, policy_of, task_of, update_of

LONG = {"height": 128, "width": 128}
"""1,024 image tokens of a tiny model: attention kernels share the work on a row among blocks only beyond some hundred
tokens, and only then does the order of their sums vary. A CPU would take minutes for it."""
SHORT_TABLE = "StableDiffusion3"
"""The family whose tiny model has positions for 16 pixels only."""


def models(folder: Path, device: str) -> Iterator[tuple[str, PolicySettings]]:
    """The settings of each model by its name: every family's tiny one and the miniature, in the dtypes of a run."""
    yield "miniature fp32", miniature_settings(device=device)
    for case in FAMILIES:
        size = LONG if device == "cuda" and str(case) != SHORT_TABLE else {}
        yield f"{case} bf16", family_settings(case, case.build(folder / str(case)), device=device, dtype="bf16", **size)


def report(settings: PolicySettings) -> dict[str, list[str]]:
    """What both rollouts and both updates gave, and the weights before."""
    (decisions, images), again = task_of(settings), task_of(settings)
    rollouts = [
        hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()
        for arrays in (
            (made.state_NZ, made.action_NKZ, made.log_prob_NK, shown) for made, shown in ((decisions, images), again)
        )
    ]
    updates = [update_of(settings, decisions)[0].export().checksum for _ in range(2)]
    return {"rollouts": rollouts, "updates": updates, "before": [policy_of(settings).export(0).checksum]}


if __name__ == "__main__":
    prepare_torch(threads=1, num_gpus=int(sys.argv[1] == "cuda"), deterministic=True)
    with tempfile.TemporaryDirectory() as folder:
        found = {name: report(settings) for name, settings in models(Path(folder), sys.argv[1])}
    print(json.dumps(found))
