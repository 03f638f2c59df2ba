"""The wheel, installed: it finds its recipes, and says what hides its packages."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

SOURCES = ("system", "actors", "services", "configs", "pyproject.toml", "README.md", "LICENSE", "tempflow_entry.py")
TIMEOUT_S = 300

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The interpreter of an environment with the wheel, which finds the libraries of this one after its own."""
    folder = tmp_path_factory.mktemp("wheel")
    source, wheels = folder / "source", folder / "wheels"
    source.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", wheels, source]
    subprocess.run([*pip, *build], check=True, timeout=TIMEOUT_S)
    shutil.rmtree(source)
    environment = folder / "environment"
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    (wheel,) = wheels.glob("*.whl")
    install = ["--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run([*pip, *install], check=True, timeout=TIMEOUT_S)
    ours = Path(sysconfig.get_path("purelib", vars={"base": str(environment)}))
    (ours / "libraries.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return python


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def tempflow(installed, tmp_path) -> Run:
    """Run the installed command in a folder of the user's, with `on_path` in front of Python's path."""

    def run(*arguments: str, on_path: Path | None = None) -> subprocess.CompletedProcess[str]:
        env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONSAFEPATH")}
        env |= {"PYTHONPATH": str(on_path)} if on_path else {}
        return subprocess.run(
            [installed.parent / "tempflow", *arguments],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )

    return run


def package(folder: Path) -> None:
    folder.mkdir()
    (folder / "__init__.py").touch()


def test_the_wheel_holds_every_recipe_and_layer(tempflow):
    done = tempflow("recipes")
    named = {line.split()[0] for line in done.stdout.splitlines() if line}
    assert {path.stem for path in (ROOT / "configs").glob("*.yaml")} <= named, done.stderr
    done = tempflow("config", "sd35_pickscore", "model=flux_dev", "method=mixgrpo", "rewards=hpsv3", "hardware=8gpu")
    assert done.returncode == 0, done.stderr
    for layer in ("models/flux_dev", "rewards/hpsv3", "hardware/8gpu"):
        assert f"# configs/{layer}.yaml" in done.stdout


@pytest.mark.parametrize("on_path", [False, True], ids=["working directory", "path"])
def test_folders_that_hide_nothing_change_nothing(tempflow, tmp_path, on_path):
    """A package `configs`, and folders of the names of our packages that are no packages."""
    on_path = tmp_path if on_path else None
    before = tempflow("config", "shapes", on_path=on_path)
    package(tmp_path / "configs")
    for name in ("system", "actors", "services"):
        (tmp_path / name).mkdir()
    done = tempflow("config", "shapes", on_path=on_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, before.stdout, before.stderr)
    assert "# configs/shapes.yaml" in done.stdout


@pytest.mark.parametrize("on_path", [False, True], ids=["working directory", "path"])
@pytest.mark.parametrize("name", ["system", "actors", "services"])
def test_a_package_that_hides_ours_is_named(tempflow, tmp_path, name, on_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    place = elsewhere if on_path else tmp_path
    package(place / name)
    done = tempflow("config", "shapes", on_path=place if on_path else None)
    away = f"take `{place}` off PYTHONPATH" if on_path else "start in another folder"
    says = f"`{place / name}` hides the package `{name}` of tempflow; rename it, or {away}"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"tempflow: {says}\n")
