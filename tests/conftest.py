"""Fixtures that more than one test file uses."""

from pathlib import Path

import pytest
import torch

from tests.families import Case
from tests.tiny import build_sd3

torch.set_num_threads(1)


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
