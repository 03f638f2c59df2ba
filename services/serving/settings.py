"""Settings of the scoring service."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, Strict

from services.base.settings import Listed, Settings
from services.scoring.settings import ScorerSettings


class GatewaySettings(Settings):
    """What the HTTP gateway listens on and accepts."""

    host: str = "127.0.0.1"
    """The address to listen on."""
    port: int = Field(8000, ge=1, le=65535)
    """The port to listen on."""
    gateways: int = Field(1, ge=1)
    """Processes that check requests; the numbers below are those of each."""
    token_file: str | None = None
    """Holds the bearer token that callers must send, and is read again for each request; the environment's
    TEMPFLOW_TOKEN if not given."""
    max_images: int = Field(512, ge=1)
    """The most images of one request."""
    max_bytes: int = Field(64 * 2**20, ge=1)
    """The most bytes of one request's body."""
    max_pixels: int = Field(4096 * 4096, ge=1)
    """The most pixels of one image, read from its header before it is decoded."""
    decoders: int = Field(2, ge=1)
    """Processes that decode images."""
    decode_s: float = Field(2, gt=0)
    """Processor seconds that decoding one image may take."""
    max_request_pixels: int = Field(2**28, ge=1)
    """The most pixels of all images of one request. Decoded, a pixel takes 3 bytes."""
    max_prompt_chars: int = Field(4096, ge=1)
    """The most characters of one prompt. A scorer's work may grow with their square."""
    max_waiting: int = Field(4096, ge=1)
    """The most images in the gateway at once; more are answered 429."""
    max_waiting_pixels: int = Field(2**30, ge=1)
    """The most pixels of the images in the gateway at once; more are answered 429."""
    max_waiting_per_run: int = Field(2048, ge=1)
    """The most images of one run in the gateway at once; callers that name no run count together."""

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"


class PoolSettings(Settings):
    """A reward pool: what `tempflow serve` runs, and what a Serve config file gives `services.serving.app:build`."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Of the Serve application."""
    scorers: Listed[ScorerSettings] = Field(min_length=1)
    serve: GatewaySettings = GatewaySettings()
    deterministic: bool = False
    """Only use algorithms that give the same bits each time, on a GPU too."""
    log_folder: Annotated[Path | None, Strict(False)] = None
    """Where the scorers' logs go, a file each; Ray's own files of the replicas if not given."""
