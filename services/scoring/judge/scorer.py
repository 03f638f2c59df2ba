"""Asks a vision-language model for scores, through an OpenAI-compatible endpoint: vLLM, SGLang, or a hosted API."""

import importlib.util
import logging
import math
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from services.base.errors import UserError
from services.base.patience import Away
from services.http.images import data_url, encode_image
from services.http.session import read_token
from services.scoring.judge.budget import Budget
from services.scoring.judge.endpoint import Endpoint, JudgeError, NoScore, Reply
from services.scoring.judge.rubric import Question, filled, read_rubric
from services.scoring.outside import PATIENCE_S, ask_outside, check_url
from services.scoring.row import Row

log = logging.getLogger(__name__)

TOKEN_VARIABLE = "VLM_JUDGE_TOKEN"
"""The default name of the environment variable with the API key. It is not OPENAI_API_KEY, so that a key for one
service is never sent to another."""
Rubric = str | Sequence[Mapping[str, Any]]


@dataclass
class Spent:
    """What the answers about one image have cost."""

    seconds: float = 0.0
    tokens_in: int = 0
    tokens_out: int = 0


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
        self.questions = read_rubric(rubric)
        self.samples, self.concurrency, self.patience_s = samples, concurrency, patience_s
        self.fields = {"temperature": temperature, "max_completion_tokens": max_tokens}
        self.price_in, self.price_out = price_in, price_out
        self.budget = Budget(budget_calls, budget_tokens)
        self.endpoint = Endpoint(url, model, read_token(token_file, token_variable), timeout_s, extra_body)

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
        if importlib.util.find_spec("openai") is None:
            raise UserError("scorer vlm_judge: the client openai is not installed; run `pip install 'tempflow[judge]'`")
        check_url("vlm_judge", url)
        read_token(token_file, token_variable)
        read_rubric(rubric)
        for name, value in {"samples": samples, **numbers}.items():
            whole = name in ("samples", "concurrency", "max_tokens", "budget_calls", "budget_tokens")
            if whole and value is not None and (type(value) is not int or value < 1):
                raise UserError(f"scorer vlm_judge: {name} is {value}; it must be a whole number above 0")
            if name.startswith(("timeout", "patience", "price")) and not (
                isinstance(value, int | float) and 0 <= value < math.inf
            ):
                raise UserError(f"scorer vlm_judge: {name} is {value}; it must be a number that is not negative")
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
        gave_up = threading.Event()
        with ThreadPoolExecutor(self.concurrency, "judge") as threads:
            judging = [
                threads.submit(self._judge_patiently, gave_up, *each)
                for each in zip(images_NHWC, prompts, rows, strict=True)
            ]
            try:
                judged = [image.result() for image in judging]
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                raise
        answered = [scores for scores in judged if not isinstance(scores, Away)]
        if judged and not answered:
            raise next(away for away in judged if isinstance(away, Away))
        holes = dict.fromkeys(answered[0], math.nan) if answered else {}
        lines = [holes if isinstance(scores, Away) else scores for scores in judged]
        return {name: np.array([scores[name] for scores in lines]) for name in holes}

    def _judge_patiently(
        self, gave_up: threading.Event, image_HWC: np.ndarray, prompt: str, row: Row
    ) -> dict[str, float] | Away:
        """The sub-scores of one image, or the error if the endpoint stays away.

        Then images of the same call that were not begun are not asked about, so a call has one patience. Those that
        were answered keep their scores: one image whose answer always comes too late does not cost the others.
        """
        if gave_up.is_set():
            return Away("the endpoint stayed away for an earlier image")
        try:
            return self._judge(image_HWC, prompt, row)
        except Away as away:
            gave_up.set()
            log.warning("no score for an image of the prompt %.100r: %s", prompt, away)
            return away

    def _judge(self, image_HWC: np.ndarray, prompt: str, row: Row) -> dict[str, float]:
        """The sub-scores of one image by name. NaN is a hole, or a score that does not apply."""
        picture, spent = data_url(encode_image(image_HWC)), Spent()
        scores: dict[str, float] = {}
        complete = True
        for question in self.questions:
            answers = [self._sample(question, picture, prompt, row, sample, spent) for sample in range(self.samples)]
            read = [answer for answer in answers if answer is not None]
            complete = complete and bool(read)
            for name in question.scores:
                scores[name] = _mean([value for answer in read if (value := answer[name]) is not None])
        score = _mean([value for value in scores.values() if not math.isnan(value)]) if complete else math.nan
        cost = (spent.tokens_in * self.price_in + spent.tokens_out * self.price_out) / 1e6
        priced = {"cost": cost} if self.price_in or self.price_out else {}
        tokens = {"tokens_in": float(spent.tokens_in), "tokens_out": float(spent.tokens_out)}
        return {"score": score, **scores, "seconds": spent.seconds, **tokens, **priced}

    def _sample(
        self, question: Question, picture: str, prompt: str, row: Row, sample: int, spent: Spent
    ) -> dict[str, float | None] | None:
        """The scores in one answer to a question; None, and a line in the log, if they cannot be read."""
        reply = None
        try:
            reply = ask_outside(lambda: self._ask(question, picture, prompt, row, sample, spent), self.patience_s)
            return question.read(reply)
        except NoScore as fault:
            said = f"; the model answered {self.endpoint.quoted(reply.refusal or reply.text)!r}" if reply else ""
            log.warning("no score for an image of the prompt %.100r: %s%s", prompt, fault, said)
            return None

    def _ask(self, question: Question, picture: str, prompt: str, row: Row, sample: int, spent: Spent) -> Reply:
        """Send a request once, within the budget."""
        text, system = filled(question.text, prompt, row), filled(question.system, prompt, row)
        fields = {**self.fields, "seed": sample, **question.request}
        self.budget.begin_call()
        began = time.perf_counter()
        reply = self.endpoint.ask(picture, text, system, **fields)
        spent.seconds += time.perf_counter() - began
        spent.tokens_in += reply.tokens_in
        spent.tokens_out += reply.tokens_out
        self.budget.add_tokens(reply.tokens_in + reply.tokens_out)
        return reply

    def probe(self) -> str:
        """Ask each question once about a grey image, to check the key, the model, and that its answers can be read.

        Raises:
            UserError: the endpoint does not answer, refuses, or an answer has no scores.
        """
        grey, spent = data_url(encode_image(np.full((512, 512, 3), 128, np.uint8))), Spent()
        for question in self.questions:
            row = dict.fromkeys(question.fields, "probe")
            try:
                reply = self._ask(question, grey, "a grey wall", row, 0, spent)
                question.read(reply)
            except (Away, JudgeError) as error:
                raise UserError(f"{error}; start the endpoint, or set options.url, model or token_file") from error
            except NoScore as error:
                raise UserError(f"{self.endpoint.url}: {error}; set another options.model or rubric") from error
        return f"{self.endpoint.model} at {self.endpoint.url} answers in {spent.seconds:.1f} s"


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else math.nan
