"""Asks a vision-language model for scores, through an OpenAI-compatible endpoint: vLLM, SGLang, or a hosted API."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from services.base.errors import UserError
from services.http.images import data_url, encode_image
from services.http.session import read_token
from services.scoring.judge.asker import TOKEN_VARIABLE, Asker, Spent, check_asker
from services.scoring.judge.budget import Budget
from services.scoring.judge.endpoint import Endpoint
from services.scoring.judge.rubric import read_rubric
from services.scoring.outside import PATIENCE_S
from services.scoring.row import Row

Rubric = str | Sequence[Mapping[str, Any]]


class VlmJudge:
    """Asks a model the questions of a rubric about each image.

    Each score of the rubric is a sub-score in [0, 1]. The sub-score `score` is their mean, without those that do not
    apply to the image. It is a hole if a question has no readable answer, or if no score applies. The log then quotes
    the answer. `seconds`, `tokens_in` and `tokens_out` are sub-scores as well, and `cost` if there are prices.

    Args:
        url: the address that ends before `/chat/completions`, such as http://127.0.0.1:8000/v1.
        model: the model's name at this address.
        rubric: the name of a ready rubric, or a list of questions.
        samples: how often each question is asked. A score is the mean of those answers that can be read.
        temperature: the temperature of the answers.
        max_tokens: the most tokens of an answer.
        concurrency: images that are judged at the same time.
        token_file: the file with the API key. If not given, the environment variable `token_variable` is used.
        token_variable: the name of that variable.
        timeout_s: seconds for the answer to one request.
        patience_s: seconds for which a request is repeated.
        budget_calls: the most requests in the life of this process; None for no limit.
        budget_tokens: the most tokens in the life of this process; None for no limit.
        price_in: the price of a million tokens of questions, in a currency of your choice.
        price_out: the price of a million tokens of answers.
        extra_body: other fields of each request, such as `{chat_template_kwargs: {enable_thinking: false}}`.
    """

    def __init__(
        self,
        url: str,
        model: str,
        rubric: Rubric,
        samples: int = 1,
        temperature: float = 0.0,
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
        self.questions, self.samples = read_rubric(rubric), samples
        self.asker = Asker(
            Endpoint(url, model, read_token(token_file, token_variable), timeout_s, extra_body),
            Budget(budget_calls, budget_tokens),
            concurrency,
            patience_s,
            price_in,
            price_out,
            {"temperature": temperature, "max_completion_tokens": max_tokens},
        )

    @staticmethod
    def check(
        url: str,
        model: str,
        rubric: Rubric,
        samples: int = 1,
        temperature: float = 0.0,
        token_file: str | None = None,
        token_variable: str = TOKEN_VARIABLE,
        **numbers: Any,
    ) -> None:
        """Check the options, and that the extra is installed.

        Raises:
            UserError: one is wrong or missing. The message names it.
        """
        check_asker("vlm_judge", url, token_file, token_variable, {"samples": samples, **numbers})
        read_rubric(rubric)
        if samples > 1 and not temperature:
            raise UserError(
                f"scorer vlm_judge: samples is {samples}, but with temperature 0 all answers are the same; set "
                "options.temperature"
            )

    @staticmethod
    def columns(rubric: Rubric, **_: Any) -> tuple[str, ...]:
        """The columns that the questions name, which each prompt's row must have."""
        return tuple(sorted(set().union(*(question.fields for question in read_rubric(rubric)))))

    def __call__(
        self, images_NHWC: np.ndarray, prompts: Sequence[str], rows: Sequence[Row]
    ) -> Mapping[str, np.ndarray]:
        judged = self.asker.each(lambda each: self._judge(*each), list(zip(images_NHWC, prompts, rows, strict=True)))
        holes = dict.fromkeys(next((scores for scores in judged if scores is not None), {}), math.nan)
        return {name: np.array([(scores or holes)[name] for scores in judged]) for name in holes}

    def _judge(self, image_HWC: np.ndarray, prompt: str, row: Row) -> dict[str, float]:
        """The sub-scores of one image by name. NaN is a hole, or a score that does not apply."""
        pictures, spent = [data_url(encode_image(image_HWC))], Spent()
        scores: dict[str, float] = {}
        complete = True
        for question in self.questions:
            answers = [
                self.asker.scores(question, pictures, prompt, row, "an image", spent, seed=sample)
                for sample in range(self.samples)
            ]
            read = [answer for answer in answers if answer is not None]
            complete = complete and bool(read)
            for name in question.scores:
                scores[name] = _mean([value for answer in read if (value := answer[name]) is not None])
        score = _mean([value for value in scores.values() if not math.isnan(value)]) if complete else math.nan
        return {"score": score, **scores, **self.asker.costs(spent)}

    def probe(self) -> str:
        """Ask each question once about a grey image.

        Raises:
            UserError: as `Asker.probe` raises.
        """
        return self.asker.probe(self.questions, 1, "rubric")


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else math.nan
