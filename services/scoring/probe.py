"""Tests a recipe's scorer for `tempflow doctor`: calls an outside service once, or scores one image with the model."""

import time

import numpy as np

from services.base.errors import UserError, first_line
from services.scoring.loaded import LoadedScorer
from services.scoring.row import Row
from services.scoring.scorer import check_scorer
from services.scoring.settings import ScorerSettings

PROMPT = 'a grey wall with the word "probe"'
"""The prompt of the test. It quotes a text for the OCR scorer."""


def probe(settings: ScorerSettings, height: int, width: int, prompt: str = PROMPT, row: Row | None = None) -> str:
    """Try a scorer in this process, and return a sentence with the result.

    A scorer with a method `probe` calls its outside service once. Any other scorer scores one image.

    Args:
        height: the image's height in pixels.
        width: the image's width in pixels.
        prompt: the image's prompt.
        row: the prompt's row; None for an empty one.

    Raises:
        UserError: the scorer cannot be built, its service does not answer, or it cannot score.
    """
    check_scorer(settings)
    try:
        began = time.perf_counter()
        scorer = LoadedScorer(settings)
        loaded = time.perf_counter()
        ask = getattr(scorer.scorer, "probe", None)
        if ask is not None:
            return f"{settings.scorer}: {ask()}"
        scored = scorer.score(np.full((1, height, width, 3), 128, np.uint8), [prompt], [row or {}])
        done = time.perf_counter()
    except UserError:
        raise
    except Exception as error:  # a scorer may be the user's code
        said = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"scorer `{settings.name}` fails: {said}; correct it or its options") from error
    if scored.errors:
        raise UserError(f"scorer `{settings.name}` has no score for `{prompt}`: {scored.errors[0]}")
    score = f"{scored.score_N[0]:.4g}" if np.isfinite(scored.score_N[0]) else "no score"
    times = f"loaded in {loaded - began:.1f} s, scored in {done - loaded:.1f} s"
    return f"{settings.scorer}: {score} for a grey image; {times}"
