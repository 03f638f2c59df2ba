"""The HTTP gateway of the pool: it checks the token, the limits and the images of each request."""

import asyncio
import hmac
import logging
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
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
from services.http.wire import ARROW, JSON, Answer, BadRequest, Item, read_request, write_answer
from services.scoring.loaded import qualified
from services.scoring.row import BadRow, Row, read_row
from services.scoring.scorer import Needs
from services.scoring.settings import ScorerSettings
from services.serving.decoders import Decoders
from services.serving.docs_page import docs_page
from services.serving.settings import GatewaySettings

log = logging.getLogger(__name__)

RETRY_AFTER_S = 1
STATUS_TIMEOUT_S = 5
STATUS_AT_ONCE = 4
"""The most simultaneous questions to Serve's controller. They have their own threads, so that other work does not delay
health checks."""
REQUESTS_AT_ONCE = 16
"""The most simultaneous requests to one scorer for one caller. Images of many sizes make many requests, which must not
fill the scorer's queue."""
MAX_NAMED_RUNS = 256
"""The most runs that a gateway names in metrics. Each name takes memory in every scorer until the scorer ends."""
OTHER_RUNS = "other"
"""The name in metrics that all further runs share."""

api = FastAPI(title="tempflow reward pool", version="1", docs_url=None, redoc_url=None)
bearer = HTTPBearer(auto_error=False, description="The pool's token, if it has one.")


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


def deployment_name(scorer: str) -> str:
    """The name of a scorer's deployment in the application."""
    return f"scorer-{scorer}"


def _busy(why: str) -> HTTPException:
    return HTTPException(429, f"{why}; send the request again later", {"Retry-After": str(RETRY_AFTER_S)})


@dataclass
class Checked:
    """An image that may be scored."""

    pixels: int
    row: Row


def _fault_of_group(images: list[np.ndarray | None], most: int) -> str | None:
    """Why images cannot be compared in one request of at most `most`; None if they can. A None was not decoded."""
    if len(images) > most:
        return f"has {len(images)} images; at most {most} are compared"
    shapes = {None if image is None else image.shape for image in images}
    if None in shapes:
        return "has an image that cannot be scored"
    return "has images of different sizes" if len(shapes) > 1 else None


class Gateway:
    """Checks requests, decodes their images and asks the scorers."""

    def __init__(
        self,
        application: str,
        settings: GatewaySettings,
        scorers: list[ScorerSettings],
        needs: dict[str, Needs],
        handles: dict[str, DeploymentHandle],
    ) -> None:
        self.application, self.settings, self.needs, self.handles = application, settings, needs, handles
        self.scorers = {scorer.name: scorer for scorer in scorers}
        read_token(settings.token_file)
        self.decoders = Decoders(settings.decoders, settings.decode_s, settings.max_pixels)
        self.status_threads = ThreadPoolExecutor(STATUS_AT_ONCE, "status")
        self.images_of_run: Counter[str] = Counter()
        """The number of images in the gateway, by run."""
        self.pixels = 0
        """The number of pixels of all images in the gateway."""
        self.named_runs: set[str] = set()

    def allowed(self, credentials: HTTPAuthorizationCredentials | None) -> bool:
        """Whether the caller has the pool's token. The comparison takes constant time.

        A token file is read each time, so that a replaced token is no longer accepted.

        Raises:
            UserError: the token file is missing or empty.
        """
        token = read_token(self.settings.token_file)
        if token is None:
            return True
        return credentials is not None and hmac.compare_digest(credentials.credentials.encode(), token.encode())

    @api.post(
        "/v1/score",
        response_model=ScoreAnswer,
        openapi_extra=REQUEST_BODY,
        responses={200: {"content": {ARROW: {}}}, **SCORE_REFUSALS},
    )
    async def score(
        self,
        request: Request,
        credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
        scorers: Annotated[str | None, Query(description="Names, comma-separated; all if not given.")] = None,
        x_tempflow_run: Annotated[
            str, Header(description="The name of the calling run.", max_length=64, pattern="^[ -~]*$")
        ] = "",
    ) -> Response:
        """Score images. For an image that cannot be scored, `errors` has its index and the reason."""
        self._authorize(credentials)
        names = list(dict.fromkeys(scorers.split(","))) if scorers else list(self.scorers)
        if unknown := sorted(set(names) - set(self.scorers)):
            raise HTTPException(404, f"no scorer {', '.join(unknown)}; there are {', '.join(self.scorers)}")
        content_type = request.headers.get("content-type", "")
        try:
            body = await self._body(request)
            limits = self.settings.max_images, self.settings.max_row_bytes
            items = await asyncio.to_thread(read_request, body, content_type, *limits)
        except BadRequest as error:
            raise HTTPException(error.status, str(error)) from error
        self._refuse_missing_groups(names, items)
        checked, errors = await asyncio.to_thread(self._check, names, items)
        if (total := sum(image.pixels for image in checked.values())) > self.settings.max_request_pixels:
            raise HTTPException(413, f"{total} pixels; a request may have at most {self.settings.max_request_pixels}")
        async with self._admitted(len(items), total, x_tempflow_run):
            images, broken = await self.decoders.decode({i: items[i].image for i in checked})
            errors |= broken
            rows = {i: checked[i].row for i in images}
            scores = await self._ask(names, images, items, rows, errors, self._run_on_metrics(x_tempflow_run))
        answer, kind = write_answer(Answer(scores, errors), content_type)
        return Response(answer, media_type=kind)

    @api.get("/v1/scorers", responses=SCORERS_REFUSALS)
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

    @api.get("/readyz", responses=NOT_READY)
    async def readyz(self) -> str:
        """Every scorer has a running replica."""
        running = await self._running()
        if missing := sorted(name for name in self.scorers if not running[name]):
            raise HTTPException(503, f"no replica of {', '.join(missing)} is running")
        return "ok"

    @api.get("/docs", include_in_schema=False)
    async def docs(self) -> Response:
        """The API as a page for people, which loads nothing from another host."""
        return Response(docs_page(api.openapi()), media_type="text/html")

    def _authorize(self, credentials: HTTPAuthorizationCredentials | None) -> None:
        try:
            allowed = self.allowed(credentials)
        except UserError as error:
            log.error("all requests are refused: %s", error)
            raise HTTPException(
                503, "the pool's token cannot be read at the moment; send the request again later"
            ) from error
        if not allowed:
            raise HTTPException(401, "send the pool's token as a bearer token", {"WWW-Authenticate": "Bearer"})

    async def _body(self, request: Request) -> bytes:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > self.settings.max_bytes:
                raise HTTPException(413, f"the body is larger than {self.settings.max_bytes} bytes")
        return bytes(body)

    def _run_on_metrics(self, run: str) -> str:
        """The name of a run in metrics. The first MAX_NAMED_RUNS runs have their own names; the others share one."""
        if len(self.named_runs) < MAX_NAMED_RUNS:
            self.named_runs.add(run)
        return run if run in self.named_runs else OTHER_RUNS

    @asynccontextmanager
    async def _admitted(self, images: int, pixels: int, run: str) -> AsyncIterator[None]:
        """Count images and pixels as being in the gateway while the context lasts.

        Raises:
            HTTPException: 429, immediately, if there would be too many.
        """
        settings, counts = self.settings, self.images_of_run
        if counts[run] + images > settings.max_waiting_per_run or counts.total() + images > settings.max_waiting:
            raise _busy("the pool has too many images waiting")
        if self.pixels + pixels > max(settings.max_waiting_pixels, pixels):
            raise _busy("the pool has too many pixels waiting")
        counts[run] += images
        self.pixels += pixels
        try:
            yield
        finally:
            self.pixels -= pixels
            counts[run] -= images
            if not counts[run]:
                del counts[run]

    def _refuse_missing_groups(self, names: list[str], items: list[Item]) -> None:
        groupwise = [name for name in names if self.needs[name].groupwise]
        if groupwise and any(item.group is None for item in items):
            raise HTTPException(400, f"scorer {groupwise[0]} compares the images of a group; give each item its group")

    def _check(self, names: list[str], items: list[Item]) -> tuple[dict[int, Checked], dict[int, str]]:
        """By index: the images that may be scored, and the reasons why the others may not.

        Rows are read only if a scorer asks for them.
        """
        checked, errors, settings = {}, {}, self.settings
        reads_rows = any(self.needs[name].rows for name in names)
        for i, item in enumerate(items):
            if (length := len(item.prompt)) > settings.max_prompt_chars:
                errors[i] = f"its prompt has {length} characters; at most {settings.max_prompt_chars} are allowed"
                continue
            try:
                row = read_row(bytes(item.row), settings.max_row_bytes) if reads_rows else {}
                checked[i] = Checked(image_pixels(item.image, settings.max_pixels), row)
            except (BadImage, BadRow) as error:
                errors[i] = str(error)
        return checked, errors

    def _batches(
        self, name: str, images: dict[int, np.ndarray], items: list[Item], errors: dict[int, str]
    ) -> list[list[int]]:
        """The images of each request to a scorer, by index.

        A request has images of one size, at most `request_images`. For a groupwise scorer it has one whole group. A
        group that cannot be sent so has an error for each of its images.
        """
        together: dict[Any, list[int]] = defaultdict(list)
        most = self.scorers[name].request_images
        if not self.needs[name].groupwise:
            for i, image in images.items():
                together[image.shape].append(i)
            return [same[start : start + most] for same in together.values() for start in range(0, len(same), most)]
        for i, item in enumerate(items):
            together[item.group].append(i)
        whole = []
        for members in together.values():
            if (fault := _fault_of_group([images.get(i) for i in members], most)) is None:
                whole.append(members)
            for i in members if fault else ():
                errors.setdefault(i, f"{name}: its group {fault}")
        return whole

    async def _ask(
        self,
        names: list[str],
        images: dict[int, np.ndarray],
        items: list[Item],
        rows: dict[int, Row],
        errors: dict[int, str],
        run: str,
    ) -> dict[str, np.ndarray]:
        """Scores (N,) by scorer, and sub-scores. Adds to `errors` why images have no score of a scorer."""
        scores = {name: np.full(len(items), np.nan) for name in names}
        turns = {name: asyncio.Semaphore(REQUESTS_AT_ONCE) for name in names}

        async def ask(name: str, places: list[int]) -> None:
            async with turns[name], asyncio.timeout(self.scorers[name].timeout_s):
                batch = np.stack([images[i] for i in places])
                texts = [items[i].prompt for i in places]
                sent = [rows[i] for i in places] if self.needs[name].rows else []
                scored, _ = await self.handles[name].score.remote(batch, texts, run=run, rows=sent)
            for column, values in {name: scored.score_N, **qualified(name, scored.sub_scores)}.items():
                scores.setdefault(column, np.full(len(items), np.nan))[places] = values
            for i, reason in scored.errors.items():
                errors.setdefault(places[i], f"{name}: {reason}")

        tasks = [
            asyncio.create_task(ask(name, places))
            for name in names
            for places in self._batches(name, images, items, errors)
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
        """The number of running replicas by scorer."""
        try:
            asked = asyncio.get_running_loop().run_in_executor(self.status_threads, serve.status)
            status = await asyncio.wait_for(asked, STATUS_TIMEOUT_S)
        except (TimeoutError, RayError) as error:
            raise HTTPException(503, "Serve's controller does not answer; send the request again later") from error
        if (application := status.applications.get(self.application)) is None:  # Serve's controller has ended
            raise HTTPException(503, "Serve does not know this pool at the moment; send the request again later")
        deployments = application.deployments
        return Counter(
            {
                name: deployments[deployment_name(name)].replica_states.get(ReplicaState.RUNNING, 0)
                for name in self.scorers
            }
        )


GatewayDeployment = serve.deployment(ray_actor_options={"num_cpus": 0}, max_ongoing_requests=1000)(
    serve.ingress(api)(Gateway)
)
