"""Settings of the scoring service."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, Strict

from services.base.settings import Listed, Settings
from services.scoring.settings import ScorerSettings


class GatewaySettings(Settings):
    """The address and the limits of the HTTP gateway."""

    host: str = "127.0.0.1"
    """The address to listen on."""
    port: int = Field(8000, ge=1, le=65535)
    """The port to listen on."""
    gateways: int = Field(1, ge=1)
    """The number of gateway processes. The limits below apply to each of them."""
    token_file: str | None = None
    """The file with the bearer token that callers must send. It is read again for each request. If not given, the token
    is the environment variable TEMPFLOW_TOKEN."""
    max_images: int = Field(512, ge=1)
    """The most images in one request."""
    max_bytes: int = Field(64 * 2**20, ge=1)
    """The most bytes in one request's body."""
    max_pixels: int = Field(4096 * 4096, ge=1)
    """The most pixels in one image. They are read from the image's header before it is decoded."""
    decoders: int = Field(2, ge=1)
    """The number of processes that decode images."""
    decode_s: float = Field(2, gt=0)
    """The most CPU seconds for decoding one image."""
    max_request_pixels: int = Field(2**28, ge=1)
    """The most pixels in all images of one request. A decoded pixel takes 3 bytes."""
    max_prompt_chars: int = Field(4096, ge=1)
    """The most characters in one prompt. A scorer's work may grow with the square of the length."""
    max_row_bytes: int = Field(4096, ge=2)
    """The most bytes in the JSON of one prompt's row, which scorers may ask for."""
    max_waiting: int = Field(4096, ge=1)
    """The most images in the gateway at once. Further requests are answered 429."""
    max_waiting_pixels: int = Field(2**30, ge=1)
    """The most pixels in the gateway at once. Further requests are answered 429."""
    max_waiting_per_run: int = Field(2048, ge=1)
    """The most images of one run in the gateway at once. Callers that name no run count as one run."""

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"


class PoolSettings(Settings):
    """The settings of a reward pool, for `tempflow serve` and for `services.serving.app:build` in a Serve file."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """The name of the Serve application."""
    scorers: Listed[ScorerSettings] = Field(min_length=1)
    serve: GatewaySettings = GatewaySettings()
    deterministic: bool = False
    """Use only algorithms that give the same bits each time, also on a GPU."""
    log_folder: Annotated[Path | None, Strict(False)] = None
    """The folder for one log file per scorer. If not given, the logs are in Ray's own files."""


def deployment_name(scorer: str) -> str:
    """The name of a scorer's deployment in the application."""
    return f"scorer-{scorer}"
