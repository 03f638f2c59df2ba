"""A server that greets as a cluster's head does: with the first frame of HTTP/2."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Thread

SETTINGS = b"\0\0\0\4\0\0\0\0\0"


@contextmanager
def grpc_server() -> Iterator[str]:
    """Its address, until the context ends."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        Thread(target=_greet, args=(server,), daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)  # which ends the wait of the thread


def _greet(server: socket.socket) -> None:
    with suppress(OSError):  # the server is closed
        while True:
            connection, _ = server.accept()
            with connection, suppress(OSError):
                connection.sendall(SETTINGS)
                connection.recv(64)
