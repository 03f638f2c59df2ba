"""Checks the places where commands write their results, before the work begins."""

import os
from pathlib import Path

from services.base.errors import UserError


def check_output(file: Path, option: str) -> None:
    """Refuse a file that cannot be written. The file's folder is made.

    Raises:
        UserError: the file cannot be written. The message begins with `option`.
    """
    if file.is_dir():
        raise UserError(f"{option}: `{file}` is a folder; give the name of a file")
    make_output_folder(file.parent, option)
    if file.exists() and not os.access(file, os.W_OK):
        raise UserError(f"{option}: `{file}` cannot be written; give another file")


def make_output_folder(folder: Path, option: str | None = None) -> None:
    """Make a folder for results.

    Raises:
        UserError: the folder cannot be made or written to. The message begins with `option` where one is given.
    """
    name = f"{option}: the folder `{folder}`" if option else f"the folder `{folder}`"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{name} cannot be made ({error.strerror}); give another one") from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"{name} cannot be written to; give another one")
