"""The scores of the images of one job, by scorer, and why some are missing."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from services.scoring.loaded import LoadedScorer, Scored, qualified
from services.scoring.row import Row


@dataclass
class Scores:
    """The scores of the M images of one job."""

    by_scorer: dict[str, np.ndarray] = field(default_factory=dict)
    """The scores of each scorer, (M,) float64. NaN is a hole."""
    sub_scores: dict[str, np.ndarray] = field(default_factory=dict)
    """The sub-scores of scorers that have some, as SCORER.SUB, (M,) float64. NaN is a hole."""
    busy_s: dict[str, float] = field(default_factory=dict)
    """Seconds of work, by scorer."""
    latency_s: dict[str, list[float]] = field(default_factory=dict)
    """The seconds from sending each answered request to its answer, including the time in queues, by scorer."""
    errors: dict[str, str] = field(default_factory=dict)
    """Why images have no score, by scorer: why requests failed at every attempt, or what is wrong with a row."""
    not_finite: int = 0
    """The number of images without a score because their latent or pixels are NaN or infinite."""
    retries: int = 0
    """The number of requests that were sent again."""

    @property
    def images(self) -> int:
        """M."""
        return max(map(len, self.by_scorer.values()), default=0)

    def add(self, name: str, start: int, scored: Scored, busy_s: float, latency_s: float) -> None:
        """Add the answer to one request: the scores of the images from index `start` on."""
        part = slice(start, start + len(scored))
        self.by_scorer[name][part] = scored.score_N
        for sub, values_N in qualified(name, scored.sub_scores).items():
            self.sub_scores.setdefault(sub, np.full(len(self.by_scorer[name]), np.nan))[part] = values_N
        for reason in scored.errors.values():
            self.errors.setdefault(name, reason)
        self.busy_s[name] = self.busy_s.get(name, 0) + busy_s
        self.latency_s.setdefault(name, []).append(latency_s)

    def without(self, finite_M: np.ndarray) -> "Scores":
        """Turn the scores of images that are not finite into holes. Returns this object."""
        self.not_finite = int((~finite_M).sum())
        for score_M in (*self.by_scorer.values(), *self.sub_scores.values()):
            score_M[~finite_M] = np.nan
        return self


def scores_of(
    scorers: Sequence[LoadedScorer], images_MHWC: np.ndarray, prompts: Sequence[str], rows: Sequence[Row]
) -> Scores:
    """The scores of images by scorers in this process, all at once. A scorer that fails raises its error."""
    scores = Scores({scorer.settings.name: np.full(len(prompts), np.nan) for scorer in scorers})
    for scorer in scorers:
        scores.add(scorer.settings.name, 0, scorer.score(images_MHWC, prompts, rows), 0.0, 0.0)
    return scores


def gathered(scores: Sequence[Scores]) -> dict[str, np.ndarray]:
    """The scores of several tasks one after the other: of each scorer, then each sub-score.

    Where a scorer was not asked for a task's scores, they are holes. So are the sub-scores where all of a task's
    requests to a scorer failed.
    """
    counts = [score.images for score in scores]
    columns = [{**score.by_scorer, **score.sub_scores} for score in scores]
    names = {name: None for part in ("by_scorer", "sub_scores") for score in scores for name in getattr(score, part)}
    return {
        name: np.concatenate([c.get(name, np.full(n, np.nan)) for c, n in zip(columns, counts, strict=True)])
        for name in names
    }


def why_holes(scores: Sequence[Scores]) -> str:
    """The reasons for the holes in the scores of several tasks."""
    errors = [(f"scorer `{name}`", reason) for score in scores for name, reason in score.errors.items()]
    reasons = {scorer: reason.removeprefix(f"{scorer} ") for scorer, reason in errors}
    if not_finite := sum(score.not_finite for score in scores):
        reasons = {f"{not_finite} images": "the model's latents or pixels are NaN or infinite"} | reasons
    silent = {f"`{name}`": None for s in scores for name, score_M in s.by_scorer.items() if np.isnan(score_M).any()}
    known = "; ".join(f"{what}: {reason}" for what, reason in reasons.items())
    return known or f"NaN or infinity from {', '.join(silent) or 'the scorers'}"
