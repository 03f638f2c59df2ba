"""The questions that a model is asked about images, and the scores that are read from its answers."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, Strict, TypeAdapter, ValidationError, field_validator, model_validator

from services.base.errors import UserError
from services.base.settings import Settings
from services.base.yaml_text import load_yaml
from services.scoring.judge.endpoint import NoScore, Reply
from services.scoring.row import Row

READY = Path(__file__).parent / "rubrics"
"""The folder of the ready rubrics. Each is a YAML file with a list of questions."""
OWN_SUB_SCORES = ("score", "seconds", "tokens_in", "tokens_out", "cost")
"""The sub-scores that the judge adds to those of its rubric."""
LEAST_MASS = 0.5
"""If the two words together have less probability than this, the model says something else, such as a refusal."""
_FIELD = re.compile(r"\{([A-Za-z_]\w*)\}")

Range = Annotated[tuple[float, float], Strict(False)]
"""The worst and the best number of a scale. The first may be the larger one."""


def filled(text: str, prompt: str, row: Row) -> str:
    """A text in which `{prompt}` and `{COLUMN}` are replaced by the prompt and by values of its row.

    Values that are not text are written as JSON. Nothing else is replaced: an inserted value is not read again, and all
    other braces stay as they are.

    Raises:
        KeyError: the row has no such column.
    """
    values = {**row, "prompt": prompt}

    def value(field: re.Match[str]) -> str:
        found = values[field[1]]
        return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)

    return _FIELD.sub(value, text)


def _share(number: float, scale: Range, said: str) -> float:
    """Where a number lies between the ends of a scale: 0 is the worst, 1 the best.

    Raises:
        NoScore: it lies outside.
    """
    worst, best = scale
    if not min(scale) <= number <= max(scale):
        raise NoScore(f"{said} is outside the range from {worst:g} to {best:g}")
    return (number - worst) / (best - worst)


class _Scale(Settings):
    range: Range
    """The worst and the best number. They become 0 and 1."""

    @field_validator("range")
    @classmethod
    def _wide(cls, scale: Range) -> Range:
        if scale[0] == scale[1] or not all(map(math.isfinite, scale)):
            raise ValueError("range must be two different finite numbers, such as [1, 5]")
        return scale


class Probability(Settings):
    """The probability of a word against another one, as the first token of the answer.

    It is p(word) / (p(word) + p(against)), in the manner of VQAScore (arXiv 2404.01291), which takes p("Yes") alone.
    A probability sums over spellings with spaces and in other case. Both words must be single tokens of the model.
    """

    read: Literal["probability"]
    word: str = "Yes"
    """The word of a good image."""
    against: str = "No"
    """The word of a bad image."""

    def score(self, reply: Reply) -> float:
        """The score in [0, 1].

        Raises:
            NoScore: the reply has no log-probabilities, or the two words have less than half of the probability.
        """
        if not reply.first_token:
            raise NoScore("the answer has no log-probabilities; use a server that has them, or another way to read it")
        mass = {self.word.casefold(): 0.0, self.against.casefold(): 0.0}
        for token, logprob in reply.first_token:
            if (word := token.strip().casefold()) in mass:
                mass[word] += math.exp(min(logprob, 0.0))
        good, total = mass[self.word.casefold()], sum(mass.values())
        if total < LEAST_MASS:
            raise NoScore(
                f"`{self.word}` and `{self.against}` together have a probability of {total:.2g} as the first token"
            )
        return good / total


class JsonNumber(_Scale):
    """A number of an answer in JSON. The request asks the server to hold the answer to a schema."""

    read: Literal["json"]

    def score(self, answer: Mapping[str, Any], name: str) -> float:
        """The score in [0, 1].

        Raises:
            NoScore: the answer has no such number, or the number is out of range.
        """
        number = answer.get(name)
        if not isinstance(number, int | float) or isinstance(number, bool):
            raise NoScore(f"the answer has no number `{name}`")
        return _share(number, self.range, f"`{name}`, {number:g},")


class Pattern(_Scale):
    """A number that a regular expression finds in the answer. Of several matches the last one counts."""

    read: Literal["pattern"]
    pattern: str
    """A regular expression of Python with one group, which is the number."""
    not_applicable: str | None = None
    """The text of the group that means that the question does not apply to this image, such as `N/A`."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            groups = re.compile(pattern).groups
        except re.error as error:
            raise ValueError(f"pattern is not a regular expression: {error}") from error
        if groups != 1:
            raise ValueError(f"pattern has {groups} groups; put the number, and nothing else, into one group")
        return pattern

    def score(self, text: str) -> float | None:
        """The score in [0, 1]; None if the question does not apply.

        Raises:
            NoScore: the pattern finds nothing, or no number, or a number out of range.
        """
        found = [match[1] for match in re.finditer(self.pattern, text) if match[1] is not None]
        if not found:
            raise NoScore(f"`{self.pattern}` finds nothing in the answer")
        if found[-1] == self.not_applicable:
            return None
        try:
            number = float(found[-1])
        except ValueError:
            raise NoScore(f"`{self.pattern}` finds {found[-1]!r}, which is not a number") from None
        return _share(number, self.range, f"{number:g}")


Reading = Annotated[Probability | JsonNumber | Pattern, Field(discriminator="read")]


class Question(Settings):
    """One request about an image, or about two, and the scores that its answer has."""

    text: str
    """What is asked. `{prompt}` is replaced by the prompt and `{COLUMN}` by a value of the prompt's row."""
    system: str = ""
    """The system message, with the same fields. Empty for none."""
    scores: dict[str, Reading] = Field(min_length=1)
    """How each score is read from the answer. A probability is the only score of its question, and numbers from JSON
    and from patterns are not mixed."""

    @model_validator(mode="after")
    def _one_kind(self) -> "Question":
        kinds = {reading.read for reading in self.scores.values()}
        if len(kinds) > 1 or (kinds == {"probability"} and len(self.scores) > 1):
            raise ValueError(
                f"{', '.join(self.scores)}: a question has one probability, or numbers that are all read in one way; "
                "ask another question for the others"
            )
        return self

    @property
    def fields(self) -> set[str]:
        """The names in braces, except `prompt`: columns that a prompt's row must have."""
        return set(_FIELD.findall(self.text + self.system)) - {"prompt"}

    @cached_property
    def request(self) -> dict[str, Any]:
        """What the request has beside messages: log-probabilities of one token, or a JSON schema, or nothing."""
        kind = next(iter(self.scores.values())).read
        if kind == "probability":
            return {"logprobs": True, "top_logprobs": 20, "max_completion_tokens": 1}
        ranges = {name: reading.range for name, reading in self.scores.items() if isinstance(reading, JsonNumber)}
        if not ranges:
            return {}
        schema = {
            "type": "object",
            "properties": {
                name: {"type": "number", "minimum": min(scale), "maximum": max(scale)} for name, scale in ranges.items()
            },
            "required": list(ranges),
            "additionalProperties": False,
        }
        named = {"name": "scores", "schema": schema, "strict": True}
        return {"response_format": {"type": "json_schema", "json_schema": named}}

    def read(self, reply: Reply) -> dict[str, float | None]:
        """The scores in an answer, each in [0, 1]; None where one does not apply.

        Raises:
            NoScore: one cannot be read.
        """
        scores: dict[str, float | None] = {}
        answer: Any = None
        for name, reading in self.scores.items():
            match reading:
                case Probability():
                    scores[name] = reading.score(reply)
                case Pattern():
                    scores[name] = reading.score(reply.whole_text())
                case JsonNumber():
                    answer = answer if answer is not None else _json_object(reply.whole_text())
                    scores[name] = reading.score(answer, name)
        return scores


def _json_object(text: str) -> dict[str, Any]:
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        raise NoScore("the answer is not JSON") from None
    if not isinstance(answer, dict):
        raise NoScore("the answer is not a JSON object")
    return answer


def read_rubric(rubric: str | Sequence[Mapping[str, Any]]) -> list[Question]:
    """The questions of a ready rubric, by its name, or of a list.

    Raises:
        UserError: there is no such rubric, or a question is wrong.
    """
    form = Annotated[list[Question], Field(min_length=1)]
    questions: list[Question] = read_ready("vlm_judge", "rubric", rubric, READY, form, "list questions")
    names = [name for question in questions for name in question.scores]
    for name in names:
        if not re.fullmatch("[a-z][a-z0-9_]*", name) or name in OWN_SUB_SCORES or names.count(name) > 1:
            raise UserError(
                f"scorer vlm_judge: a score of the rubric is named `{name}`; use lower case, each name once, and "
                f"none of {', '.join(OWN_SUB_SCORES)}"
            )
    return questions


def read_ready(scorer: str, option: str, given: Any, folder: Path, form: Any, otherwise: str) -> Any:
    """The value of an option that names a ready file, or that has what such a file has.

    Args:
        scorer: the name of the scorer.
        option: the name of the option.
        given: the name of a file in the folder, without its ending, or the value itself.
        folder: the folder of the ready files.
        form: the type of the value.
        otherwise: what a user can do who wants no ready one.

    Raises:
        UserError: there is no such file, or the value does not have the form.
    """
    if isinstance(given, str):
        ready = sorted(file.stem for file in folder.glob("*.yaml"))
        if given not in ready:
            raise UserError(f"scorer {scorer}: {option} is `{given}`; name one of {', '.join(ready)}, or {otherwise}")
        file = folder / f"{given}.yaml"
        given = load_yaml(file.read_text(), str(file))
    try:
        return TypeAdapter(form).validate_python(given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, (option, *first["loc"])))
        raise UserError(f"scorer {scorer}: options.{where}: {first['msg']}") from error
