"""What must be in the environment before Ray is imported."""

import os


def listen_on_loopback() -> None:
    """Make a Ray that this process starts bind 127.0.0.1; attaching to a cluster is not affected.

    Ray replaces `_node_ip_address="127.0.0.1"` by the node's own address unless clusters are switched off, which is
    what this variable does (it is named for the systems where that is the default).
    """
    if not os.environ.get("RAY_ADDRESS"):
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "0")
