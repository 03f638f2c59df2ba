"""How scores count in the training reward: each is clipped, gated and scaled, in this order.

So every bound is in the units that a scorer returns, which are those of the metrics. Weighing and adding come after; a
rule of `reward.combine` normalises before or after that (`system.loop.combine`).

A hole stays a hole in every operation. Where a gate's score is a hole, it is not known whether the gate is open, so the
gated score is a hole, too. The reward is a hole where any score with a weight is one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from actors.reward.scores import Scores
from services.scoring.settings import GateSettings, ScorerSettings


@dataclass(frozen=True)
class Counted:
    """The scores of the M leaves of a task, as they count in the reward."""

    scores: dict[str, np.ndarray]
    """The clipped, gated and scaled scores of each scorer that has a weight for the task's prompt, (M,)."""
    weights: dict[str, float]
    """The weights of these scorers, none of them 0."""

    @property
    def reward(self) -> np.ndarray:
        """The weighted sum of the scores, (M,). It is a hole where any of them is."""
        return np.sum([weight * self.scores[name] for name, weight in self.weights.items()], axis=0)


def counted(scorers: Sequence[ScorerSettings], scores: Scores, category: str | None) -> Counted:
    """The scores of a task as they count for a prompt of this category."""
    known = {**scores.by_scorer, **scores.sub_scores}
    rewards = [scorer for scorer in scorers if scorer.weight_in(category)]
    return Counted(
        {scorer.name: as_counted(scorer, known) for scorer in rewards},
        {scorer.name: scorer.weight_in(category) for scorer in rewards},
    )


def as_counted(scorer: ScorerSettings, scores: Mapping[str, np.ndarray]) -> np.ndarray:
    """The scores of one scorer as they count, (M,), before they are weighed.

    Args:
        scores: (M,) of each scorer and sub-score, as they were returned; those of the scorer and its gate are used. A
            gate's sub-score that is not there is a hole everywhere.
    """
    score_M = scores[scorer.name]
    if scorer.clip is not None:
        score_M = np.clip(score_M, *scorer.clip)
    if scorer.gate is not None:
        score_M = _gated(scorer.gate, score_M, scores.get(scorer.gate.score, np.full(len(score_M), np.nan)))
    return score_M * scorer.scale


def _gated(gate: GateSettings, score_M: np.ndarray, gate_M: np.ndarray) -> np.ndarray:
    """The score where the gate is open, `otherwise` where it is closed, and NaN where either score is a hole.

    With `min` alone and `otherwise` 0 this is the conditioned reward of GDPO (arXiv 2601.05242).
    """
    low, high = -np.inf if gate.min is None else gate.min, np.inf if gate.max is None else gate.max
    score_M = np.where((low <= gate_M) & (gate_M <= high), score_M, np.where(np.isnan(score_M), np.nan, gate.otherwise))
    return np.where(np.isnan(gate_M), np.nan, score_M)
