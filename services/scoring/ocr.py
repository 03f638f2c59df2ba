"""OCR: can the text that the prompt quotes be read in the image? The rule is Flow-GRPO's (arXiv 2505.05470).

It needs the extra `tempflow[ocr]`. RapidOCR includes its models, so nothing is downloaded.
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
"""The marks that end a quote, by the mark that begins it. Single quotes are left out: they are also apostrophes."""
INCH = '"”'
OPENING = re.compile(f"(?<!\\d)[{INCH}]|[{''.join(CLOSING.keys() - set(INCH))}]")
"""The beginning of a quote. A mark of INCH after a digit, as in `a 12" record`, is an inch mark and begins no quote."""


class Ocr:
    """1 if the quoted text is found, else 1 − min(edit distance, length) / length; NaN if the prompt quotes no text.

    Spaces and case are ignored. The log names the first prompt without a score.
    """

    def __init__(self) -> None:
        from rapidocr import RapidOCR

        self.engine = RapidOCR(params={"Global.log_level": "warning"})
        self.told = False

    @staticmethod
    def check() -> None:
        """Check that the extra is installed.

        Raises:
            UserError: the extra is not installed.
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
                log.warning(
                    "this prompt, and perhaps others, has no text between opening and closing quotes: %s", prompt
                )
                self.told = True
            return float("nan")
        lines = self.engine(np.ascontiguousarray(image_HWC[..., ::-1])).txts or ()
        return text_reward("".join(lines), target)


def quoted(prompt: str) -> str | None:
    """The first quoted text; None if there is none, or if a quote does not close, since its end would be a guess."""
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
    """Flow-GRPO's reward for the text that was read, given the text that was requested."""
    from rapidfuzz.distance import Levenshtein

    read, target = ("".join(text.split()).lower() for text in (read, target))
    if target in read:
        return 1.0
    return 1 - min(Levenshtein.distance(read, target), len(target)) / len(target)
