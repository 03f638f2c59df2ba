"""The command line, run in a process of its own or, for what starts no Ray, in the process of the tests."""

import io
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path

import pytest
import torch

from system.commands.main import main
from tests.helpers.paths import ROOT

RUN_TIMEOUT_S = 600
SET_FOR_GOOD = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_SERVE_QUEUE_LENGTH_RESPONSE_DEADLINE_S": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
"""Variables that `main` sets for good."""


def environment(address: str | None = None) -> dict[str, str]:
    """The environment of a process that attaches to the Ray at `address`, or starts its own.

    A Ray of ours asks for its token.
    """
    env = {key: value for key, value in os.environ.items() if not key.startswith("RAY_ADDRESS")}
    attach = {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "token"} if address else {}
    return env | attach | {"PYTHONPATH": str(ROOT)}


Cli = Callable[..., subprocess.CompletedProcess[str]]


def run_cli(
    *arguments: str | Path, folder: Path, address: str | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own and a folder; with `address`, on that Ray.

    Args:
        env: further variables of its environment.
    """
    command = [sys.executable, "-m", "system", *map(str, arguments)]
    variables = environment(address) | dict(env or {})
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=RUN_TIMEOUT_S)


@pytest.fixture
def tempflow(tmp_path) -> Cli:
    """`run_cli` in an empty folder."""
    return partial(run_cli, folder=tmp_path)


@pytest.fixture
def in_process(tmp_path) -> Cli:
    """As `tempflow`, for what starts no Ray: in this process, which has imported PyTorch already.

    The number of CPU threads stays as it was.
    """

    def run(*arguments: str | Path, address: str | None = None) -> subprocess.CompletedProcess[str]:
        command, handlers = ["tempflow", *map(str, arguments)], list(logging.getLogger().handlers)
        threads = torch.get_num_threads()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as out:
            for key, value in environment(address).items():
                patch.setenv(key, value)
            if address is None:
                patch.delenv("RAY_ADDRESS", raising=False)
            for name, value in SET_FOR_GOOD.items():
                patch.setenv(name, value)
            patch.setattr(sys, "argv", command)
            patch.setattr(sys, "path", list(sys.path))
            patch.chdir(tmp_path)
            patch.setattr("ray.init", lambda *_, **__: pytest.fail("Ray was started"))
            with redirect_stderr(io.StringIO()) as err:
                try:
                    main()
                    code = 0
                except SystemExit as ended:
                    code = ended.code or 0
                finally:
                    logging.getLogger().handlers[:] = handlers
                    torch.set_num_threads(threads)
        return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())

    return run
