"""A free port is one on which nobody listens."""

import socket

import pytest

from services.base import ports
from services.base.ports import free_port


def test_a_port_on_which_somebody_listens_is_not_free(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_port()))
        busy = taken.getsockname()[1]
        monkeypatch.setattr(ports, "PORTS", [busy] * 100)
        with pytest.raises(OSError, match="no free port"):
            free_port()
    assert free_port() == busy
