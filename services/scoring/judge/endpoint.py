"""Asks an OpenAI-compatible endpoint with the official client. The answers of the endpoint are not trusted."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from services.base.patience import Away
from services.http.session import BUSY, CONNECT_S, retry_after_s

if TYPE_CHECKING:
    import httpx2

MAX_ANSWER_BYTES = 2**20
"""An answer with more bytes is not read to its end."""
MAX_TEXT = 32_768
"""An answer with more characters has no score: patterns would take long to search it."""
CLOSED = (401, 403, 404)
"""The HTTP statuses that all requests would get: a wrong key, or no such model."""
QUOTED = 500
"""The most characters of an answer in an error or in the log."""


class JudgeError(Exception):
    """The endpoint would refuse every request, or the budget is spent. The message quotes the answer."""


class NoScore(Exception):
    """An answer without a score. The message says why."""


class _Top(msgspec.Struct):
    token: str
    logprob: float


class _Token(msgspec.Struct):
    top_logprobs: list[_Top] = []


class _Logprobs(msgspec.Struct):
    content: list[_Token] | None = None


class _Message(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: Annotated[int, msgspec.Meta(ge=0, le=2**31)] = 0
    completion_tokens: Annotated[int, msgspec.Meta(ge=0, le=2**31)] = 0


class _Completion(msgspec.Struct):
    choices: list[_Choice]
    usage: _Usage | None = None


@dataclass(frozen=True)
class Reply:
    """An answer of the model."""

    text: str
    refusal: str | None
    """The model's reason for not answering, where the endpoint has a field for it."""
    cut_off: bool
    """The answer ended because it had as many tokens as it may have."""
    first_token: list[tuple[str, float]]
    """The likeliest first tokens with their natural log-probabilities. Empty if they were not asked for."""
    tokens_in: int
    tokens_out: int

    def whole_text(self) -> str:
        """The text of an answer that is complete.

        Raises:
            NoScore: the model refused, said nothing or too much, or was cut off.
        """
        if self.refusal:
            raise NoScore("the model refused")
        if self.cut_off:
            raise NoScore("the answer was cut off; raise options.max_tokens")
        if not self.text.strip():
            raise NoScore("the answer is empty")
        if len(self.text) > MAX_TEXT:
            raise NoScore(f"the answer has {len(self.text)} characters; at most {MAX_TEXT} are read")
        return self.text


class Endpoint:
    """A model behind an OpenAI-compatible address.

    The client's own retries are off: whoever calls `ask` decides how long to repeat it.

    Args:
        url: the address that ends before `/chat/completions`, such as http://127.0.0.1:8000/v1.
        token: the API key. None sends the word `none`, because the client needs a key.
        timeout_s: seconds for one answer, from the request to its last byte.
        extra_body: fields of each request's JSON. They replace the fields of the same name.
    """

    def __init__(
        self, url: str, model: str, token: str | None, timeout_s: float, extra_body: Mapping[str, Any] | None = None
    ) -> None:
        import httpx2
        import openai

        logging.getLogger("httpx2").setLevel(logging.WARNING)  # it logs a line for each request
        self.url, self.model, self.token, self.extra_body = url, model, token, dict(extra_body or {})
        # The client would take these from the environment, where they belong to another service.
        foreign: Any = {"OpenAI-Organization": openai.Omit(), "OpenAI-Project": openai.Omit()}
        self.client = openai.OpenAI(
            api_key=token or "none",
            base_url=url,
            max_retries=0,
            timeout=httpx2.Timeout(timeout_s, connect=min(CONNECT_S, timeout_s)),
            default_headers={"Accept-Encoding": "identity", **foreign},
            http_client=openai.DefaultHttpxClient(
                transport=bounded_transport(timeout_s), trust_env=False, follow_redirects=False
            ),
        )

    def ask(self, images: Sequence[str], text: str, system: str = "", **fields: Any) -> Reply:
        """Ask the model about images once.

        Args:
            images: data URLs, as `services.http.images.data_url` makes them. They come before the text.
            fields: other fields of the request.

        Raises:
            Away: the endpoint does not answer in time, or is busy.
            JudgeError: it refuses the key, or does not have the model, or has no credit left.
            NoScore: it refuses this request, or its answer is not a completion with one choice.
        """
        import openai

        content: list[Any] = [{"type": "image_url", "image_url": {"url": image}} for image in images]
        content.append({"type": "text", "text": text})
        messages: list[Any] = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": content})
        try:
            answer = self.client.chat.completions.with_raw_response.create(
                model=self.model, messages=messages, extra_body={**fields, **self.extra_body}
            )
        except openai.APIStatusError as error:
            raise self._refused(error) from error
        except openai.APIConnectionError as error:
            if isinstance(error.__cause__, NoScore):
                raise error.__cause__ from None
            why = type(error.__cause__ or error).__name__
            raise Away(f"no answer from {self.url}: {why}") from error
        return self._reply(answer.content)

    def quoted(self, text: str) -> str:
        """A text of the endpoint for a message: its beginning, without the key, which the endpoint may repeat."""
        return (text.replace(self.token, "…") if self.token else text)[:QUOTED]

    def _refused(self, error: Any) -> Exception:
        status, text = error.status_code, error.response.text
        said = f"{self.url} answered {status}: {self.quoted(text)}"
        if "insufficient_quota" in text or status in CLOSED:
            return JudgeError(said)
        if status not in BUSY:
            return NoScore(said)
        away = Away(said)
        away.after_s = retry_after_s(error.response.headers.get("Retry-After"))
        return away

    def _reply(self, body: bytes) -> Reply:
        try:
            completion = msgspec.json.decode(body, type=_Completion)
        except (ValueError, RecursionError):
            text = body[: 4 * QUOTED].decode(errors="replace")
            raise NoScore(f"{self.url} answered without a completion: {self.quoted(text)}") from None
        if len(completion.choices) != 1:
            raise NoScore(f"{self.url} answered with {len(completion.choices)} choices instead of one")
        choice, usage = completion.choices[0], completion.usage or _Usage()
        tokens = (choice.logprobs and choice.logprobs.content) or []
        return Reply(
            choice.message.content or "",
            choice.message.refusal,
            choice.finish_reason == "length",
            [(top.token, top.logprob) for top in tokens[0].top_logprobs] if tokens else [],
            usage.prompt_tokens,
            usage.completion_tokens,
        )


def bounded_transport(timeout_s: float) -> "httpx2.BaseTransport":
    """A transport whose answers end after `MAX_ANSWER_BYTES` and after `timeout_s`, and are never compressed.

    The client's own timeout is for each read, so an endpoint that sends a byte now and then would never end.
    """
    import httpx2

    class Bounded(httpx2.SyncByteStream):
        def __init__(self, stream: Any, request: Any, deadline: float) -> None:
            self.stream, self.request, self.deadline = stream, request, deadline

        def __iter__(self) -> Iterator[bytes]:
            left = MAX_ANSWER_BYTES
            for part in self.stream:
                left -= len(part)
                if left < 0:
                    raise NoScore(f"the answer has more than {MAX_ANSWER_BYTES} bytes")
                if time.monotonic() > self.deadline:
                    raise httpx2.ReadTimeout("the answer takes too long", request=self.request)
                yield part

        def close(self) -> None:
            self.stream.close()

    class Transport(httpx2.HTTPTransport):
        def handle_request(self, request: Any) -> Any:
            deadline = time.monotonic() + timeout_s
            answer = super().handle_request(request)
            if answer.headers.get("Content-Encoding", "identity") != "identity":
                answer.close()
                raise NoScore("the answer is compressed, which was not asked for")
            answer.stream = Bounded(answer.stream, request, deadline)
            return answer

    return Transport()
