"""The HTTP side of the pool: who may ask, how much, and what of it can be scored."""

import asyncio
import hmac
import logging
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Annotated, Any

import numpy as np
from fastapi import Depends, FastAPI, Header, HTTPException, Query, Request, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, Field
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ReplicaState

from services.base.errors import UserError, cause_of
from services.http.image_structure import BadImage
from services.http.images import image_pixels
from services.http.session import read_token
from services.http.wire import ARROW, JSON, Answer, BadRequest, read_request, write_answer
from services.scoring.settings import ScorerSettings
from services.serving.decoders import Decoders
from services.serving.docs_page import docs_page
from services.serving.settings import GatewaySettings

log = logging.getLogger(__name__)

RETRY_AFTER_S = 1
STATUS_TIMEOUT_S = 5
STATUS_AT_ONCE = 4
"""Questions to Serve's controller, which wait in threads of their own: no other work keeps health checks waiting."""
REQUESTS_AT_ONCE = 16
"""To one scorer, of one caller's request: images of many sizes make many, which must not fill its queue."""
MAX_LABELS = 256
"""Runs that a gateway tells apart on metrics; each takes memory in every scorer, for good."""

api = FastAPI(title="tempflow reward pool", version="1", docs_url=None, redoc_url=None)
bearer = HTTPBearer(auto_error=False, description="The pool's token, if it has one.")


class Item(BaseModel):
    """One image and its prompt."""

    prompt: str
    image: str = Field(description="Base64 of a PNG, JPEG or WebP.", json_schema_extra={"format": "byte"})


class ImageError(BaseModel):
    """Why one image has no score."""

    index: int
    reason: str


class ScoreAnswer(BaseModel):
    """Scores in the order of the request; null where there is none."""

    scores: dict[str, list[float | None]]
    errors: list[ImageError]


class ScorerInfo(BaseModel):
    """A scorer of the pool."""

    name: str
    scorer: str
    replicas: int


ARROW_TABLE = {"schema": {"type": "string", "format": "binary", "description": "Arrow IPC stream"}}
ITEMS = {
    "type": "object",
    "properties": {"items": {"type": "array", "items": Item.model_json_schema(), "minItems": 1}},
    "required": ["items"],
}
SCORE_DOCS: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {JSON: {"schema": ITEMS}, ARROW: ARROW_TABLE},
    }
}


REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"description": "The body is not a request, or it has no images."},
    401: {"description": "The pool asks for a token, and this is not it."},
    404: {"description": "No such scorer."},
    413: {"description": "Too many bytes, images or pixels."},
    415: {"description": "Neither JSON nor Arrow."},
    429: {"description": "The pool has its fill; come again after Retry-After."},
    502: {"description": "A scorer failed."},
    503: {"description": "The pool's token cannot be read at the moment."},
    504: {"description": "A scorer took longer than its timeout_s."},
}
UNKNOWN: dict[int | str, dict[str, Any]] = {
    503: {"description": "Serve's controller does not answer, or the pool's token cannot be read at the moment."}
}


def deployment_name(scorer: str) -> str:
    """Of a scorer's deployment in the application."""
    return f"scorer-{scorer}"


def _busy(why: str) -> HTTPException:
    return HTTPException(429, f"{why}; come again", {"Retry-After": str(RETRY_AFTER_S)})


@serve.deployment(ray_actor_options={"num_cpus": 0}, max_ongoing_requests=1000)
@serve.ingress(api)
class Gateway:
    """Checks requests, decodes their images and asks the scorers."""

    def __init__(
        self,
        application: str,
        settings: GatewaySettings,
        scorers: list[ScorerSettings],
        handles: dict[str, DeploymentHandle],
    ) -> None:
        self.application, self.settings, self.handles = application, settings, handles
        self.scorers = {scorer.name: scorer for scorer in scorers}
        read_token(settings.token_file)
        self.decoders = Decoders(settings.decoders, settings.decode_s, settings.max_pixels)
        self.status_threads = ThreadPoolExecutor(STATUS_AT_ONCE, "status")
        self.inside: Counter[str] = Counter()
        self.pixels = 0
        self.labels: set[str] = set()

    def allowed(self, credentials: HTTPAuthorizationCredentials | None) -> bool:
        """Whether the caller has the pool's token, compared in constant time; a token file is read each time, so that
        a token which has been replaced there is worth nothing any more.

        Raises:
            UserError: the token file is missing or empty.
        """
        token = read_token(self.settings.token_file)
        if token is None:
            return True
        return credentials is not None and hmac.compare_digest(credentials.credentials.encode(), token.encode())

    @api.post("/v1/score", openapi_extra=SCORE_DOCS, responses={200: {"content": {ARROW: {}}}, **REFUSALS})
    async def score(
        self,
        request: Request,
        credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
        scorers: Annotated[str | None, Query(description="Names, comma-separated; all if not given.")] = None,
        x_tempflow_run: Annotated[
            str, Header(description="Label of the calling run.", max_length=64, pattern="^[ -~]*$")
        ] = "",
    ) -> ScoreAnswer:
        """Score images: one that cannot be scored fails alone, with its index and the reason."""
        self._authorize(credentials)
        names = list(dict.fromkeys(scorers.split(","))) if scorers else list(self.scorers)
        if unknown := sorted(set(names) - set(self.scorers)):
            raise HTTPException(404, f"no scorer {', '.join(unknown)}; there are {', '.join(self.scorers)}")
        content_type = request.headers.get("content-type", "")
        try:
            body = await self._body(request)
            prompts, encoded = await asyncio.to_thread(read_request, body, content_type, self.settings.max_images)
        except BadRequest as error:
            raise HTTPException(error.status, str(error)) from error
        pixels, errors = await asyncio.to_thread(self._measure, prompts, encoded)
        if (total := sum(pixels.values())) > self.settings.max_request_pixels:
            raise HTTPException(413, f"{total} pixels; a request holds at most {self.settings.max_request_pixels}")
        async with self._room(len(prompts), total, x_tempflow_run):
            images, broken = await self.decoders.decode({i: encoded[i] for i in pixels})
            errors |= broken
            scores = await self._ask(names, images, prompts, self._label(x_tempflow_run))
        answer, kind = write_answer(Answer(scores, errors), content_type)
        return Response(answer, media_type=kind)  # type: ignore[return-value]

    @api.get("/v1/scorers", responses={401: REFUSALS[401], **UNKNOWN})
    async def list_scorers(
        self, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]
    ) -> list[ScorerInfo]:
        """The pool's scorers and how many replicas of each are running."""
        self._authorize(credentials)
        running = await self._running()
        return [ScorerInfo(name=s.name, scorer=s.scorer, replicas=running[s.name]) for s in self.scorers.values()]

    @api.get("/healthz")
    async def healthz(self) -> str:
        """The gateway is alive."""
        return "ok"

    @api.get("/readyz", responses={503: {"description": "A scorer has no running replica."}})
    async def readyz(self) -> str:
        """Every scorer has a running replica."""
        running = await self._running()
        if missing := sorted(name for name in self.scorers if not running[name]):
            raise HTTPException(503, f"no replica of {', '.join(missing)} is running")
        return "ok"

    @api.get("/docs", include_in_schema=False)
    async def docs(self) -> Response:
        """The API for people, on a page that loads nothing."""
        return Response(docs_page(api.openapi()), media_type="text/html")

    def _authorize(self, credentials: HTTPAuthorizationCredentials | None) -> None:
        try:
            allowed = self.allowed(credentials)
        except UserError as error:
            log.error("nobody is let in: %s", error)
            raise HTTPException(503, "the pool's token cannot be read at the moment; come again") from error
        if not allowed:
            raise HTTPException(401, "send the pool's token as a bearer token", {"WWW-Authenticate": "Bearer"})

    async def _body(self, request: Request) -> bytes:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > self.settings.max_bytes:
                raise HTTPException(413, f"the body is larger than {self.settings.max_bytes} bytes")
        return bytes(body)

    def _label(self, run: str) -> str:
        """What a run is called on metrics: its name, for the first MAX_LABELS of them."""
        if len(self.labels) < MAX_LABELS:
            self.labels.add(run)
        return run if run in self.labels else "other"

    @asynccontextmanager
    async def _room(self, images: int, pixels: int, run: str) -> AsyncIterator[None]:
        """A place for `images`; nothing waits here without bound."""
        settings = self.settings
        mine, all_of = self.inside[run] + images, self.inside.total() + images
        if mine > settings.max_waiting_per_run or all_of > settings.max_waiting:
            raise _busy("the pool has its fill of images")
        if self.pixels + pixels > max(settings.max_waiting_pixels, pixels):
            raise _busy("the pool has its fill of pixels")
        self.inside[run] += images
        self.pixels += pixels
        try:
            yield
        finally:
            self.pixels -= pixels
            self.inside[run] -= images
            if not self.inside[run]:
                del self.inside[run]

    def _measure(self, prompts: list[str], encoded: list[bytes]) -> tuple[dict[int, int], dict[int, str]]:
        """By index: pixels of images that seem fit to be scored, and why the others are not."""
        pixels, errors, most = {}, {}, self.settings.max_prompt_chars
        for i, (prompt, data) in enumerate(zip(prompts, encoded, strict=True)):
            if len(prompt) > most:
                errors[i] = f"its prompt has {len(prompt)} characters; at most {most} are read"
                continue
            try:
                pixels[i] = image_pixels(data, self.settings.max_pixels)
            except BadImage as error:
                errors[i] = str(error)
        return pixels, errors

    async def _ask(
        self, names: list[str], images: dict[int, np.ndarray], prompts: list[str], run: str
    ) -> dict[str, np.ndarray]:
        """Scores (N,) by scorer: images of one size go out together, in requests of a scorer's own bound."""
        by_shape = defaultdict(list)
        for i, image in images.items():
            by_shape[image.shape].append(i)
        scores = {name: np.full(len(prompts), np.nan) for name in names}
        turns = {name: asyncio.Semaphore(REQUESTS_AT_ONCE) for name in names}

        async def ask(name: str, rows: list[int]) -> None:
            async with turns[name], asyncio.timeout(self.scorers[name].timeout_s):
                batch = np.stack([images[i] for i in rows])
                texts = [prompts[i] for i in rows]
                scores[name][rows], _ = await self.handles[name].score.remote(batch, texts, run=run)

        tasks = [
            asyncio.create_task(ask(name, rows[start : start + self.scorers[name].request_images]))
            for name in names
            for rows in by_shape.values()
            for start in range(0, len(rows), self.scorers[name].request_images)
        ]
        try:
            await asyncio.gather(*tasks)
        except BackPressureError as error:
            raise _busy("the scorers' queues are full") from error
        except TimeoutError as error:
            raise HTTPException(504, "a scorer took longer than its timeout_s") from error
        except (RayError, RayServeException) as error:
            log.warning("a scorer failed: %s", cause_of(error))
            raise HTTPException(502, f"a scorer failed: {type(cause_of(error)).__name__}") from error
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return scores

    async def _running(self) -> Counter[str]:
        """Running replicas by scorer."""
        try:
            asked = asyncio.get_running_loop().run_in_executor(self.status_threads, serve.status)
            status = await asyncio.wait_for(asked, STATUS_TIMEOUT_S)
        except (TimeoutError, RayError) as error:
            raise HTTPException(503, "Serve's controller does not answer; come again") from error
        deployments = status.applications[self.application].deployments
        return Counter(
            {
                name: deployments[deployment_name(name)].replica_states.get(ReplicaState.RUNNING, 0)
                for name in self.scorers
            }
        )
