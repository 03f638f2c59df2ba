"""Where recipes and layers are found, and what is said where there is none."""

import re

import pytest

from actors.methods import method_names
from services.base.errors import UserError
from system.recipe.find import FOLDERS, SHIPPED, find_layer, find_recipe, recipe_names
from system.recipe.load import load_config
from tests.helpers.paths import ROOT


def test_an_unknown_recipe_is_named_with_the_nearest(tmp_path):
    with pytest.raises(UserError, match="no recipe `shape`; did you mean `shapes`"):
        find_recipe("shape")
    with pytest.raises(UserError, match=r"no recipe `zzz`; give a YAML file, .* or a name that `tempflow recipes`"):
        find_recipe("zzz")
    with pytest.raises(UserError, match="no recipe at"):
        find_recipe(str(tmp_path / "missing.yaml"))


@pytest.mark.parametrize(
    ("kind", "name", "says"),
    [
        ("model", "sd3_medium", "no model layer `sd3_medium`; did you mean `sd35_medium`?"),
        ("method", "mixgrp", "no method `mixgrp`; did you mean `mixgrpo`?"),
        ("rewards", "hps", "no rewards layer `hps`; did you mean `hpsv3`?"),
        (
            "hardware",
            "dgx",
            "no hardware layer `dgx`; there are 16gpu, 16gpu_shared, 1gpu, 2cpu, 8gpu, 8gpu_shared, 8gpu_split",
        ),
        ("hardware", "mine.yaml", "no hardware layer at `mine.yaml`; correct the path"),
    ],
)
def test_an_unknown_layer_is_named_with_the_nearest(kind, name, says):
    with pytest.raises(UserError) as refused:
        find_layer(kind, name)
    assert says in str(refused.value)


def test_a_path_is_relative_to_the_file_that_names_it_or_to_the_working_directory(tmp_path, monkeypatch):
    here, beside = tmp_path / "here", tmp_path / "beside"
    for folder in (here, beside):
        folder.mkdir()
    (here / "one.yaml").touch()
    monkeypatch.chdir(here)
    assert find_layer("hardware", "one.yaml", beside).resolve() == here / "one.yaml"
    assert find_recipe("one.yaml", beside).resolve() == here / "one.yaml"
    (beside / "one.yaml").touch()
    assert find_layer("hardware", "one.yaml", beside) == find_recipe("one.yaml", beside) == beside / "one.yaml"


def test_what_comes_with_tempflow_is_found_whatever_the_working_directory_holds(tmp_path, monkeypatch):
    """A package `configs`, and a run folder by the name of a recipe, which `tempflow train` would continue."""
    before = {name: load_config(name) for name in ("shapes_awm", "sd35_geneval_8gpu")}
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "__init__.py").write_text("raise SystemExit")
    for name in ("shapes", "sd35_pickscore"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("steps: 1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert {name: load_config(name) for name in before} == before
    assert "shapes" in recipe_names()


def test_every_file_that_comes_with_tempflow_is_a_recipe_or_a_layer():
    folders = {SHIPPED, *(SHIPPED / folder for folder in FOLDERS.values())}
    assert {path.parent for path in SHIPPED.rglob("*.yaml")} == folders
    assert not [path for path in SHIPPED.rglob("*") if path.is_file() and path.suffix != ".yaml"]


def test_the_documentation_lists_every_layer():
    rows = re.findall(r"^\| `(\w+)` \| `[\w/]+/`: (.*) \|$", (ROOT / "docs" / "recipes.md").read_text(), re.MULTILINE)
    listed = {kind: set(re.findall(r"`(\w+)`", names)) for kind, names in rows}
    found = {kind: {path.stem for path in (SHIPPED / folder).glob("*.yaml")} for kind, folder in FOLDERS.items()}
    assert listed == found | {"method": set(method_names())}
