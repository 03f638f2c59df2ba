"""What a recipe names: prompts, models and scorers' files, by the key that names them."""

import hashlib
from pathlib import Path

import pytest

from services.base.errors import UserError
from system.recipe.load import parse_config
from system.recipe.model import RunConfig
from system.run.inputs import changed_inputs, read_inputs
from tests.helpers.recipes import MINIMAL


def config(folder: Path) -> RunConfig:
    """Each key names a file that holds the key."""
    named = {"train": "data.train", "heldout": "data.heldout", "model": "policy.model", "adapter": "policy.adapter"}
    for file, key in {**named, "metadata": "scorers.size.metadata"}.items():
        (folder / file).write_text(key)
    options = {"metadata": str(folder / "metadata"), "device": "cpu", "batch": 4, "model": "owner/not-in-the-cache"}
    changes = {
        "policy": {"model": str(folder / "model"), "adapter": str(folder / "adapter")},
        "scorers": [{"name": "size", "scorer": "jpeg_size", "options": options}],
        "data": {"train": str(folder / "train"), "heldout": str(folder / "heldout")},
    }
    return parse_config(RunConfig, MINIMAL | {"name": "mine"} | changes, "test")


def test_each_file_is_found_under_the_key_that_names_it_and_other_texts_are_none(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    found = read_inputs(config(tmp_path))
    keys = {"data.train", "data.heldout", "policy.model", "policy.adapter", "scorers.size.metadata"}
    assert found == {key: hashlib.sha256(key.encode()).hexdigest() for key in keys}


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    settings = config(tmp_path)
    (tmp_path / "model").unlink()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"policy.model: `.*model` cannot be read .*weights"):
        read_inputs(settings)


def test_only_what_is_known_before_and_now_can_have_changed():
    assert changed_inputs({"a": "1", "b": "1", "gone": "1"}, {"a": "1", "b": "2", "new": "2"}) == ["b"]
