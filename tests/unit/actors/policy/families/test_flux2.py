"""FLUX.2: [dev] loads without what its processor needs for images, and a distilled klein takes no guidance."""

import json
import shutil

import pytest
import torch

from actors.policy.policy import Policy
from services.base.errors import UserError
from tests.helpers.families import FAMILIES
from tests.helpers.tiny import tiny_settings

DEV, KLEIN = (case for case in FAMILIES if str(case).startswith("Flux2"))


def changed_index(folder, made, **changes):
    """A copy of a model whose model_index.json has other entries."""
    shutil.copytree(folder, made)
    index = json.loads((made / "model_index.json").read_text())
    (made / "model_index.json").write_text(json.dumps(index | changes))
    return made


def test_dev_loads_the_tokenizer_of_its_processor_alone(tiny_folder, tmp_path):
    """The published model names transformers' PixtralProcessor, which needs torchvision."""
    published = changed_index(tiny_folder(DEV), tmp_path / "dev", tokenizer=["transformers", "PixtralProcessor"])
    encoded = [
        Policy(tiny_settings(folder, **DEV.settings), seed=0).family.encode(["a red cat"])["prompt"]
        for folder in (tiny_folder(DEV), published)
    ]
    assert torch.equal(*encoded)


def test_a_distilled_klein_refuses_guidance(tiny_folder, tmp_path):
    folder = changed_index(tiny_folder(KLEIN), tmp_path / "klein", is_distilled=True)
    Policy(tiny_settings(folder, guidance=1.0, **KLEIN.settings), seed=0)
    with pytest.raises(UserError, match=r"distilled and takes none; set policy\.guidance=1"):
        Policy(tiny_settings(folder, guidance=4.0, **KLEIN.settings), seed=0)
