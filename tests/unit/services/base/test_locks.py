import subprocess
import sys

import pytest

from services.base import locks
from services.base.errors import UserError
from services.base.locks import locked

HOLD = """
import sys, time
from pathlib import Path
from services.base.locks import locked
with locked(Path(sys.argv[1]), "it"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "lock"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate(timeout=20)


def test_another_process_is_kept_out(tmp_path, holder, monkeypatch):
    monkeypatch.setattr(locks, "WAIT_S", 0)
    with pytest.raises(UserError, match="the run `a` is in use"), locked(tmp_path / "lock", "the run `a`"):
        pass


def test_a_killed_holder_lets_go(tmp_path, holder):
    holder.kill()
    with locked(tmp_path / "lock", "it"):
        pass
    with locked(tmp_path / "lock", "it"):
        assert (tmp_path / "lock").read_text() == ""


def test_a_file_system_without_locks_keeps_nobody_out(tmp_path, monkeypatch, caplog):
    def unsupported(descriptor: int, how: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(locks.fcntl, "flock", unsupported)
    with locked(tmp_path / "lock", "it"):
        assert "Operation not supported" in caplog.text
