"""OCR: is the text that the prompt puts in quotes readable in the image? Flow-GRPO's rule (arXiv 2505.05470).

Needs the extra `tempflow[ocr]`: RapidOCR carries its models, so nothing is downloaded.
"""

from collections.abc import Sequence

import numpy as np

from services.errors import UserError


class Ocr:
    """1 where the quoted text is found, else 1 − min(edit distance, length) / length; NaN where nothing is quoted.

    Spaces and case do not count.
    """

    def __init__(self) -> None:
        from rapidocr import RapidOCR

        self.engine = RapidOCR(params={"Global.log_level": "warning"})

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
            return float("nan")
        lines = self.engine(np.ascontiguousarray(image_HWC[..., ::-1])).txts or ()
        return text_reward("".join(lines), target)


def quoted(prompt: str) -> str | None:
    """What stands between the prompt's first two double quotes; None without any."""
    parts = prompt.split('"')
    return parts[1] if len(parts) > 2 and parts[1].strip() else None


def text_reward(read: str, target: str) -> float:
    """Flow-GRPO's reward of a text that was read for the text that was asked."""
    from rapidfuzz.distance import Levenshtein

    read, target = ("".join(text.split()).lower() for text in (read, target))
    if target in read:
        return 1.0
    return 1 - min(Levenshtein.distance(read, target), len(target)) / len(target)
