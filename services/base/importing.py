"""Imports a module that a recipe names."""

import importlib
import traceback
from types import ModuleType

from services.base.errors import UserError


def imported(module: str) -> ModuleType:
    """Import a module of the user.

    Raises:
        ImportError: there is no such module, or it imports something that is missing.
        UserError: its code cannot run.
    """
    try:
        return importlib.import_module(module)
    except (ImportError, UserError):
        raise
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = "" if isinstance(error, SyntaxError) else f" ({last.filename}, line {last.lineno})"
        raise UserError(
            f"the module `{module}` cannot be imported: {type(error).__name__}: {error}{place}; correct it"
        ) from error
