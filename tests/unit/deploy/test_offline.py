"""The offline bundle: what pip resolves, in parts, checked before anything is installed."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from deploy.offline.bundle import SOURCES, download, pack, platforms
from tests.helpers.paths import ROOT

PART_BYTES = 700


def wheel(folder: Path, name: str, requires: tuple[str, ...] = (), version: str = "1.0") -> Path:
    """A wheel with one module, NAME.py."""
    info = f"{name}-{version}.dist-info"
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {name}",
        f"Version: {version}",
        *(f"Requires-Dist: {one}" for one in requires),
    ]
    files = {
        f"{name}.py": f"word = '{name}'\n",
        f"{info}/METADATA": "\n".join(lines) + "\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = f"{info}/RECORD"
    file = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        for path, text in (files | {record: "".join(f"{path},,\n" for path in (*files, record))}).items():
            archive.writestr(path, text)
    return file


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """A folder of wheels that takes the place of the package index: alpha needs beta and torch, which there is not."""
    folder = tmp_path / "index"
    folder.mkdir()
    wheel(folder, "alpha", ("beta", "torch>=2.7"))
    wheel(folder, "beta")
    wheel(folder, "gamma")
    wheel(folder, "setuptools", version="999")
    for name, value in (("NO_INDEX", "1"), ("FIND_LINKS", str(folder)), ("CONFIG_FILE", "/dev/null")):
        monkeypatch.setenv(f"PIP_{name}", value)
    return folder


@pytest.fixture
def bundle(index, tmp_path) -> Path:
    """A bundle of alpha without torch, in parts of a few hundred bytes."""
    wheels, constraints = tmp_path / "wheels", tmp_path / "constraints.txt"
    wheels.mkdir()
    constraints.write_text("torch==2.13.0\n")
    download("alpha", wheels, ["--platform", "manylinux_2_28_x86_64"], without_torch=True, constraints=constraints)
    assert sorted(path.name.split("-")[0] for path in wheels.iterdir()) == ["alpha", "beta", "setuptools"]
    parts = pack(wheels, tmp_path / "bundle", "alpha==1.0", PART_BYTES)
    assert len(parts) > 3
    assert all(path.stat().st_size == PART_BYTES for path in parts[:-1])
    return tmp_path / "bundle"


def install(bundle: Path, *options: str | Path) -> subprocess.CompletedProcess[str]:
    """Install with this Python, which has torch, into a folder."""
    command = [sys.executable, bundle / "install.py", "--quiet", *options]
    return subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=120)


def test_a_bundle_installs_what_was_asked_for_and_what_that_needs(bundle, tmp_path):
    done = install(bundle, "--target", tmp_path / "site", "--no-deps")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "alpha.py").read_text() == "word = 'alpha'\n"
    checked = subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=bundle, timeout=60)
    assert checked.returncode == 0


def test_it_installs_into_a_fresh_environment_that_has_torch(bundle, tmp_path):
    """The environment of Python 3.11 has a setuptools that is older than the one that torch needs."""
    fresh = tmp_path / "fresh"
    subprocess.run([sys.executable, "-m", "venv", fresh], check=True, timeout=120)
    python = str(fresh / "bin" / "python")
    command = [python, str(bundle / "install.py"), "--quiet"]
    without = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert without.returncode == 2
    assert "install PyTorch first" in without.stderr
    (site,) = (fresh / "lib").glob("python*/site-packages")
    with zipfile.ZipFile(wheel(tmp_path, "torch", ("setuptools>=900",), version="2.11")) as archive:
        archive.extractall(site)
    subprocess.run(command, check=True, timeout=120)
    subprocess.run([python, "-c", "import alpha, beta"], check=True, timeout=60)


def test_a_damaged_byte_is_refused_by_the_name_of_its_part(bundle, tmp_path):
    part = bundle / "wheels.tar.002"
    content = bytearray(part.read_bytes())
    content[100] ^= 1
    part.write_bytes(content)
    done = install(bundle, "--target", tmp_path / "site")
    assert done.returncode == 2
    assert done.stderr.strip() == (
        "install: `wheels.tar.002` is damaged: its SHA-256 is not the one in SHA256SUMS; copy it again"
    )
    assert not (tmp_path / "site").exists()


@pytest.mark.parametrize(
    ("gone", "message"), [("wheels.tar.001", "`wheels.tar.001` is missing"), ("SHA256SUMS", "no SHA256SUMS")]
)
def test_a_missing_file_is_named(bundle, tmp_path, gone, message):
    (bundle / gone).unlink()
    done = install(bundle, "--target", tmp_path / "site")
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "site").exists()


def test_more_than_a_thousand_parts_are_joined_in_order(index, tmp_path):
    pack(index, tmp_path / "bundle", "gamma==1.0", part_bytes=9)
    assert len([*(tmp_path / "bundle").glob("wheels.tar.*")]) > 1000
    done = install(tmp_path / "bundle", "--target", tmp_path / "site")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "gamma.py").exists()


def test_what_is_not_a_wheel_for_the_machine_ends_in_an_error(index, tmp_path):
    with pytest.raises(SystemExit, match="pip failed"):
        download("delta", tmp_path, [], without_torch=False, constraints=Path("/dev/null"))


def test_platforms_are_those_of_the_glibc_and_older_ones():
    tags = platforms("x86_64", 17)
    assert tags[:2] == ["manylinux_2_17_x86_64", "manylinux2014_x86_64"]
    assert tags[-2:] == ["manylinux_2_5_x86_64", "manylinux1_x86_64"]
    assert not [tag for tag in tags if "2_18" in tag or "2_28" in tag]


def test_the_wheel_is_built_from_what_the_image_is_built_from():
    copied = re.findall(r"^COPY (?!--)(.+) \S+$", (ROOT / "deploy" / "Dockerfile").read_text(), re.MULTILINE)
    assert set(SOURCES) == {name for line in copied for name in line.split() if not name.startswith("deploy/")}
