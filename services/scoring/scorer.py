"""What a reward model is to this system, and how one is found by name.

A scorer of your own is a class like this, named in the recipe as `my_package.my_module:Brightness`:

    class Brightness:
        def __init__(self, scale: float = 1.0) -> None:
            self.scale = scale

        def __call__(self, images_NHWC, prompts):
            return self.scale * images_NHWC.mean(axis=(1, 2, 3)) / 255
"""

import importlib
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from services.base.devices import DEVICE
from services.base.errors import UserError
from services.scoring.settings import ScorerSettings

BUILT_IN = {
    "pickscore": "services.scoring.pickscore:PickScore",
    "clipscore": "services.scoring.clipscore:ClipScore",
    "hpsv3": "services.scoring.hpsv3:HPSv3",
    "ocr": "services.scoring.ocr:Ocr",
    "geneval": "services.scoring.geneval:GenEval",
    "remote": "services.scoring.remote:Remote",
    "jpeg_size": "services.scoring.jpeg_size:JpegSize",
}


class Scorer(Protocol):
    """A reward model: images and their prompts in, one number each out."""

    def __call__(self, images_NHWC: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        """Score N images.

        Args:
            images_NHWC: (N, H, W, 3) uint8.
            prompts: N texts.

        Returns:
            (N,) floats; NaN where an image has no score. A score must not depend on the other images.
        """
        ...


def scorer_class(settings: ScorerSettings) -> type:
    """The class a recipe names, with its options checked against the constructor.

    Raises:
        UserError: it cannot be imported, or does not take these options.
    """
    path = BUILT_IN.get(settings.scorer, settings.scorer)
    module, _, attribute = path.partition(":")
    if not attribute:
        known = ", ".join(BUILT_IN)
        raise UserError(f"scorer `{settings.scorer}`: neither built in ({known}) nor of the form package.module:Class")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"scorer `{settings.scorer}`: {error}; check the import path") from error
    try:
        inspect.signature(found).bind(**settings.options)
    except TypeError as error:
        raise UserError(
            f"scorer `{settings.scorer}`: options {', '.join(settings.options) or 'none'}: {error}"
        ) from error
    return found


OUR_FOLDER = Path(__file__).resolve().parents[2]
"""The folder of our packages."""


def make_importable(*folders: Path | str) -> None:
    """Let scorers be imported from folders, such as that of their recipe, after all that is found elsewhere.

    Our own packages come before them. Python looks for those of an editable install after the whole path, where a
    folder of the user's by the same name would hide them.
    """
    for folder in (OUR_FOLDER, *folders):
        if (path := str(Path(folder).resolve())) not in sys.path:
            sys.path.append(path)


def own_folders() -> list[str]:
    """The folders that this process imports from, but for Python's own and those of installed packages."""
    folders = dict.fromkeys(str(Path(entry).resolve()) for entry in sys.path if Path(entry).is_dir())
    return [folder for folder in folders if not folder.startswith((sys.prefix, sys.base_prefix))]


def check_scorer(settings: ScorerSettings) -> None:
    """Refuse what can be known to fail before the scorer is built; a class may have a `check` of its own options.

    Raises:
        UserError: as `scorer_class`, or as the scorer's own check.
    """
    check = getattr(scorer_class(settings), "check", None)
    if check is not None:
        check(**settings.options)


def check_device(settings: ScorerSettings) -> None:
    """Refuse a replica that is to use a GPU and asks Ray for none.

    Raises:
        UserError: as said; or a scorer of ours has a device that is none.
    """
    device = str(settings.options.get("device", "auto"))
    if settings.scorer in BUILT_IN and not DEVICE.fullmatch(device):
        raise UserError(f"scorer `{settings.name}`: options.device `{device}`: it is auto, cpu, cuda or cuda:N")
    if device.startswith("cuda") and not settings.num_gpus:
        raise UserError(
            f"scorer `{settings.name}`: options.device is cuda and num_gpus is 0; set num_gpus to 1 or a fraction, or "
            "leave options.device out"
        )


def uses_gpu(settings: ScorerSettings) -> bool:
    """Whether the scorer takes a `device`, and so would run on a GPU if it asked for one."""
    return "device" in inspect.signature(scorer_class(settings)).parameters


def load_scorer(settings: ScorerSettings) -> Scorer:
    """Build the scorer of a recipe (loads its model)."""
    options: dict[str, Any] = settings.options
    return scorer_class(settings)(**options)


def finite_scores(name: str, scorer: Scorer, images_NHWC: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
    """What a scorer gives for images, (N,) float64, with NaN (for ±infinity, too) as holes.

    Raises:
        ValueError: the scorer returned another number of scores than it was given images.
    """
    score_N = np.asarray(scorer(images_NHWC, list(prompts)), np.float64)
    if score_N.shape != (len(prompts),):
        raise ValueError(f"scorer {name} returned {score_N.shape} scores for {len(prompts)} images")
    return np.where(np.isfinite(score_N), score_N, np.nan)
