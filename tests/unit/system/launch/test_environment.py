"""What keeps a Ray from starting or from being attached to, its token, and how a signal stops a driver; without Ray."""

import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread, Timer

import pytest

from services.base.errors import UserError
from system.launch import environment as launch_env
from system.launch.environment import check_start, make_token, running_ray
from system.loop.stop import StopFlag, Stopped
from system.run.outputs import check_output, make_output_folder
from tests.helpers.grpc_like import grpc_server
from tests.helpers.paths import ROOT


@pytest.fixture(autouse=True)
def home(monkeypatch):
    """An empty home and a temporary folder with a short path, and no word of Ray in the environment."""
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        monkeypatch.setenv("HOME", f"{short}/home")
        monkeypatch.setenv("RAY_TMPDIR", short)
        yield Path(short, "home")


@pytest.fixture
def listening():
    """A server whose first words are those of gRPC."""
    with grpc_server() as address:
        yield address


def test_something_else_than_ray_is_refused(monkeypatch):
    """Such as the dashboard without its `http://`: Ray would wait for it for minutes."""
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{server.server_port}")
        with pytest.raises(UserError, match="no Ray answers at"):
            check_start()
        server.shutdown()


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("http://127.0.0.1:8265", "the address of a dashboard, which only `ray job` uses; unset it"),
        ("127.0.0.1:1", "no Ray answers at 127.0.0.1:1: correct RAY_ADDRESS"),
        ("ray://127.0.0.1:1", "no Ray answers at ray://127.0.0.1:1"),
        ("nonsense", "no Ray answers at nonsense"),
        ("host:99999999", "no Ray answers at host:99999999"),
    ],
)
def test_an_address_of_no_cluster_is_refused_at_once(monkeypatch, address, says):
    monkeypatch.setenv("RAY_ADDRESS", address)
    began = time.monotonic()
    with pytest.raises(UserError, match=says):
        check_start()
    assert time.monotonic() - began < 10


def test_one_that_answers_is_attached_to(monkeypatch, listening):
    monkeypatch.setenv("RAY_ADDRESS", listening)
    check_start()
    assert running_ray() == listening


@pytest.mark.parametrize(("owner", "attached"), [("ours", True), ("root", True), ("another", False)])
def test_the_note_of_another_user_is_not_believed(monkeypatch, listening, home, caplog, owner, attached):
    note = home.parent / "ray" / "ray_current_cluster"
    note.parent.mkdir()
    note.write_text(listening)
    me, them = {"ours": (7, 7), "root": (7, 0), "another": (7, 8)}[owner]
    monkeypatch.setattr(os, "getuid", lambda: me)
    real = Path.stat

    def owned(path, **options):
        found = list(real(path, **options))
        found[stat.ST_UID] = them
        return os.stat_result(found)

    monkeypatch.setattr(Path, "stat", owned)
    assert running_ray() == (listening if attached else None)
    assert ("belongs to another user and is ignored" in caplog.text) != attached


def test_a_temporary_folder_too_long_for_sockets_is_refused(monkeypatch, home):
    longest = launch_env.MAX_SOCKET_BYTES - len(f"/{launch_env.LONGEST_SOCKET}")
    fits = str(home.parent) + "/" + "x" * (longest - len(str(home.parent)) - 1)
    monkeypatch.setenv("RAY_TMPDIR", fits)
    check_start()
    monkeypatch.setenv("RAY_TMPDIR", fits + "yz")
    with pytest.raises(UserError, match=r"is 2 bytes too long for the paths of Ray's sockets; set RAY_TMPDIR"):
        check_start()


def test_a_temporary_folder_that_cannot_be_written_is_refused(monkeypatch, home):
    (home.parent / "file").write_text("")
    monkeypatch.setenv("RAY_TMPDIR", str(home.parent / "file" / "below"))
    with pytest.raises(UserError, match=r"Ray keeps its files in .*file/below, which cannot be written to"):
        check_start()


@pytest.mark.parametrize("umask", [0o000, 0o022])
def test_the_token_of_a_ray_that_starts_here_is_its_owners_alone(home, umask):
    before = os.umask(umask)
    try:
        check_start()
        make_token()
    finally:
        os.umask(before)
    file = home / ".ray" / "auth_token"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) & 0o077 == 0
    token = file.read_text()
    assert len(token) == 64
    make_token()
    assert file.read_text() == token
    assert [path.name for path in file.parent.iterdir()] == ["auth_token"]
    check_start()
    for mode in (0o640, 0o604):
        file.chmod(mode)
        with pytest.raises(
            UserError, match=r"others can open .*, and with Ray's token in it they can run code as you; delete the file"
        ):
            check_start()


def test_no_token_file_is_made_where_the_environment_has_the_token_or_wants_none(monkeypatch, home):
    for name, value in (("RAY_AUTH_TOKEN", "x"), ("RAY_AUTH_MODE", "disabled")):
        monkeypatch.setenv(name, value)
        check_start()
        make_token()
        monkeypatch.delenv(name)
    assert not home.exists()


def test_a_home_that_cannot_keep_the_token_is_refused(monkeypatch, home):
    home.write_text("no folder")
    with pytest.raises(
        UserError, match=r"Ray's token cannot be stored in .*auth_token; set HOME to a folder that you can write to"
    ):
        check_start()


def test_outputs_are_refused_before_the_work(tmp_path):
    check_output(tmp_path / "new" / "deep" / "x.parquet", "--output")
    assert (tmp_path / "new" / "deep").is_dir()
    (tmp_path / "file").write_text("")
    for path, says in ((tmp_path / "new", "is a folder"), (tmp_path / "file" / "x", "cannot be made")):
        with pytest.raises(UserError, match=f"--output: .*{says}"):
            check_output(path, "--output")
    with pytest.raises(UserError, match=r"--output: the folder `.*file` cannot be made \(File exists\)"):
        make_output_folder(tmp_path / "file", "--output")


DRIVER = """
import sys, time
from system.loop.stop import StopFlag, Stopped
from tests.helpers.paths import ROOT
with StopFlag() as stop:
    try:
        if sys.argv[1] == "start":
            with stop.starting():
                print("ready", flush=True)
                time.sleep(60)
        if sys.argv[1] == "ray":
            import ctypes, threading
            libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
            libc.pthread_mutex_lock(mutex)
            def release():
                sys.stdin.readline()
                libc.pthread_mutex_unlock(mutex)
            threading.Thread(target=release).start()
            with stop.deferred("Ray"):
                print("ready", flush=True)
                libc.pthread_mutex_lock(mutex)  # no signal interrupts this
                print("started", flush=True)
        print("ready", flush=True)
        for _ in range(600):
            time.sleep(0.1)
            stop.check()
    except Stopped as stopped:
        print("stopped by", stopped, flush=True)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(
    ("phase", "says"),
    [("start", "stopping what has been started"), ("run", "stopping after the current piece of work")],
)
def test_each_signal_stops_a_driver_and_it_says_what_is_stopped(how, phase, says):
    with driver(phase) as process:
        process.send_signal(how)
        out, said = process.communicate(timeout=30)
    assert out == f"stopped by {how.name}\n"
    assert said.splitlines() == [said.strip()]
    assert said.startswith(f"{how.name}: {says}")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_ray_starts_is_answered_at_once_and_stops_the_driver_when_ray_has_started(how):
    with driver("ray") as process:
        unanswered = Timer(30, process.kill)
        unanswered.start()
        process.send_signal(how)
        said = process.stderr.readline()
        unanswered.cancel()
        out, more = process.communicate("Ray is there\n", timeout=30)
    assert said.startswith(f"{how.name}: Ray is starting and cannot be interrupted; stopping as soon as it has started")
    assert (out, more) == (f"started\nstopped by {how.name}\n", "")


def test_ray_is_not_started_after_a_signal():
    with StopFlag() as stop:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(Stopped, match="SIGINT"):
            stop.deferred("Ray").__enter__()


def test_a_ray_that_fails_to_start_after_a_signal_is_a_stop_and_no_error():
    def start(stop: StopFlag, *signals: int) -> None:
        with stop.deferred("Ray"):
            for number in signals:
                signal.raise_signal(number)
            raise RuntimeError("the node timed out during startup")

    with StopFlag() as stop, pytest.raises(RuntimeError, match="timed out"):
        start(stop)
    with StopFlag() as stop, pytest.raises(Stopped, match="SIGINT"):
        start(stop, signal.SIGINT)


@pytest.mark.parametrize("phase", ["run", "ray"])
def test_a_second_signal_interrupts_and_is_a_stop(phase):
    def run() -> None:
        with StopFlag() as stop, stop.deferred("Ray") if phase == "ray" else nullcontext():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("the second signal interrupted nothing")

    with pytest.raises(Stopped, match="SIGINT"):
        run()


def test_nohup_still_ignores_a_terminal_that_is_closed():
    with driver("run", lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)) as process:
        process.send_signal(signal.SIGHUP)
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=30)[0] == "stopped by SIGTERM\n"


def _as_in_a_terminal() -> None:
    """The tests themselves may run under nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def driver(phase: str, before=_as_in_a_terminal) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, phase],
        **dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE),
        **{"cwd": ROOT, "text": True, "preexec_fn": before},
    )
    assert process.stdout.readline() == "ready\n"
    return process
