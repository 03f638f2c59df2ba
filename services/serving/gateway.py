"""The HTTP gateway of the pool: it checks the token, the limits and the images of each request."""

import asyncio
import hmac
import logging
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from fastapi import Depends, FastAPI, Header, HTTPException, Query, Request, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ReplicaState

from services.base.errors import UserError, cause_of
from services.http.image_structure import BadImage
from services.http.images import image_pixels
from services.http.session import read_token
from services.http.wire import ARROW, Answer, BadRequest, Item, read_request, write_answer
from services.scoring.loaded import qualified
from services.scoring.row import BadRow, Row, read_row
from services.scoring.scorer import Needs
from services.scoring.settings import ScorerSettings
from services.serving.admission import Admission, Full
from services.serving.decoders import Decoders
from services.serving.docs_page import docs_page
from services.serving.schema import NOT_READY, REQUEST_BODY, SCORE_REFUSALS, SCORERS_REFUSALS, ScoreAnswer, ScorerInfo
from services.serving.settings import GatewaySettings, deployment_name

log = logging.getLogger(__name__)

RETRY_AFTER_S = 1
STATUS_TIMEOUT_S = 5
STATUS_AT_ONCE = 4
"""The most simultaneous questions to Serve's controller. They have their own threads, so that other work does not delay
health checks."""
REQUESTS_AT_ONCE = 16
"""The most simultaneous requests to one scorer for one caller. Images of many sizes make many requests, which must not
fill the scorer's queue."""

api = FastAPI(title="tempflow reward pool", version="1", docs_url=None, redoc_url=None)
bearer = HTTPBearer(auto_error=False, description="The pool's token, if it has one.")


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
        self.admission = Admission(settings)

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
        try:
            with self.admission.admitted(len(items), total, x_tempflow_run):
                images, broken = await self.decoders.decode({i: items[i].image for i in checked})
                errors |= broken
                rows, run = {i: checked[i].row for i in images}, self.admission.name_in_metrics(x_tempflow_run)
                scores = await self._ask(names, images, items, rows, errors, run)
        except Full as full:
            raise _busy(str(full)) from full
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
