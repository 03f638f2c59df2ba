"""A reward pool whose scorers answer from a script, without Ray."""

import numpy as np

from actors.reward.pool import RewardPool
from services.scoring.loaded import Scored
from services.scoring.settings import ScorerSettings


class Handle:
    """A Serve handle that answers from a script: an exception is raised, anything else returned."""

    def __init__(self, *answers) -> None:
        self.answers = list(answers)
        self.calls = 0
        self.score = self

    def remote(self, images, prompts, start, run, rows):
        self.calls += 1
        self.asked = [*getattr(self, "asked", []), (start, len(prompts), run)]
        self.rows = rows
        return Response(self.answers.pop(0))


class Response:
    def __init__(self, answer) -> None:
        self.answer = answer

    def result(self, timeout_s):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def pool_of(attempts: int = 3, **handles) -> RewardPool:
    settings = [ScorerSettings(name=name, scorer="jpeg_size", attempts=attempts) for name in handles]
    return RewardPool(handles, settings, 4)


def good(*values: float):
    return Scored(np.array(values)), 0.5
