"""A real local Ray that several runs attach to, and a tiny recipe."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray
import yaml

from system.launch.environment import LOOPBACK
from tests.helpers.paths import ROOT

RUN_TIMEOUT_S = 600

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
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, _node_ip_address=LOOPBACK)
    yield
    ray.shutdown()


@pytest.fixture
def recipe(sd3_folder, tmp_path) -> Path:
    """A recipe of four tiny steps; the run folder is beside it."""
    return tiny_recipe(sd3_folder, tmp_path)


def tiny_recipe(model: Path, folder: Path) -> Path:
    prompts = folder / "prompts.txt"
    prompts.write_text("".join(f"prompt number {i}\n" for i in range(12)))
    path = folder / "tiny.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "steps": 4,
                "output": str(folder / "runs"),
                "policy": {
                    "model": str(model),
                    "height": 16,
                    "width": 16,
                    "num_steps": 4,
                    "guidance": 1.0,
                    "max_sequence_length": 1,
                    "dtype": "fp32",
                    "device": "cpu",
                    "lora": {"rank": 4, "alpha": 8},
                },
                "plan": {"name": "trunk", "seeds": 2, "explorations": 3},
                "learner": {"lr": 1e-2, "num_cpus": 0.2, "ema": {"every": 1}},
                "rollout": {"workers": 2, "num_cpus": 0.2, "micro_batch": 8, "decode_batch": 8},
                "scorers": [{"name": "size", "scorer": "jpeg_size", "num_cpus": 0.1}],
                "data": {"train": str(prompts), "heldout": str(prompts), "prompts_per_step": 3},
                "eval": {"every": 2, "prompts": 6, "batch": 4, "grid": 2},
                "checkpoint": {"every": 2},
            }
        )
    )
    return path


def environment(address: str | None = None) -> dict[str, str]:
    """Of a process that attaches to the Ray at `address` (a Ray of our own asks for its token), or starts its own."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("RAY_ADDRESS")}
    attach = {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "token"} if address else {}
    return env | attach | {"PYTHONPATH": str(ROOT)}


Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def tempflow(tmp_path) -> Cli:
    """Run the command line in an empty folder; with `address`, on that Ray."""

    def run(*arguments: str | Path, address: str | None = None) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "system", *map(str, arguments)]
        return subprocess.run(
            command, cwd=tmp_path, env=environment(address), capture_output=True, text=True, timeout=RUN_TIMEOUT_S
        )

    return run
