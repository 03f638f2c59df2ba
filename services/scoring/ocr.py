"""OCR: can the requested text be read in the image? The rule is Flow-GRPO's (arXiv 2505.05470).

It needs the extra `tempflow[ocr]`. RapidOCR includes its models, so nothing is downloaded.
"""

import logging
import re
from collections.abc import Sequence

import numpy as np

from services.base.errors import UserError
from services.scoring.row import Row

log = logging.getLogger(__name__)

COLUMN = "text"
"""The column of a prompt's row with the requested text."""
CLOSING = {
    '"': '"', "“": "”", "„": "“”", "”": "”", "«": "»", "»": "«»", "‹": "›", "›": "‹›",
    "「": "」", "『": "』", "﹁": "﹂", "﹃": "﹄", "〝": "〞〟", "＂": "＂",
}  # fmt: skip
"""The marks that end a quote, by the mark that begins it. Single quotes are left out: they are also apostrophes."""
INCH = '"”'
OPENING = re.compile(f"(?<!\\d)[{INCH}]|[{''.join(CLOSING.keys() - set(INCH))}]")
"""The beginning of a quote. A mark of INCH after a digit, as in `a 12" record`, is an inch mark and begins no quote."""


class Ocr:
    """1 if the requested text is found, else 1 − min(edit distance, length) / length.

    It is the column `text` of the prompt's row. Where the row has none, it is the text that the prompt quotes; if there
    is none either, the score is NaN, and the log names the first such prompt. Spaces and case are ignored.
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

    @staticmethod
    def check_row(row: Row) -> None:
        """Check the column `text`, if the row has it.

        Raises:
            TypeError, ValueError: it is not a text, or blank.
        """
        text = row.get(COLUMN)
        if text is not None and not isinstance(text, str):
            raise TypeError(f"has a `{COLUMN}` that is not text: {text}")
        if text is not None and not text.strip():
            raise ValueError(f"has a blank `{COLUMN}`")

    def __call__(self, images_NHWC: np.ndarray, prompts: Sequence[str], rows: Sequence[Row]) -> np.ndarray:
        return np.array([self._score(*each) for each in zip(images_NHWC, prompts, rows, strict=True)])

    def _score(self, image_HWC: np.ndarray, prompt: str, row: Row) -> float:
        target = quoted(prompt) if row.get(COLUMN) is None else row[COLUMN]
        if target is None:
            if not self.told:
                log.warning(
                    "this prompt, and perhaps others, has no column `%s` and no text between opening and closing "
                    "quotes: %s",
                    COLUMN,
                    prompt,
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
