"""Installs a bundle made by `deploy.offline.bundle` into the Python that runs this file:

    python FOLDER/install.py

It needs only pip, and no network. Further options, such as --target, are passed to pip.
"""

import hashlib
import re
import subprocess
import sys
import tarfile
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

HERE = Path(__file__).resolve().parent
CHUNK_BYTES = 2**20


def refuse(sentence: str) -> SystemExit:
    """Print one sentence. Returns the exception for exit code 2."""
    print(f"install: {sentence}", file=sys.stderr)
    return SystemExit(2)


def checked() -> list[str]:
    """Check the checksums of all files of the bundle, and return the files' names.

    Raises:
        SystemExit: a file is missing or damaged.
    """
    if not (HERE / "SHA256SUMS").is_file():
        raise refuse(f"`{HERE}` has no SHA256SUMS; copy all files of the bundle into one folder")
    names = []
    for line in (HERE / "SHA256SUMS").read_text().splitlines():
        wanted, _, name = line.partition("  ")
        if not (HERE / name).is_file():
            raise refuse(f"`{name}` is missing; copy it into `{HERE}`")
        digest = hashlib.sha256()
        with (HERE / name).open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
        if digest.hexdigest() != wanted:
            raise refuse(f"`{name}` is damaged: its SHA-256 is not the one in SHA256SUMS; copy it again")
        names.append(name)
    return names


def join(names: list[str], target: Path) -> None:
    """Join the parts of the archive in order."""
    with target.open("wb") as whole:
        parts = [name for name in names if re.fullmatch(r"wheels\.tar\.\d+", name)]
        for name in sorted(parts, key=lambda name: int(name.rpartition(".")[2])):
            with (HERE / name).open("rb") as part:
                while chunk := part.read(CHUNK_BYTES):
                    whole.write(chunk)


def main() -> None:
    names = checked()
    with TemporaryDirectory() as folder:
        wheels = Path(folder)
        join(names, wheels / "wheels.tar")
        with tarfile.open(wheels / "wheels.tar") as tar:
            tar.extractall(wheels, filter="data")
        (wheels / "wheels.tar").unlink()
        if not [*wheels.glob("torch-*.whl")] and find_spec("torch") is None:
            raise refuse(
                "the bundle was made without PyTorch, and this Python has none; run this with a Python that has it, or "
                "install PyTorch first"
            )
        requirement = (HERE / "REQUIREMENT").read_text().strip()
        command = ["-m", "pip", "install", "--no-index", "--find-links", folder, *sys.argv[1:], requirement]
        if subprocess.run([sys.executable, *command]).returncode:
            raise refuse("pip failed; its message is above")


if __name__ == "__main__":
    main()
