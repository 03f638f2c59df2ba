"""A scorer with its model in memory, and what it says of images: scores, sub-scores, and why some are missing."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from services.base.devices import naming_full_memory
from services.base.errors import UserError, first_line
from services.scoring.row import Row
from services.scoring.scorer import needs_of, row_check, scorer_class
from services.scoring.settings import ScorerSettings

DEFAULT_SUB_SCORE = "score"
"""The sub-score that is the scorer's score if the recipe names none."""
SUB_SCORE = re.compile("[a-z][a-z0-9_]*")


@dataclass
class Scored:
    """The answer of a scorer for N images. NaN is a hole, everywhere."""

    score_N: np.ndarray
    """(N,) float64."""
    sub_scores: dict[str, np.ndarray] = field(default_factory=dict)
    """Each (N,) float64, by name."""
    errors: dict[int, str] = field(default_factory=dict)
    """Why an image has no score, by its index, where the reason is known."""

    def __len__(self) -> int:
        return len(self.score_N)

    def __getitem__(self, part: slice) -> "Scored":
        """The answer for some of the images, which are next to each other."""
        start, stop, _ = part.indices(len(self))
        errors = {i - start: reason for i, reason in self.errors.items() if start <= i < stop}
        return Scored(self.score_N[part], {name: sub_N[part] for name, sub_N in self.sub_scores.items()}, errors)

    def spread(self, places: Sequence[int], count: int) -> "Scored":
        """The answer for `count` images, of which these are the ones at `places`. The others are holes."""

        def holes_but(values_N: np.ndarray) -> np.ndarray:
            wide = np.full(count, np.nan)
            wide[places] = values_N
            return wide

        sub_scores = {name: holes_but(sub_N) for name, sub_N in self.sub_scores.items()}
        return Scored(holes_but(self.score_N), sub_scores, {places[i]: why for i, why in self.errors.items()})


def qualified(scorer: str, sub_scores: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The sub-scores of a scorer by the names that they have among other scorers' scores: SCORER.SUB."""
    return {f"{scorer}.{sub}": values for sub, values in sub_scores.items()}


class LoadedScorer:
    """A scorer of a recipe, built with its options, which loads its model."""

    def __init__(self, settings: ScorerSettings) -> None:
        self.settings, self.needs = settings, needs_of(settings)
        options: dict[str, Any] = settings.options
        share = f"raise num_gpus of the scorer `{settings.name}`, which is its share of the GPU"
        with naming_full_memory(share):
            self.scorer = scorer_class(settings)(**options)
        self._called = naming_full_memory(f"{share}, or lower its options.batch_size")(self.scorer)
        self.fault_of_row = row_check(settings)

    def score(self, images_NHWC: np.ndarray, prompts: Sequence[str], rows: Sequence[Row] = ()) -> Scored:
        """Score images. ±infinity becomes NaN. An image whose row the scorer cannot use is a hole with the reason.

        If the scorer is groupwise, the other images of the group are holes, too: a part of a group is never compared.

        Args:
            images_NHWC: uint8. For a groupwise scorer, they are one whole group.
            rows: one for each prompt. None is the same as empty rows.

        Raises:
            UserError: the scores are not one number for each image, or a sub-score has a bad name.
        """
        if not self.needs.rows:
            return self._scored(self._called(images_NHWC, list(prompts)), len(prompts))
        rows = list(rows) or [{}] * len(prompts)
        whys = {i: f"its row {why}" for i, row in enumerate(rows) if (why := self.fault_of_row(row)) is not None}
        if not whys:
            return self._scored(self._called(images_NHWC, list(prompts), rows=rows), len(prompts))
        places = [i for i in range(len(prompts)) if i not in whys]
        if self.needs.groupwise:
            whys |= dict.fromkeys(places, "its group has an image that cannot be scored")
            places = []
        scored = Scored(np.zeros(0))
        if places:
            texts, usable = [prompts[i] for i in places], [rows[i] for i in places]
            scored = self._scored(self._called(images_NHWC[places], texts, rows=usable), len(places))
        wide = scored.spread(places, len(prompts))
        wide.errors |= whys
        return wide

    def _scored(self, said: Any, count: int) -> Scored:
        reward, name = self.settings.reward, self.settings.name
        if not isinstance(said, Mapping):
            if reward is not None:
                raise UserError(f"scorer `{name}` returns no sub-scores; leave out its setting reward")
            return Scored(self._finite(said, count))
        if bad := [sub for sub in said if not isinstance(sub, str) or not SUB_SCORE.fullmatch(sub)]:
            raise UserError(f"scorer `{name}` returned a sub-score {bad[0]!r}; name it in lower case, such as `colour`")
        sub_scores = {sub: self._finite(values, count) for sub, values in said.items()}
        weights = reward if isinstance(reward, dict) else {reward or DEFAULT_SUB_SCORE: 1.0}
        if missing := [sub for sub in weights if sub not in sub_scores]:
            why = f"the scorer returned no sub-score `{missing[0]}`, which its setting reward needs"
            if reward is None:
                why = f"the scorer returned no sub-score `{DEFAULT_SUB_SCORE}`; set its reward to others"
            why = f"{why}: it returned {', '.join(sub_scores) or 'none'}"
            return Scored(np.full(count, np.nan), sub_scores, dict.fromkeys(range(count), why))
        return Scored(np.sum([weight * sub_scores[sub] for sub, weight in weights.items()], axis=0), sub_scores)

    def _finite(self, values: Any, count: int) -> np.ndarray:
        name = self.settings.name
        try:
            score_N = np.asarray(values, np.float64)
        except (TypeError, ValueError) as error:  # such as text, or a tensor on a GPU
            raise UserError(
                f"scorer `{name}` returned {type(values).__name__} that NumPy cannot read as numbers "
                f"({first_line(error)}); return a list or an array of {count} numbers"
            ) from error
        if score_N.shape != (count,):
            raise UserError(
                f"scorer `{name}` returned scores of shape {score_N.shape} for {count} images; return one number for "
                f"each, as an array of shape ({count},)"
            )
        return np.where(np.isfinite(score_N), score_N, np.nan)
