"""Finds a free port."""

import random
import socket
from contextlib import suppress

PORTS = range(20_000, 32_768)
"""Linux takes the ports of outgoing connections from 32,768 on, other systems from 49,152 on, and Ray those of its
workers from 10,002 to 19,999."""


def free_port() -> int:
    """A port of loopback on which nobody listens.

    A port that the system chooses may be taken by a connection or by a process of Ray before its user listens there.
    This one is chosen by neither.

    Raises:
        OSError: none of the ports that were tried is free.
    """
    for port in random.SystemRandom().sample(PORTS, 100):
        with socket.socket() as sock, suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port
    raise OSError("no free port was found")
