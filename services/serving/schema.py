"""The gateway's HTTP API in OpenAPI: the bodies, the answers, and why a request is refused."""

from typing import Any

from pydantic import BaseModel, Field

from services.http.wire import ARROW, JSON


class ItemSchema(BaseModel):
    """One image and its prompt."""

    prompt: str
    image: str = Field(description="Base64 of a PNG, JPEG, WebP or binary PPM.", json_schema_extra={"format": "byte"})
    row: dict[str, Any] = Field({}, description="The other columns of the prompt's row, for scorers that read them.")
    group: str | None = Field(None, description="The name of the image's group, which groupwise scorers need.")


class ImageError(BaseModel):
    """Why one image has no score."""

    index: int
    reason: str


class ScoreAnswer(BaseModel):
    """Scores in the order of the request, and sub-scores as SCORER.SUB; null for an image without a score."""

    scores: dict[str, list[float | None]]
    errors: list[ImageError]


class ScorerInfo(BaseModel):
    """A scorer of the pool."""

    name: str
    scorer: str
    replicas: int


class Refusal(BaseModel):
    """Why a request is refused."""

    detail: str


ARROW_TABLE = {"schema": {"type": "string", "format": "binary", "description": "Arrow IPC stream"}}
ITEMS = {
    "type": "object",
    "properties": {"items": {"type": "array", "items": ItemSchema.model_json_schema(), "minItems": 1}},
    "required": ["items"],
}
"""Written by hand, because FastAPI does not resolve the references of a nested model's schema in `openapi_extra`."""
REQUEST_BODY: dict[str, Any] = {
    "requestBody": {"required": True, "content": {JSON: {"schema": ITEMS}, ARROW: ARROW_TABLE}}
}
"""The body of `POST /v1/score` for the documentation. FastAPI does not read the body itself, because it would load a
body of any size before the token and the limits are checked."""


def _refusals(reasons: dict[int, str]) -> dict[int | str, dict[str, Any]]:
    """The documentation of the statuses of refused requests."""
    return {status: {"model": Refusal, "description": reason} for status, reason in reasons.items()}


NO_TOKEN = {401: "The pool's token is missing or wrong."}
SCORE_REFUSALS = _refusals(
    {
        400: "The body is not a request, it has no images, or a groupwise scorer gets no groups.",
        **NO_TOKEN,
        404: "There is no such scorer.",
        413: "The request has too many bytes, images or pixels.",
        415: "The body is neither JSON nor Arrow.",
        429: "The pool is full; send the request again after Retry-After seconds.",
        502: "A scorer failed.",
        503: "The pool's token cannot be read at the moment.",
        504: "A scorer took longer than its timeout_s.",
    }
)
SCORERS_REFUSALS = _refusals(
    {**NO_TOKEN, 503: "Serve's controller does not answer, or the pool's token cannot be read at the moment."}
)
NOT_READY = _refusals({503: "A scorer has no running replica."})
