"""Which Ray a driver belongs to, decided before Ray is imported."""

import os
import socket
import tempfile
from pathlib import Path

LOOPBACK = "127.0.0.1"
ALIVE_TIMEOUT_S = 2.0


def running_ray() -> str | None:
    """The cluster to attach to: RAY_ADDRESS, or the one that `ray start` left running on this machine.

    A Ray that another `tempflow` started for itself is not attached to: it ends with that run.
    """
    named = os.environ.get("RAY_ADDRESS")
    if named and named != "auto":
        return named
    note = Path(os.environ.get("RAY_TMPDIR", tempfile.gettempdir())) / "ray" / "ray_current_cluster"
    address = note.read_text().strip() if note.is_file() else ""
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        return None
    try:
        socket.create_connection((host, int(port)), ALIVE_TIMEOUT_S).close()
    except OSError:
        return None
    return address


def listen_on_loopback() -> None:
    """Make a Ray that this process starts bind 127.0.0.1, and one that does so reachable; call before importing Ray.

    Ray replaces the address 127.0.0.1 by the node's own unless clusters are switched off, which is what this variable
    does (it is named for the systems where that is the default).
    """
    address = running_ray()
    if address is None or address.rpartition(":")[0] in {LOOPBACK, "localhost"}:
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
