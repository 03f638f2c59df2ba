"""Fixtures that more than one test file uses."""

from pathlib import Path

import pytest
import torch

from tests.tiny import build_sd3

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def sd3_folder(tmp_path_factory) -> Path:
    return build_sd3(tmp_path_factory.mktemp("sd3") / "model")
