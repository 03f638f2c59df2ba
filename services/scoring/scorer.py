"""The interface of a reward model (scorer), and how a scorer is found by its name.

To write your own scorer, write a class like this one, and name it in the recipe as `my_package.my_module:Brightness`:

    class Brightness:
        def __init__(self, scale: float = 1.0) -> None:
            self.scale = scale

        def __call__(self, images_NHWC, prompts):
            return self.scale * images_NHWC.mean(axis=(1, 2, 3)) / 255

A class may ask for more:

- A third parameter `rows` of the call: the row of each prompt (`services.scoring.row`).
- `columns = ("answer",)`: the columns that each row must have. A static method `check_row(row)` may check their values;
  it raises ValueError, TypeError or KeyError with the reason. An image with another row is a hole. If the columns
  depend on the options, `columns` is a static method `columns(**options)` that returns the tuple.
- `groupwise = True`: each call gets one group: all images of one task, or all held-out images of one prompt. Its
  scores may depend on each other.
- `relative = True`, for a groupwise scorer: its scores only compare the images of a group, as win rates do, so the mean
  of a group is always the same. Evaluations leave the scorer out.
- A static method `check(**options)` raises UserError if the options are wrong.
"""

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from services.base.devices import DEVICE
from services.base.errors import UserError
from services.base.importing import imported
from services.base.text import is_unicode
from services.scoring.row import Row
from services.scoring.settings import ScorerSettings

BUILT_IN = {
    "pickscore": "services.scoring.pickscore:PickScore",
    "clipscore": "services.scoring.clipscore:ClipScore",
    "clip": "services.scoring.clip:Clip",
    "hpsv2": "services.scoring.hpsv2:HPSv2",
    "aesthetic": "services.scoring.aesthetic:Aesthetic",
    "imagereward": "services.scoring.imagereward:ImageReward",
    "hpsv3": "services.scoring.hpsv3:HPSv3",
    "ocr": "services.scoring.ocr:Ocr",
    "geneval": "services.scoring.geneval.scorer:GenEval",
    "geneval2": "services.scoring.geneval2:GenEval2",
    "vlm_judge": "services.scoring.judge.scorer:VlmJudge",
    "vlm_pairs": "services.scoring.judge.pairs:VlmPairs",
    "remote": "services.scoring.remote:Remote",
    "remote_groupwise": "services.scoring.remote:RemoteGroupwise",
    "diversity": "services.scoring.diversity:Diversity",
    "jpeg_size": "services.scoring.jpeg_size:JpegSize",
}
"""The scorers of this package, by the name that a recipe gives."""
OUR_FOLDER = Path(__file__).resolve().parents[2]
"""The folder that contains our packages."""


class Scorer(Protocol):
    """A reward model: it takes images and their prompts, and returns one number for each, or several by name."""

    def __call__(self, images_NHWC: np.ndarray, prompts: Sequence[str]) -> np.ndarray | Mapping[str, np.ndarray]:
        """Score N images.

        Args:
            images_NHWC: (N, H, W, 3) uint8.
            prompts: N texts.

        Returns:
            (N,) floats, or a mapping from the name of a sub-score to (N,) floats. NaN marks an image without a score.
            A score must not depend on the other images, unless the scorer is groupwise.
        """
        ...


@dataclass(frozen=True)
class Needs:
    """What a scorer asks for beside images and prompts."""

    rows: bool
    """It gets the rows of the prompts."""
    columns: tuple[str, ...]
    """The columns that each row must have."""
    groupwise: bool
    """It gets all images of a group in one call, and no others."""
    relative: bool = False
    """The mean of its scores says nothing, because they only compare the images of a group."""


def scorer_class(settings: ScorerSettings) -> type:
    """Import the class that a recipe names, and check its options against the constructor.

    Raises:
        UserError: the class cannot be imported, or does not accept these options.
    """
    path = BUILT_IN.get(settings.scorer, settings.scorer)
    module, _, attribute = path.partition(":")
    if not attribute:
        known = ", ".join(BUILT_IN)
        raise UserError(
            f"scorer `{settings.scorer}`: neither built in ({known}) nor of the form package.module:Class; name one of "
            "these, or the import path of your class"
        )
    try:
        found = getattr(imported(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"scorer `{settings.scorer}`: {error}; check the import path") from error
    if not isinstance(found, type) or not any("__call__" in vars(base) for base in found.__mro__):
        raise UserError(
            f"scorer `{settings.scorer}` is not a class with a method `__call__(self, images_NHWC, prompts)`; "
            "make it one"
        )
    try:
        inspect.signature(found).bind(**settings.options)
    except TypeError as error:
        raise UserError(
            f"scorer `{settings.scorer}`: wrong options ({', '.join(settings.options) or 'none'} given): {error}; "
            "correct the scorer's options"
        ) from error
    return found


def needs_of(settings: ScorerSettings) -> Needs:
    """What the class of a scorer asks for.

    Raises:
        UserError: as `scorer_class` raises; its call takes other arguments; or it names columns but takes no rows.
    """
    found = scorer_class(settings)
    call = inspect.signature(found.__call__)
    rows, columns = "rows" in call.parameters, getattr(found, "columns", ())
    try:
        call.bind("self", "images", "prompts", **({"rows": "rows"} if rows else {}))
    except TypeError as error:
        raise UserError(
            f"scorer `{settings.name}`: its call is `__call__{call}`; make it `__call__(self, images_NHWC, prompts)`, "
            "or `__call__(self, images_NHWC, prompts, rows)` to read the rows of the prompts"
        ) from error
    columns = columns(**settings.options) if callable(columns) else columns
    if isinstance(columns, str) or (columns and not rows):
        raise UserError(
            f"scorer `{settings.name}`: `columns` must be a tuple of names, in a class whose call has the parameter "
            "`rows`"
        )
    return Needs(
        rows, tuple(columns), bool(getattr(found, "groupwise", False)), bool(getattr(found, "relative", False))
    )


def row_check(settings: ScorerSettings) -> Callable[[Row], str | None]:
    """A function that says why the scorer cannot use a row, such as "has no `answer`"; None if it can.

    Raises:
        UserError: as `needs_of` raises.
    """
    columns, check = needs_of(settings).columns, getattr(scorer_class(settings), "check_row", None)

    def fault(row: Row) -> str | None:
        if missing := [column for column in columns if row.get(column) is None]:
            return f"has no `{missing[0]}`"
        try:
            if check is not None:
                check(row)
        except KeyError as error:
            return f"has no {error}"
        except (TypeError, ValueError) as error:
            return str(error)
        return None

    return fault


def images_at_once(settings: ScorerSettings, group: int) -> int:
    """The most images in one request: those of a whole group if the scorer compares them with each other."""
    return max(1, group) if needs_of(settings).groupwise else settings.request_images


def make_importable(*folders: Path | str) -> None:
    """Add folders, such as that of a recipe, to the end of Python's path, so that scorers can be imported from them.

    The folder of our own packages is added first. Otherwise, in an editable install, a user's folder of the same name
    would hide them, because Python looks for the packages of such an install after the whole path.
    """
    for folder in (OUR_FOLDER, *folders):
        if (path := str(Path(folder).resolve())) not in sys.path:
            sys.path.append(path)


def own_folders() -> list[str]:
    """The folders that this process imports from, except Python's own and those of installed packages.

    A folder whose name is not valid Unicode is left out, because a recipe cannot contain the name.
    """
    folders = dict.fromkeys(str(Path(entry).resolve()) for entry in sys.path if Path(entry).is_dir())
    own = [folder for folder in folders if not folder.startswith((sys.prefix, sys.base_prefix))]
    return [folder for folder in own if is_unicode(folder)]


def check_scorer(settings: ScorerSettings) -> None:
    """Check a scorer before it is built. Its class may have a static method `check` for its own options.

    Raises:
        UserError: as `scorer_class` or the scorer's `check` raises.
    """
    check = getattr(scorer_class(settings), "check", None)
    if check is not None:
        check(**settings.options)


def check_device(settings: ScorerSettings) -> None:
    """Check that a replica that uses a GPU asks Ray for one.

    Raises:
        UserError: it asks for none; or a built-in scorer has an unknown device.
    """
    device = str(settings.options.get("device", "auto"))
    if settings.scorer in BUILT_IN and not DEVICE.fullmatch(device):
        raise UserError(f"scorer `{settings.name}`: options.device `{device}`: it must be auto, cpu, cuda or cuda:N")
    if device.startswith("cuda") and not settings.num_gpus:
        raise UserError(
            f"scorer `{settings.name}`: options.device is cuda but num_gpus is 0; set num_gpus to 1 or a fraction, or "
            "leave out options.device"
        )


def uses_gpu(settings: ScorerSettings) -> bool:
    """Whether the scorer would run on a GPU if it asked for one: it has an option `device`, and no service's `url`."""
    return "device" in inspect.signature(scorer_class(settings)).parameters and "url" not in settings.options
