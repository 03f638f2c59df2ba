"""Asks a model the questions of a scorer, within a budget and with one patience for each call of the scorer."""

import importlib.util
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from services.base.errors import UserError
from services.base.patience import Away
from services.http.images import data_url, encode_image
from services.http.session import read_token
from services.scoring.judge.budget import Budget
from services.scoring.judge.endpoint import Endpoint, JudgeError, NoScore, Reply
from services.scoring.judge.rubric import Question, filled
from services.scoring.outside import ask_outside, check_url
from services.scoring.row import Row

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

TOKEN_VARIABLE = "VLM_JUDGE_TOKEN"
"""The default name of the environment variable with the API key. It is not OPENAI_API_KEY, so that a key for one
service is never sent to another."""


@dataclass
class Spent:
    """What some answers have cost."""

    seconds: float = 0.0
    tokens_in: int = 0
    tokens_out: int = 0


class Asker:
    """Asks questions about images, and reads the answers.

    Args:
        endpoint: the model.
        budget: the most calls and tokens of this process.
        concurrency: things that `each` judges at the same time.
        patience_s: seconds for which a request is repeated.
        price_in: the price of a million tokens of questions.
        price_out: the price of a million tokens of answers.
        fields: fields of each request, such as the temperature.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        budget: Budget,
        concurrency: int,
        patience_s: float,
        price_in: float,
        price_out: float,
        fields: Mapping[str, Any],
    ) -> None:
        self.endpoint, self.budget, self.concurrency, self.patience_s = endpoint, budget, concurrency, patience_s
        self.price_in, self.price_out, self.fields = price_in, price_out, fields

    def each(self, judge: Callable[[T], R], things: Sequence[T]) -> list[R | None]:
        """What `judge` returns for each thing; None where the endpoint stayed away.

        Then things that were not begun are not asked about, so a call has one patience. Those that were answered keep
        their result: one question whose answer always comes too late does not cost the others.

        Raises:
            Away: it stayed away for every thing.
        """
        gave_up = threading.Event()

        def judged_patiently(thing: T) -> R | Away:
            if gave_up.is_set():
                return Away("the endpoint stayed away for an earlier image")
            try:
                return judge(thing)
            except Away as away:
                gave_up.set()
                return away

        with ThreadPoolExecutor(self.concurrency, "judge") as threads:
            judging = [threads.submit(judged_patiently, thing) for thing in things]
            try:
                judged = [one.result() for one in judging]
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                raise
        away = [one for one in judged if isinstance(one, Away)]
        if away and len(away) == len(judged):
            raise away[0]
        return [None if isinstance(one, Away) else one for one in judged]

    def scores(
        self,
        question: Question,
        pictures: Sequence[str],
        prompt: str,
        row: Row,
        about: str,
        spent: Spent,
        seed: int = 0,
    ) -> dict[str, float | None] | None:
        """The scores in the answer to a question; None, and a line in the log, if they cannot be read.

        Args:
            pictures: the images as data URLs.
            about: what the question is about, for the log.
            spent: the cost is added to it.

        Raises:
            Away: the endpoint stays away. The log has a line, too.
        """
        reply = None
        try:
            reply = ask_outside(lambda: self._ask(question, pictures, prompt, row, spent, seed), self.patience_s)
            return question.read(reply)
        except NoScore as fault:
            said = f"; the model answered {self.endpoint.quoted(reply.refusal or reply.text)!r}" if reply else ""
            log.warning("no score for %s of the prompt %.100r: %s%s", about, prompt, fault, said)
            return None
        except Away as away:
            log.warning("no score for %s of the prompt %.100r: %s", about, prompt, away)
            raise

    def _ask(
        self, question: Question, pictures: Sequence[str], prompt: str, row: Row, spent: Spent, seed: int
    ) -> Reply:
        """Send a request once, within the budget."""
        text, system = filled(question.text, prompt, row), filled(question.system, prompt, row)
        fields = {**self.fields, "seed": seed, **question.request}
        self.budget.begin_call()
        began = time.perf_counter()
        reply = self.endpoint.ask(pictures, text, system, **fields)
        spent.seconds += time.perf_counter() - began
        spent.tokens_in += reply.tokens_in
        spent.tokens_out += reply.tokens_out
        self.budget.add_tokens(reply.tokens_in + reply.tokens_out)
        return reply

    def costs(self, spent: Spent) -> dict[str, float]:
        """The sub-scores that say what answers have cost: `cost` only if there are prices."""
        cost = (spent.tokens_in * self.price_in + spent.tokens_out * self.price_out) / 1e6
        priced = {"cost": cost} if self.price_in or self.price_out else {}
        tokens = {"tokens_in": float(spent.tokens_in), "tokens_out": float(spent.tokens_out)}
        return {"seconds": spent.seconds, **tokens, **priced}

    def probe(self, questions: Sequence[Question], images: int, option: str) -> str:
        """Ask each question once about grey images, to check the key, the model, and that its answers can be read.

        Args:
            images: the images of a question.
            option: the name of the scorer's option with the questions.

        Raises:
            UserError: the endpoint does not answer, refuses, or an answer has no scores.
        """
        pictures, spent = [data_url(encode_image(np.full((512, 512, 3), 128, np.uint8)))] * images, Spent()
        for question in questions:
            row = dict.fromkeys(question.fields, "probe")
            try:
                question.read(self._ask(question, pictures, "a grey wall", row, spent, seed=0))
            except (Away, JudgeError) as error:
                raise UserError(f"{error}; start the endpoint, or set options.url, model or token_file") from error
            except NoScore as error:
                raise UserError(f"{self.endpoint.url}: {error}; set another options.model or {option}") from error
        return f"{self.endpoint.model} at {self.endpoint.url} answers in {spent.seconds:.1f} s"


def check_asker(scorer: str, url: str, token_file: str | None, token_variable: str, numbers: Mapping[str, Any]) -> None:
    """Check the options of a scorer that asks a model, and that the extra is installed.

    Args:
        numbers: the other options by name. Times and prices must not be negative, and all others are whole numbers
            above 0 or None.

    Raises:
        UserError: one is wrong or missing. The message names it.
    """
    if importlib.util.find_spec("openai") is None:
        raise UserError(f"scorer {scorer}: the client openai is not installed; run `pip install 'tempflow[judge]'`")
    check_url(scorer, url)
    read_token(token_file, token_variable)
    for name, value in numbers.items():
        if name.startswith(("timeout", "patience", "price")):
            if not (isinstance(value, int | float) and 0 <= value < math.inf):
                raise UserError(f"scorer {scorer}: {name} is {value}; it must be a number that is not negative")
        elif name != "extra_body" and value is not None and (type(value) is not int or value < 1):
            raise UserError(f"scorer {scorer}: {name} is {value}; it must be a whole number above 0")
