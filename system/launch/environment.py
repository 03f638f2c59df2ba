"""Decides, before Ray is imported, which Ray cluster a driver uses, and whether it can start or attach to it."""

import logging
import os
import secrets
import socket
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from services.base.errors import UserError

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
ALIVE_TIMEOUT_S = 2.0
HTTP2_SETTINGS = b"\4"
"""The type of the first frame that each side of HTTP/2 sends (RFC 9113, section 3.4). gRPC uses HTTP/2."""
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0" + HTTP2_SETTINGS + b"\0" * 5
LONGEST_SOCKET = "ray/session_YYYY-MM-DD_HH-MM-SS_ffffff_4194304/sockets/plasma_store.1"
"""The path that Ray (2.60) appends to the temporary folder, with the largest process id of Linux."""
MAX_SOCKET_BYTES = 107
"""The longest path of a socket on Linux."""


def running_ray() -> str | None:
    """The address of the cluster to attach to: RAY_ADDRESS, or the cluster that `ray start` started on this machine.

    The Ray of another `tempflow` run is not used, because it ends with that run. Everyone may write to the temporary
    folder, so the address that Ray noted there is used only if this user or root wrote it.
    """
    named = os.environ.get("RAY_ADDRESS")
    if named and named not in ("auto", "local"):
        return named
    note = temp_folder() / "ray" / "ray_current_cluster"
    if named == "local" or not note.is_file():
        return None
    if note.stat().st_uid not in (os.getuid(), 0):
        log.warning("%s belongs to another user and is ignored; set RAY_ADDRESS to attach to that cluster", note)
        return None
    address = note.read_text().strip()
    return address if answers(address) else None


def temp_folder() -> Path:
    """The temporary folder, in which Ray keeps its files and the address of the running cluster."""
    return Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())


def answers(address: str) -> bool:
    """Whether something listens at `host:port`."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), ALIVE_TIMEOUT_S).close()
    except (OSError, ValueError, OverflowError):
        return False
    return True


def is_ray(address: str) -> bool:
    """Whether a gRPC server listens at `host:port`, as on the head of a cluster.

    Ray does not check this: at another address, such as the dashboard's, it would wait for minutes.
    """
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), ALIVE_TIMEOUT_S) as connection:
            if os.environ.get("RAY_USE_TLS", "0") != "0":
                return True
            connection.settimeout(ALIVE_TIMEOUT_S)
            connection.sendall(HTTP2_PREFACE)
            return connection.recv(9)[3:4] == HTTP2_SETTINGS
    except (OSError, ValueError, OverflowError):
        return False


def check_start() -> None:
    """Check that Ray can start here, or that the cluster to attach to answers.

    Raises:
        UserError: Ray cannot start or be reached. The message names the variable or file, and the fix.
    """
    address = running_ray()
    if address is not None:
        check_address(address)
    else:
        check_temp_folder()
        check_token()


def check_address(address: str) -> None:
    """Refuse an address at which no cluster answers. Ray itself would try to connect for minutes.

    Raises:
        UserError: the address is a dashboard's, or no Ray answers there.
    """
    scheme, _, where = address.rpartition("://")
    if scheme not in ("", "ray"):
        raise UserError(
            f"RAY_ADDRESS is {address}, the address of a dashboard, which only `ray job` uses; unset it to start Ray "
            "here, or set it to host:port of a cluster (port 6379 of its head)"
        )
    if not is_ray(where):
        raise UserError(
            f"no Ray answers at {address}: correct RAY_ADDRESS (host:port of the cluster's head), or unset it to "
            "start Ray here"
        )


def check_temp_folder() -> None:
    """Refuse a temporary folder in which Ray cannot keep its sockets.

    Raises:
        UserError: the folder cannot be written to, or its path is too long.
    """
    folder = temp_folder().absolute()
    if not _writable(folder):
        raise UserError(
            f"Ray keeps its files in {folder}, which cannot be written to; set RAY_TMPDIR to another folder"
        )
    spare = MAX_SOCKET_BYTES - len(os.fsencode(folder / LONGEST_SOCKET))
    if spare < 0:
        raise UserError(
            f"the temporary folder {folder} is {-spare} bytes too long for the paths of Ray's sockets; set RAY_TMPDIR "
            "to a shorter one, such as /tmp"
        )


def token_file() -> Path:
    """The file in which Ray looks for its token.

    Raises:
        UserError: the file would be in the home folder, but there is no home folder.
    """
    try:
        return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    except RuntimeError as error:
        raise UserError("there is no home folder for Ray's token; set HOME, or RAY_AUTH_TOKEN_PATH") from error


def needs_token() -> bool:
    """Whether a Ray cluster that starts here reads its token from a file."""
    return not os.environ.get("RAY_AUTH_TOKEN") and os.environ.get("RAY_AUTH_MODE", "token") == "token"


def check_token() -> None:
    """Check that Ray's token is private and can be stored. Whoever has the token can run any code as its owner.

    Raises:
        UserError: others can read the file of the token, or the file cannot be written.
    """
    if not needs_token():
        return
    file = token_file()
    if file.exists():
        status = file.stat()
        if status.st_uid == os.getuid() and status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise UserError(
                f"others can open {file}, and with Ray's token in it they can run code as you; delete the file, and a "
                "new one is made that only you can open"
            )
    elif not _writable(file.parent):
        raise UserError(
            f"Ray's token cannot be stored in {file}; set HOME to a folder that you can write to, or "
            "RAY_AUTH_TOKEN_PATH to a file with a token"
        )


def make_token() -> None:
    """Make the token of a Ray that starts here, if there is none. Ray (2.60) itself makes a file that all can read."""
    if not needs_token() or (file := token_file()).exists():
        return
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=file.parent, prefix=".token-") as aside:  # only its owner can open it
        aside.write(secrets.token_hex(32))
        aside.flush()
        with suppress(FileExistsError):  # another process was first
            os.link(aside.name, file)


def token_hint() -> str:
    """A note to print after a dashboard's address: where to find Ray's token, which the dashboard asks for."""
    return f" (asks for the token in {token_file()})" if needs_token() else ""


def _writable(folder: Path) -> bool:
    """Whether a folder can be written to. If it does not exist, whether it can be made."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def listen_on_loopback() -> None:
    """Make a Ray that starts here listen on 127.0.0.1 only, or make a running one that does so reachable.

    Call this before Ray is imported. Ray replaces 127.0.0.1 with the node's own address unless clusters of several
    nodes are switched off. The variable switches them off. Its name comes from Windows and macOS, where they are off by
    default.
    """
    address = running_ray()
    if address is None or address.rpartition(":")[0] in {LOOPBACK, "localhost"}:
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")


def wait_for_busy_replicas() -> None:
    """Give a replica a second to say how many requests it has. Call this before Serve is imported.

    By default Serve asks another time, with a warning, after 0.1 s. A replica whose scorer holds Python's lock answers
    later than that.
    """
    os.environ.setdefault("RAY_SERVE_QUEUE_LENGTH_RESPONSE_DEADLINE_S", "1")
