"""Where commands write their results, checked before the work that makes them."""

import os
from pathlib import Path

from services.base.errors import UserError


def check_output(file: Path, option: str) -> None:
    """Refuse a file that cannot be written; its folder is made.

    Raises:
        UserError: begins with `option`.
    """
    if file.is_dir():
        raise UserError(f"{option}: `{file}` is a folder; give the name of a file")
    make_output_folder(file.parent, option)
    if file.exists() and not os.access(file, os.W_OK):
        raise UserError(f"{option}: `{file}` cannot be written; give another file")


def make_output_folder(folder: Path, option: str) -> None:
    """Make a folder for results.

    Raises:
        UserError: it cannot be made or written to; begins with `option`.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{option}: the folder `{folder}` cannot be made ({error.strerror})") from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"{option}: the folder `{folder}` cannot be written to; give another one")
