"""Which Ray a driver belongs to, and whether it can start or be attached to; decided before Ray is imported."""

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
"""The type of the first frame of either side of HTTP/2, which gRPC speaks (RFC 9113, section 3.4)."""
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0" + HTTP2_SETTINGS + b"\0" * 5
LONGEST_SOCKET = "ray/session_YYYY-MM-DD_HH-MM-SS_ffffff_4194304/sockets/plasma_store.1"
"""What Ray (2.60) appends to the temporary folder, for the largest process id of Linux."""
MAX_SOCKET_BYTES = 107
"""Linux' bound of a socket's path."""


def running_ray() -> str | None:
    """The cluster to attach to: RAY_ADDRESS, or the one that `ray start` left running on this machine.

    A Ray that another `tempflow` started for itself is not attached to: it ends with that run. Neither is one that
    another user has noted in the temporary folder, which everyone may write: root's is.
    """
    named = os.environ.get("RAY_ADDRESS")
    if named and named not in ("auto", "local"):
        return named
    note = temp_folder() / "ray" / "ray_current_cluster"
    if named == "local" or not note.is_file():
        return None
    if note.stat().st_uid not in (os.getuid(), 0):
        log.warning("%s is another user's and is ignored; set RAY_ADDRESS to attach to that cluster", note)
        return None
    address = note.read_text().strip()
    return address if answers(address) else None


def temp_folder() -> Path:
    """The folder below which Ray keeps its files and its note of the running cluster."""
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
    """Whether a gRPC server listens at `host:port`, as a cluster's head does. Ray itself would wait for minutes for
    something else, such as the dashboard, to become one.
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
    """Refuse what would keep Ray from starting here, or from being attached to.

    Raises:
        UserError: one sentence that names the variable or the file, and the fix.
    """
    address = running_ray()
    if address is not None:
        check_address(address)
    else:
        check_temp_folder()
        check_token()


def check_address(address: str) -> None:
    """Refuse an address of no cluster: Ray would look for it for minutes.

    Raises:
        UserError: it is of another kind, or nothing answers there.
    """
    scheme, _, where = address.rpartition("://")
    if scheme not in ("", "ray"):
        raise UserError(
            f"RAY_ADDRESS is {address}, the address of a dashboard, for `ray job`; unset it to start a Ray here, "
            "or set it to host:port of a cluster (port 6379 of its head)"
        )
    if not is_ray(where):
        raise UserError(
            f"no Ray answers at {address}: correct RAY_ADDRESS (host:port of the cluster's head), or unset it to "
            "start a Ray here"
        )


def check_temp_folder() -> None:
    """Refuse a temporary folder in which Ray cannot keep its sockets.

    Raises:
        UserError: it cannot be written to, or its path is too long.
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
        UserError: it would be in a home folder, and there is none.
    """
    try:
        return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    except RuntimeError as error:
        raise UserError("there is no home folder for Ray's token; set HOME, or RAY_AUTH_TOKEN_PATH") from error


def needs_token() -> bool:
    """Whether a Ray that starts here looks for its token in a file."""
    return not os.environ.get("RAY_AUTH_TOKEN") and os.environ.get("RAY_AUTH_MODE", "token") == "token"


def check_token() -> None:
    """Refuse a token that others can read, since with it they can run any code as its owner, or that cannot be kept.

    Raises:
        UserError: names the file.
    """
    if not needs_token():
        return
    file = token_file()
    if file.exists():
        status = file.stat()
        if status.st_uid == os.getuid() and status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise UserError(
                f"others can open Ray's token {file}, with which they can run code as you; delete the file, and a new "
                "one is made that only you can open"
            )
    elif not _writable(file.parent):
        raise UserError(
            f"Ray's token cannot be kept in {file}; set HOME to a folder of yours, or RAY_AUTH_TOKEN_PATH to a file "
            "with a token"
        )


def make_token() -> None:
    """Make the token of a Ray that starts here, if there is none. What Ray itself (2.60) makes, everyone can read."""
    if not needs_token() or (file := token_file()).exists():
        return
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=file.parent, prefix=".token-") as aside:  # only its owner can open it
        aside.write(secrets.token_hex(32))
        aside.flush()
        with suppress(FileExistsError):  # another process was first
            os.link(aside.name, file)


def token_hint() -> str:
    """What to add to a dashboard's address: it asks whoever opens it for Ray's token."""
    return f" (asks for the token in {token_file()})" if needs_token() else ""


def _writable(folder: Path) -> bool:
    """Whether a folder can be written to, or be made."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def listen_on_loopback() -> None:
    """Make a Ray that this process starts bind 127.0.0.1, and one that does so reachable; call before importing Ray.

    Ray replaces the address 127.0.0.1 by the node's own unless clusters are switched off, which is what this variable
    does (it is named for the systems where that is the default).
    """
    address = running_ray()
    if address is None or address.rpartition(":")[0] in {LOOPBACK, "localhost"}:
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
