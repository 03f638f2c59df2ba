"""Finds the models and data files that a recipe names."""

import importlib.util
import logging
import os
from functools import cache
from pathlib import Path

from services.base.errors import UserError

log = logging.getLogger(__name__)

HUB_TIMEOUT_S = 10

PACKAGE_PREFIX = "package:"


def resolve_model(name: str) -> str:
    """Turn `package:NAME/PATH` into the path inside that installed package. Other names (paths, hub ids) do not change.

    Raises:
        UserError: the package or the path inside it does not exist.
    """
    if not name.startswith(PACKAGE_PREFIX):
        return name
    package, _, inside = name.removeprefix(PACKAGE_PREFIX).partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"`{name}`: no package `{package}` is installed; install it, or correct the name")
    path = Path(spec.submodule_search_locations[0]) / inside
    if not path.exists():
        raise UserError(f"`{name}`: the package `{package}` has no `{inside}`; correct the path")
    return str(path)


def model_file(what: str, name: str, file: str) -> Path:
    """A small file of a model, from its folder or downloaded from the hub (with HF_TOKEN, through HF_ENDPOINT).

    Raises:
        UserError: there is no such model, or it is gated and the token gives no access. The message begins with `what`.
    """
    folder = resolve_model(name)
    if Path(folder).is_dir():
        path = Path(folder) / file
        if not path.exists():
            raise UserError(f"{what}: `{folder}` has no {file}; give a model's folder or a hub id")
        return path
    if folder.startswith(("/", ".", "~")):
        raise UserError(f"{what}: there is no folder `{folder}` here; give one that exists, or a hub id")
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, LocalEntryNotFoundError

    reached = hub_answers(constants.ENDPOINT)
    try:
        return Path(hf_hub_download(folder, file, local_files_only=not reached))
    except GatedRepoError as error:
        fix = "accept its licence on the hub, and set HF_TOKEN to a token that may read it, or give a local folder"
        raise UserError(f"{what}: `{folder}` is gated; {fix}") from error
    except LocalEntryNotFoundError as error:
        away = f"the hub at {constants.ENDPOINT} does not answer, and the cache does not have its {file}"
        raise UserError(f"{what}: no folder `{folder}` here, {away}; give a folder, or connect to the hub") from error
    except (HFValidationError, OSError) as error:
        fix = "give a folder that exists, or a hub id that can be reached (HF_TOKEN for a private one)"
        raise UserError(
            f"{what}: no folder `{folder}` here, and the hub gives no {file} for it ({type(error).__name__}); {fix}"
        ) from error


@cache
def hub_answers(endpoint: str) -> bool:
    """Whether the hub answers. Each process asks once, because the hub's client tries five times for each file.

    If it does not answer, HF_HUB_OFFLINE is set: this process and those that it starts then use the cache only.
    """
    import requests

    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        return False
    try:
        requests.head(endpoint, timeout=HUB_TIMEOUT_S)
    except requests.RequestException:
        log.warning("the hub at %s does not answer; only its cache on this machine is used", endpoint)
        os.environ["HF_HUB_OFFLINE"] = "1"
        return False
    return True
