"""Win rates: a vision-language model compares two images of a prompt at a time, as in Pref-GRPO (arXiv 2508.20751)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from services.base.errors import UserError
from services.http.images import data_url, encode_image
from services.http.session import read_token
from services.scoring.judge.asker import TOKEN_VARIABLE, Asker, Spent, check_asker
from services.scoring.judge.budget import Budget
from services.scoring.judge.endpoint import Endpoint
from services.scoring.judge.rubric import Question, read_ready
from services.scoring.outside import PATIENCE_S
from services.scoring.row import Row

READY = Path(__file__).parent / "pair_questions"
"""The folder of the ready questions. Each is a YAML file with one question, whose score is 1 if Image 1 is better."""
TIE = 0.5


class VlmPairs:
    """Asks a model which of two images of a prompt is better. An image's score is its win rate.

    The win rate is (wins + half of the ties) / comparisons, over the comparisons whose answer could be read. An image
    without any is a hole. The first image of a comparison wins if the score of the answer is above .5, and a score of
    .5, or an answer that the question does not apply, is a tie. So a probability of .51 is a whole win: differences
    between images that are almost equal do not shrink with the model's doubt.

    Which pairs: all, unless options choose fewer. Images that are next to each other are the closest relatives, because
    that is the order of a task's leaves. In TempFlow-GRPO each `plan.explorations` images are the siblings of one
    state, and only siblings are compared by `advantage.group: seed`. So `siblings: 6` compares each with the other five
    and makes 648 comparisons of 216 images instead of 23,328; a comparison with an image of another group would add the
    difference between the groups, which is not due to the action. The images of Flow-GRPO start from different noises
    and form one group. There, `opponents: 8` lets each of them meet its four neighbours on both sides. The same images
    meet each time.

    Which is shown first: models favour one place. Each image is shown first exactly as often as second, so that a model
    that always prefers the first image gives each a win rate of .5. In a group of an even number of images, the two
    that are opposite to each other are therefore compared in both orders.

    Deviations from the published code: it compares all pairs, shows the image with the lower number first, and counts
    an answer that cannot be read as a tie.

    Sub-scores: `score`; `comparisons`, how many could be read; `margin`, the mean of 2·(score of the answer) − 1 from
    the image's side, which keeps the model's doubt; `first_wins`, how often the image that was shown first has won,
    where .5 means no preference for a place; `seconds`, `tokens_in`, `tokens_out` and `cost`, of which each image of a
    comparison has half.

    Args:
        url: the address that ends before `/chat/completions`, such as http://127.0.0.1:8000/v1.
        model: the model's name at this address. It must take two images.
        question: the name of a ready question, or a question with one score, which is 1 if Image 1 is better.
        siblings: this many images, which are next to each other, are compared among themselves; None for all.
        opponents: how many of them each image meets, an even number; None for all.
        concurrency: comparisons that are made at the same time.

    The other options are those of `VlmJudge`.
    """

    groupwise = True
    relative = True

    def __init__(
        self,
        url: str,
        model: str,
        question: str | Mapping[str, Any],
        siblings: int | None = None,
        opponents: int | None = None,
        max_tokens: int = 1024,
        concurrency: int = 16,
        token_file: str | None = None,
        token_variable: str = TOKEN_VARIABLE,
        timeout_s: float = 120,
        patience_s: float = PATIENCE_S,
        budget_calls: int | None = None,
        budget_tokens: int | None = None,
        price_in: float = 0.0,
        price_out: float = 0.0,
        extra_body: Mapping[str, Any] | None = None,
    ) -> None:
        self.question, self.siblings, self.opponents = read_question(question), siblings, opponents
        self.asker = Asker(
            Endpoint(url, model, read_token(token_file, token_variable), timeout_s, extra_body),
            Budget(budget_calls, budget_tokens),
            concurrency,
            patience_s,
            price_in,
            price_out,
            {"temperature": 0.0, "max_completion_tokens": max_tokens},
        )

    @staticmethod
    def check(
        url: str,
        model: str,
        question: str | Mapping[str, Any],
        siblings: int | None = None,
        opponents: int | None = None,
        token_file: str | None = None,
        token_variable: str = TOKEN_VARIABLE,
        **numbers: Any,
    ) -> None:
        """Check the options, and that the extra is installed.

        Raises:
            UserError: one is wrong or missing. The message names it.
        """
        counts = {"siblings": siblings, "opponents": opponents}
        check_asker("vlm_pairs", url, token_file, token_variable, {**counts, **numbers})
        read_question(question)
        if siblings == 1:
            raise UserError("scorer vlm_pairs: siblings is 1, but an image needs another one; set at least 2")
        if opponents is not None and opponents % 2:
            raise UserError(
                f"scorer vlm_pairs: opponents is {opponents}; it must be even, since each image is shown first in half "
                "of its comparisons"
            )

    @staticmethod
    def columns(question: str | Mapping[str, Any], **_: Any) -> tuple[str, ...]:
        """The columns that the question names, which each prompt's row must have."""
        return tuple(sorted(read_question(question).fields))

    def __call__(
        self, images_NHWC: np.ndarray, prompts: Sequence[str], rows: Sequence[Row]
    ) -> Mapping[str, np.ndarray]:
        pictures = [data_url(encode_image(image_HWC)) for image_HWC in images_NHWC]

        def compare(pair: tuple[int, int]) -> tuple[float, dict[str, float]]:
            """The score of the answer, NaN if it cannot be read, and what it has cost."""
            shown, about, spent = [pictures[i] for i in pair], "the images {} and {}".format(*pair), Spent()
            prompt, row = prompts[pair[0]], rows[pair[0]]
            scores = self.asker.scores(self.question, shown, prompt, row, about, spent)
            return np.nan if scores is None else _one(scores), self.asker.costs(spent)

        pairs = pairs_of(len(prompts), self.siblings, self.opponents)
        missing = np.nan, self.asker.costs(Spent())
        made = [one or missing for one in self.asker.each(compare, pairs)]
        costs_P = [costs for _, costs in made]
        halves = {name: np.array([costs[name] / 2 for costs in costs_P]) for name in missing[1]}
        return {
            **win_rates(pairs, np.array([score for score, _ in made]), len(prompts)),
            **{name: _by_image(pairs, half_P, half_P, len(prompts)) for name, half_P in halves.items()},
        }

    def probe(self) -> str:
        """Ask the question once about two grey images.

        Raises:
            UserError: as `Asker.probe` raises.
        """
        return self.asker.probe([self.question], 2, "question")


def pairs_of(count: int, siblings: int | None = None, opponents: int | None = None) -> list[tuple[int, int]]:
    """The pairs of images that are compared, the image that is shown first before the other.

    In each circle of n images, image i is shown before i + d for d = 1 … n // 2, or 1 … opponents / 2. So each image is
    first exactly as often as second. Without `opponents`, each pair meets once. If n is even, opposite images, where
    d = n / 2, meet twice, in both orders.

    Args:
        count: the number of images.
        siblings: images of a circle. Of the last one, it may be fewer. None makes one circle of all images.
        opponents: as of `VlmPairs`.
    """
    pairs = []
    for start in range(0, count, siblings or max(count, 1)):
        circle = range(start, min(start + (siblings or count), count))
        most = len(circle) // 2 if opponents is None else min(len(circle), opponents) // 2
        pairs += [(i, circle[(i - start + d) % len(circle)]) for d in range(1, most + 1) for i in circle]
    return pairs


def win_rates(pairs: Sequence[tuple[int, int]], score_P: np.ndarray, count: int) -> dict[str, np.ndarray]:
    """The sub-scores of images by name, each (count,), from the scores of the answers about P pairs, NaN if unread.

    Those of an image without a comparison are NaN, except `comparisons`.
    """
    read_P = ~np.isnan(score_P)
    won_P = np.where(read_P, (np.sign(score_P - TIE) + 1) / 2, 0.0)
    lead_P = np.where(read_P, 2 * score_P - 1, 0.0)
    read_N = _by_image(pairs, read_P, read_P, count)
    with np.errstate(invalid="ignore"):
        return {
            "score": _by_image(pairs, won_P, read_P - won_P, count) / read_N,
            "comparisons": read_N,
            "margin": _by_image(pairs, lead_P, -lead_P, count) / read_N,
            "first_wins": _by_image(pairs, won_P, won_P, count) / read_N,
        }


def _by_image(
    pairs: Sequence[tuple[int, int]], of_first_P: np.ndarray, of_second_P: np.ndarray, count: int
) -> np.ndarray:
    """Each image's sum of the values that its pairs give to the first image and to the second, (count,)."""
    first_P, second_P = np.array(pairs, int).reshape(-1, 2).T
    return np.bincount(first_P, of_first_P, count) + np.bincount(second_P, of_second_P, count)


def read_question(question: str | Mapping[str, Any]) -> Question:
    """A ready question by its name, or one with these fields.

    Raises:
        UserError: there is no such question, or it is wrong, or it has several scores.
    """
    found: Question = read_ready("vlm_pairs", "question", question, READY, Question, "give a question")
    if len(found.scores) > 1:
        raise UserError(
            f"scorer vlm_pairs: the question has the scores {', '.join(found.scores)}; keep one, which is 1 if Image 1 "
            "is better and 0 if Image 2 is"
        )
    return found


def _one(scores: Mapping[str, float | None]) -> float:
    """The only score of an answer; a tie if it does not apply."""
    (score,) = scores.values()
    return TIE if score is None else score
