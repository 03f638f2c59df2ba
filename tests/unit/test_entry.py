"""What Python finds under the names of our packages, before any of them is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tempflow_entry import PACKAGES, hidden_package
from tests.helpers.paths import ROOT


def package(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_in_front_of_ours_hides_it_and_one_behind_does_not(tmp_path, name):
    package(tmp_path / name)
    says = f"`{tmp_path / name}` hides the package `{name}` of tempflow; rename it, or take `{tmp_path}` off PYTHONPATH"
    assert hidden_package([str(tmp_path), str(ROOT)]) == says
    assert hidden_package([str(ROOT), str(tmp_path)]) is None


def test_a_module_hides_a_package_and_a_folder_without_code_does_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "services").mkdir()
    assert hidden_package(["", str(ROOT)]) is None
    (tmp_path / "services.py").touch()
    says = f"`{tmp_path}/services.py` hides the package `services` of tempflow; rename it, or start in another folder"
    assert hidden_package(["", str(ROOT)]) == says


def test_an_editable_install_is_found_after_the_path_so_that_any_folder_hides_it(tmp_path):
    assert hidden_package([str(tmp_path)]) is None
    (tmp_path / "actors").mkdir()
    assert hidden_package([str(tmp_path)]).startswith(f"`{tmp_path}/actors` hides the package `actors`")


def test_a_checkout_says_it_too(tmp_path):
    package(tmp_path / "actors")
    done = subprocess.run(
        [sys.executable, "-m", "system", "recipes"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    says = f"`{tmp_path / 'actors'}` hides the package `actors` of tempflow; rename it, or start in another folder"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"tempflow: {says}\n")


EDITABLE = """
import sys
from importlib.machinery import PathFinder

class Editable:
    \"\"\"As that of setuptools: asked after the path.\"\"\"

    @staticmethod
    def find_spec(name, path=None, target=None):
        return PathFinder.find_spec(name, [sys.argv[1]]) if path is None else None

sys.meta_path.insert(sys.meta_path.index(PathFinder) + 1, Editable)
from services.base.paths import resolve_model
from services.scoring.scorer import make_importable
make_importable(sys.argv[2])
import mine
import system.miniature
print(system.miniature.__file__, resolve_model("package:system.miniature/assets/policy"), mine.__file__, sep="\\n")
"""


def test_the_folder_of_a_users_scorer_hides_no_package_of_an_editable_install(tmp_path):
    """A replica of the pool imports `system` after that folder has joined its path."""
    package(tmp_path / "system")
    (tmp_path / "mine.py").touch()
    done = subprocess.run(
        [sys.executable, "-c", EDITABLE, ROOT, tmp_path],
        cwd="/",
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    miniature = ROOT / "system" / "miniature"
    found = [str(miniature / "__init__.py"), str(miniature / "assets" / "policy"), str(tmp_path / "mine.py")]
    assert done.stdout.splitlines() == found, done.stderr
