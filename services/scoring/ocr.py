"""OCR: is the text that the prompt puts in quotes readable in the image? Flow-GRPO's rule (arXiv 2505.05470).

Needs the extra `tempflow[ocr]`: RapidOCR carries its models, so nothing is downloaded.
"""

import logging
import re
from collections.abc import Sequence

import numpy as np

from services.base.errors import UserError

log = logging.getLogger(__name__)

CLOSING = {
    '"': '"', "“": "”", "„": "“”", "”": "”", "«": "»", "»": "«»", "‹": "›", "›": "‹›",
    "「": "」", "『": "』", "﹁": "﹂", "﹃": "﹄", "〝": "〞〟", "＂": "＂",
}  # fmt: skip
"""What ends a quote, by what begins it. Single quotes are none, since they are apostrophes too."""
INCH = '"”'
OPENING = re.compile(f"(?<!\\d)[{INCH}]|[{''.join(CLOSING.keys() - set(INCH))}]")
"""One of INCH after a digit is an inch mark, as in `a 12" record`, and begins no quote."""


class Ocr:
    """1 where the quoted text is found, else 1 − min(edit distance, length) / length; NaN where nothing is quoted.

    Spaces and case do not count. The first prompt without a score is named in the log.
    """

    def __init__(self) -> None:
        from rapidocr import RapidOCR

        self.engine = RapidOCR(params={"Global.log_level": "warning"})
        self.told = False

    @staticmethod
    def check() -> None:
        """Refuse to start where the extra is not installed.

        Raises:
            UserError: it is not.
        """
        import importlib.util

        if importlib.util.find_spec("rapidocr") is None:
            raise UserError("scorer ocr: RapidOCR is not installed; run `pip install 'tempflow[ocr]'`")

    def __call__(self, images_NHWC: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        return np.array([self._score(image, prompt) for image, prompt in zip(images_NHWC, prompts, strict=True)])

    def _score(self, image_HWC: np.ndarray, prompt: str) -> float:
        target = quoted(prompt)
        if target is None:
            if not self.told:
                log.warning("this prompt, and perhaps others, has no text in quotes that open and close: %s", prompt)
                self.told = True
            return float("nan")
        lines = self.engine(np.ascontiguousarray(image_HWC[..., ::-1])).txts or ()
        return text_reward("".join(lines), target)


def quoted(prompt: str) -> str | None:
    """The first text in quotes; None without any, and where a quote does not close, so that the text is a guess."""
    texts: list[str] = []
    end = 0
    while opening := OPENING.search(prompt, end):
        closing = re.compile(f"[{CLOSING[opening[0]]}]").search(prompt, opening.end())
        if closing is None:
            return None
        texts.append(prompt[opening.end() : closing.start()])
        end = closing.end()
    return texts[0] if texts and texts[0].strip() else None


def text_reward(read: str, target: str) -> float:
    """Flow-GRPO's reward of a text that was read for the text that was asked."""
    from rapidfuzz.distance import Levenshtein

    read, target = ("".join(text.split()).lower() for text in (read, target))
    if target in read:
        return 1.0
    return 1 - min(Levenshtein.distance(read, target), len(target)) / len(target)
