"""The processes of a Ray that starts here ignore Ctrl-C."""

import signal
import subprocess
from pathlib import Path

from system.launch.cluster import children_that_ignore_interrupts


def ignores_interrupts() -> bool:
    """Whether a process that is started as Ray starts its own ignores SIGINT."""
    with subprocess.Popen(["sleep", "60"], preexec_fn=lambda: None) as process:
        status = Path(f"/proc/{process.pid}/status").read_text()
        process.kill()
    ignored = int(status.partition("SigIgn:")[2].split()[0], 16)
    return bool(ignored >> (signal.SIGINT - 1) & 1)


def test_processes_that_start_with_ray_ignore_ctrl_c_and_later_ones_do_not():
    with children_that_ignore_interrupts():
        assert ignores_interrupts()
    assert not ignores_interrupts()
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
