"""Fixtures that more than one test file uses."""

import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from _pytest.logging import LogCaptureHandler

from system.bench.gpu.tiny.sd3 import build_sd3
from system.launch.environment import make_token
from tests.helpers.command_line import in_process
from tests.helpers.families import Case
from tests.helpers.ranks import Together, two_ranks
from tests.helpers.ray_head import ray_head
from tests.helpers.recipes import recipe

__all__ = ["in_process", "ray_head", "recipe"]

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _token_of_ray(tmp_path_factory) -> Iterator[None]:
    """The Ray of the tests has a token of its own: one in the home of whoever runs them may be readable by others."""
    with pytest.MonkeyPatch.context() as patch:
        if "RAY_AUTH_TOKEN" not in os.environ:
            patch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path_factory.mktemp("token") / "token"))
            make_token()
        yield


@pytest.fixture(autouse=True)
def _own_import_path(monkeypatch):
    """The folders of a test's recipes are importable in that test alone."""
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.fixture(autouse=True)
def _own_log_handlers() -> Iterator[None]:
    """The handlers that a test's code gives the root logger go with it: they write to a stream that pytest closes."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    for handler in root.handlers[:]:
        if handler not in before and not isinstance(handler, LogCaptureHandler):
            root.removeHandler(handler)
    root.setLevel(level)


@pytest.fixture(scope="session")
def together(tmp_path_factory) -> Iterator[Together]:
    """Calls a function in two processes of one process group."""
    with two_ranks(tmp_path_factory.mktemp("ranks")) as call:
        yield call


@pytest.fixture(scope="session")
def sd3_folder(tmp_path_factory) -> Path:
    return build_sd3(tmp_path_factory.mktemp("sd3") / "model")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """Folder of the tiny pipeline of a family, built once."""
    built: dict[str, Path] = {}

    def folder(case: Case) -> Path:
        if str(case) not in built:
            built[str(case)] = case.build(tmp_path_factory.mktemp(str(case)) / "model")
        return built[str(case)]

    return folder
