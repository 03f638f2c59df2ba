"""Makes a folder from which tempflow can be installed on a machine without a network.

    python3.12 -m deploy.offline.bundle FOLDER --without-torch

pip resolves the dependencies and downloads wheels for the given Python and machine. The folder contains them as one
archive in parts of at most --part-mb, with SHA256SUMS and install.py, which checks, joins and installs them. Run this
command with the Python version that the bundle is for, because pip evaluates conditions such as
`python_version < "3.12"` for the Python that runs it.
"""

import argparse
import hashlib
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CONSTRAINTS = HERE.parent / "constraints.txt"
INSTALLER, SUMS, REQUIREMENT = "install.py", "SHA256SUMS", "REQUIREMENT"
LEGACY = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
"""The older name of manylinux_2_N, by N."""
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "tempflow_entry.py", "system", "actors", "services", "configs")
"""The files that the wheel is built from, as in the container image."""
CHUNK_BYTES = 2**20
MB = 10**6


def platforms(machine: str, glibc: int) -> list[str]:
    """The tags of wheels that run on Linux with glibc 2.`glibc`, the best first."""
    tags = []
    for minor in range(glibc, 4, -1):
        tags.append(f"manylinux_2_{minor}_{machine}")
        tags += [f"{LEGACY[minor]}_{machine}"] if minor in LEGACY else []
    return tags


def pip(*arguments: str | Path) -> None:
    """Run pip.

    Raises:
        SystemExit: pip failed. It has printed the reason.
    """
    if subprocess.run([sys.executable, "-m", "pip", *map(str, arguments)]).returncode:
        raise SystemExit("bundle: pip failed, and no bundle was made; its message is above")


def stand_in(folder: Path, version: str) -> str:
    """Write an empty wheel named torch, so that pip resolves everything except torch. Returns its requirement."""
    version = f"{version}+left.out"
    info = f"torch-{version}.dist-info"
    files = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tempflow\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = f"{info}/RECORD"
    with zipfile.ZipFile(folder / f"torch-{version}-py3-none-any.whl", "w") as wheel:
        for name, text in (files | {record: "".join(f"{name},,\n" for name in (*files, record))}).items():
            wheel.writestr(name, text)
    return f"torch=={version}"


def build(wheels: Path) -> Path:
    """Build tempflow's wheel from a copy. In the checkout, setuptools would add files that an earlier build left."""
    with TemporaryDirectory() as aside:
        for name in SOURCES:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
            copy(ROOT / name, Path(aside) / name)
        pip("wheel", "--quiet", "--no-deps", "--wheel-dir", wheels, aside)
    (own,) = wheels.glob("tempflow-*.whl")
    return own


def download(requirement: str, wheels: Path, target: Sequence[str], without_torch: bool, constraints: Path) -> None:
    """Download the wheels that `requirement` needs on the target into `wheels`.

    Args:
        target: pip's options for the Python, the platform, and the index of torch.
        without_torch: leave out torch and the packages that only torch needs, except setuptools: torch needs a newer
            one than that of a virtual environment of Python 3.11, which hides the machine's.
    """
    more = [requirement]
    with TemporaryDirectory() as aside:
        if without_torch:
            pinned = re.search(r"^torch==([\d.]+)", constraints.read_text(), re.MULTILINE)
            more += ["setuptools", stand_in(Path(aside), pinned[1] if pinned else "999"), "--find-links", aside]
        pip(
            "download",
            "--quiet",
            "--only-binary",
            ":all:",
            "--constraint",
            constraints,
            "--dest",
            wheels,
            *target,
            *more,
        )
    for file in wheels.glob("torch-*+left.out-*.whl"):
        file.unlink()


def pack(wheels: Path, folder: Path, requirement: str, part_bytes: int) -> list[Path]:
    """Write the bundle: the archive in parts, the requirement, the installer and the checksums. Returns the parts."""
    folder.mkdir(parents=True, exist_ok=True)
    parts: list[Path] = []
    with TemporaryDirectory(dir=folder) as aside:
        archive = Path(aside) / "wheels.tar"
        with tarfile.open(archive, "w") as tar:
            for wheel in sorted(wheels.glob("*.whl")):
                tar.add(wheel, wheel.name)
        with archive.open("rb") as whole:
            while whole.tell() < archive.stat().st_size:
                parts.append(folder / f"wheels.tar.{len(parts):03d}")
                _copy(whole, parts[-1], part_bytes)
    (folder / REQUIREMENT).write_text(f"{requirement}\n")
    shutil.copyfile(HERE / INSTALLER, folder / INSTALLER)
    listed = [*parts, folder / REQUIREMENT, folder / INSTALLER]
    (folder / SUMS).write_text("".join(f"{_sha256(path)}  {path.name}\n" for path in listed))
    return parts


def _copy(source, target: Path, most: int) -> None:  # type: ignore[no-untyped-def]
    """Copy the next bytes of an open file, at most `most`."""
    with target.open("wb") as part:
        while most and (chunk := source.read(min(CHUNK_BYTES, most))):
            part.write(chunk)
            most -= len(chunk)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m deploy.offline.bundle", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, help="the folder of the bundle, which must be new or empty")
    running = f"{sys.version_info.major}.{sys.version_info.minor}"
    parser.add_argument("--python", default=running, help="the machine's version of Python; by default, this one's")
    parser.add_argument("--machine", default="x86_64", choices=("x86_64", "aarch64"))
    parser.add_argument("--glibc", type=int, default=28, help="N of the machine's glibc 2.N, or a smaller number")
    parser.add_argument("--extras", default="", help="extras of tempflow, such as ocr,tensorboard")
    torch = parser.add_mutually_exclusive_group()
    torch.add_argument("--without-torch", action="store_true", help="the machine has PyTorch already")
    torch.add_argument("--torch-index", help="the package index of a CUDA build of PyTorch")
    parser.add_argument(
        "--constraints", type=Path, default=CONSTRAINTS, help="a file of versions; the tested ones by default"
    )
    parser.add_argument("--part-mb", type=int, default=100, help="the largest size of one file, in MB")
    given = parser.parse_args()
    if given.folder.exists() and any(given.folder.iterdir()):
        raise SystemExit(f"bundle: `{given.folder}` is not empty; name a new folder")
    if given.python != running:
        print(f"bundle: this is not Python {given.python}, so check that the bundle installs there", file=sys.stderr)
    target = ["--python-version", given.python, "--implementation", "cp"]
    target += [part for tag in platforms(given.machine, given.glibc) for part in ("--platform", tag)]
    target += ["--extra-index-url", given.torch_index] if given.torch_index else []
    extras = f"[{given.extras}]" if given.extras else ""
    with TemporaryDirectory() as aside:
        wheels = Path(aside)
        own = build(wheels)
        download(f"tempflow{extras} @ {own.as_uri()}", wheels, target, given.without_torch, given.constraints)
        count = len([*wheels.glob("*.whl")])
        parts = pack(wheels, given.folder, f"tempflow{extras}=={own.name.split('-')[1]}", given.part_mb * MB)
    size = sum(part.stat().st_size for part in parts) / MB
    print(f"{count} wheels, {size:,.0f} MB in {len(parts)} parts; SHA-256 of {SUMS}: {_sha256(given.folder / SUMS)}")


if __name__ == "__main__":
    main()
