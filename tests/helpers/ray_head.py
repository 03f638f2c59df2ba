"""A real local Ray: one in a process of its own, to which several runs attach, and one that the tests drive."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from system.launch.environment import LOOPBACK
from tests.helpers.command_line import environment
from tests.helpers.paths import ROOT

HEAD = """
import sys
from system.launch.environment import listen_on_loopback
listen_on_loopback()
import ray
context = ray.init(address="local", num_cpus=4, include_dashboard=True, dashboard_host="127.0.0.1", dashboard_port=0)
print(context.address_info["gcs_address"], context.dashboard_url, context.address_info["session_dir"], flush=True)
sys.stdin.read()
ray.shutdown()
"""


@dataclass(frozen=True)
class Head:
    """A Ray in a process of its own."""

    address: str
    dashboard: str
    session: Path
    """Ray's folder of its own."""
    pid: int


@pytest.fixture(scope="session")
def ray_head() -> Iterator[Head]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    head = subprocess.Popen(
        [sys.executable, "-c", HEAD],
        cwd=ROOT,
        env=environment() | {"PATH": path, "RAY_JOB_STOP_WAIT_TIME_S": "120"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    address, dashboard, session = head.stdout.readline().split()
    yield Head(address, dashboard, Path(session), head.pid)
    head.stdin.close()
    head.wait(60)


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """A Ray that this process drives, without a dashboard."""
    import ray  # the tests of a GPU run where it is not installed

    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, _node_ip_address=LOOPBACK)
    yield
    ray.shutdown()
