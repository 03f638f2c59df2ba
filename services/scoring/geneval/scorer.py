"""The scorer `geneval`: a detector finds objects in the images, and GenEval's rule compares them with the prompt's row.

The detector is a Mask2Former in the scorer's own process, or a service of the user, if `url` is given.
"""

import logging
from collections.abc import Mapping, Sequence

import numpy as np

from services.base.errors import UserError
from services.base.paths import model_file
from services.http.session import read_token
from services.scoring.clip import check_clip
from services.scoring.geneval.colours import Colours
from services.scoring.geneval.http_detector import HttpDetector
from services.scoring.geneval.mask2former import Mask2Former
from services.scoring.geneval.rule import (
    NO_SUPPRESSION,
    Wanted,
    classes_of,
    confident,
    official_verdict,
    partial_credit,
    wanted_of,
)
from services.scoring.outside import PATIENCE_S, check_url
from services.scoring.row import Row

log = logging.getLogger(__name__)

DETECTOR = "facebook/mask2former-swin-small-coco-instance"
CLIP = "openai/clip-vit-large-patch14"
RULES = {"score": partial_credit, "official": official_verdict}


class GenEval:
    """Scores by GenEval's rule. The row of a prompt says what the image should show: `tag`, `include` and `exclude`.

    The prompt files are therefore GenEval's own metadata.jsonl, or others with these columns. One detection gives two
    sub-scores: `score` is Flow-GRPO's training reward, with partial credit; `official` is GenEval's verdict, 0 or 1.
    Both are NaN if a requested class is not one of the detector's.

    Args:
        url: the address of a detector of the user. If not given, the two models below are the detector.
        detector: the folder or hub id of a Mask2Former for the 80 classes of COCO.
        clip: the folder or hub id of the CLIP model that names colours.
        max_overlap: the intersection over union from which an object suppresses a less certain one of its class.
            GenEval's default, 1, suppresses nothing.
        token_file: the file with the bearer token for `url`, if it needs one.
        batch_size: images in one request or forward.
        timeout_s: seconds for the answer to one request.
        patience_s: seconds for which a request is repeated.
        device: `auto` is a GPU if there is one.
        metadata, rule: refused by `check`. Earlier versions looked prompts up in files, and gave one of the two scores.
    """

    columns = ("tag", "include")

    def __init__(
        self,
        url: str | None = None,
        detector: str = DETECTOR,
        clip: str = CLIP,
        max_overlap: float = NO_SUPPRESSION,
        token_file: str | None = None,
        batch_size: int = 8,
        timeout_s: float = 120,
        patience_s: float = PATIENCE_S,
        device: str = "auto",
        metadata: object = None,
        rule: object = None,
    ) -> None:
        self.max_overlap = max_overlap
        self.detector: HttpDetector | Mask2Former
        if url is not None:
            self.detector = HttpDetector(url, token_file, batch_size, timeout_s, patience_s)
        else:
            self.detector = Mask2Former(detector, Colours(clip, device), batch_size, device)
        self.probe = self.detector.probe
        self.told = False

    @staticmethod
    def check(
        url: str | None = None,
        detector: str = DETECTOR,
        clip: str = CLIP,
        max_overlap: float = NO_SUPPRESSION,
        token_file: str | None = None,
        metadata: object = None,
        rule: object = None,
        **_: object,
    ) -> None:
        """Check the options, before any actor starts.

        Raises:
            UserError: one is wrong, or what it names is missing. The message names it.
        """
        if not 0 < max_overlap <= 1:
            raise UserError(f"scorer geneval: max_overlap is {max_overlap}; it must be above 0 and at most 1")
        if metadata is not None:
            raise UserError(
                "scorer geneval: remove options.metadata; the scorer reads tag, include and exclude from the rows of "
                "the prompt files, so data.train and data.heldout name GenEval's metadata.jsonl"
            )
        if rule is not None:
            raise UserError(
                "scorer geneval: remove options.rule; the score is the partial credit, and `reward: official` beside "
                "the scorer's name makes GenEval's verdict the score"
            )
        if url is not None:
            check_url("geneval", url)
            read_token(token_file, "GENEVAL_TOKEN")
        else:
            model_file("scorer geneval", detector, "config.json")
            model_file("scorer geneval", detector, "preprocessor_config.json")
            check_clip("scorer geneval", clip, None)

    @staticmethod
    def check_row(row: Row) -> None:
        """Check that a row says what to look for.

        Raises:
            KeyError, TypeError, ValueError: it does not have GenEval's form.
        """
        wanted_of(row)

    def __call__(
        self, images_NHWC: np.ndarray, prompts: Sequence[str], rows: Sequence[Row]
    ) -> Mapping[str, np.ndarray]:
        wanted = [wanted_of(row) for row in rows]
        found = [
            None if self._is_blind_to(want) else confident(seen, want, self.max_overlap)
            for want, seen in zip(wanted, self.detector(images_NHWC, wanted), strict=True)
        ]
        pairs = list(zip(wanted, found, strict=True))
        return {
            name: np.array([rule(want, seen) if seen is not None else np.nan for want, seen in pairs])
            for name, rule in RULES.items()
        }

    def _is_blind_to(self, wanted: Wanted) -> bool:
        """Whether the detector does not know a class, so that it could never find it. The log names the first one."""
        unknown = classes_of(wanted) - (self.detector.classes or classes_of(wanted))
        if unknown and not self.told:
            log.warning("geneval: the detector has no class `%s`; such prompts have no score", min(unknown))
            self.told = True
        return bool(unknown)
