"""One part in a process of its own: `python -m system.bench.gpu.process PART FILE`.

It prepares PyTorch before CUDA starts, runs the part, and leaves its findings in FILE. The exit code is 0 whatever the
part found. A part that takes too long ends with the stacks of its threads, whatever it hangs in.
"""

import faulthandler
import sys
from importlib import import_module
from pathlib import Path

from services.base.devices import prepare_torch
from system import __version__
from system.bench.gpu.parts import GRACE_S, PARTS, WITHOUT_GPU
from system.bench.gpu.record import Findings, Record
from system.run.recorded import git_commit


def run_part(name: str, path: Path, device: str) -> Findings:
    """Run a part in this process; returns its findings, which `path` then holds."""
    import torch

    from system.bench.measure import name_of

    commit, dirty, _ = (git_commit() or "").partition("-dirty")
    made_by = " ".join(text for text in (__version__, commit[:12] + dirty) if text)
    findings = Findings(name_of(torch.device(device)), device == "cpu", made_by)
    bound_s = PARTS[name].bound_s * (WITHOUT_GPU if findings.small else 1)
    record = Record(path, findings, device, bound_s)
    faulthandler.dump_traceback_later(bound_s + GRACE_S, exit=True)
    try:
        with record.ending():
            import_module(f"system.bench.gpu.{name}").measure(record)
    finally:
        faulthandler.cancel_dump_traceback_later()
    return findings


if __name__ == "__main__":
    import torch

    DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    THREADS = torch.get_num_threads() if DEVICE == "cuda" else 1  # tiny models do not gain by more
    prepare_torch(THREADS, num_gpus=int(DEVICE == "cuda"), deterministic=False)
    run_part(sys.argv[1], Path(sys.argv[2]), DEVICE)
