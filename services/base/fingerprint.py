"""Fingerprints of files and models, which show whether one that a recipe names has changed."""

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from services.base.paths import resolve_model

WHOLE_BYTES = 256 * 2**20
"""Files up to this size are read completely."""
BLOCKS, BLOCK_BYTES = 64, 2**20
"""Of a larger file, only this many blocks are read, evenly spaced from its first byte to its last, so that a model of
24 GB takes seconds. Training changes every block of a file of weights, so it is noticed."""


def fingerprint(path: Path) -> str:
    """The SHA-256 of a file's content, or of the names and fingerprints of all files below a folder.

    Files and folders whose names begin with a dot are left out, because tools keep their own notes there.

    Raises:
        OSError: a file cannot be read.
    """
    if not path.is_dir():
        return _of_file(path)
    digest = hashlib.sha256()
    for folder, folders, files in os.walk(path, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith("."):
                file = Path(folder, name)
                digest.update(f"{file.relative_to(path).as_posix()}\0{_of_file(file)}\n".encode())
    return digest.hexdigest()


def fingerprint_of(name: str) -> str | None:
    """The fingerprint of a model or file that a recipe names. For a hub id, it is the commit in the local cache.

    Returns None if nothing is known about the name. The network is not used.

    Raises:
        UserError: a package or the path in it does not exist.
        OSError: a file cannot be read.
    """
    path = Path(resolve_model(name))
    with suppress(RuntimeError):  # `~name` of an unknown user: the text is not a path
        path = path.expanduser()
    return fingerprint(path) if os.path.exists(path) else _cached_commit(name)  # noqa: PTH110 (takes any text)


def _of_file(path: Path) -> str:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size <= WHOLE_BYTES:
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256(str(size).encode())
        for i in range(BLOCKS):
            file.seek((size - BLOCK_BYTES) * i // (BLOCKS - 1))
            digest.update(file.read(BLOCK_BYTES))
    return digest.hexdigest()


def _cached_commit(name: str) -> str | None:
    """The commit of the hub's main branch when it was last cached; None if nothing is cached or it is not a hub id."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.file_download import repo_folder_name

    try:
        repository = repo_folder_name(repo_id=name, repo_type="model")
    except HFValidationError:
        return None
    branch = Path(constants.HF_HUB_CACHE, repository, "refs", "main")
    return branch.read_text().strip() if branch.is_file() else None
