"""Sends metrics and held-out pictures to TensorBoard and Weights & Biases, in addition to the run folder."""

import importlib.util
import math
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from services.base.errors import UserError
from services.base.storage import write_atomically
from services.http.images import encode_image
from system.recipe.model import LogSettings, RunConfig, WandbSettings

WANDB_KEY = "WANDB_API_KEY"
WANDB_ID_FILE = "wandb_id"


class MetricsLogger(Protocol):
    """Receives the metrics and pictures that a run folder writes."""

    def log_metrics(self, step: int, line: Mapping[str, Any]) -> None:
        """Log metrics of a step, or more metrics of the last step. Values that are not finite numbers are left out."""

    def log_images(self, step: int, images_NHWC: np.ndarray, tag: str = "samples") -> None:
        """Log held-out pictures, uint8, as one tiled picture. The prompts of a tag are the same each time."""

    def forget_after(self, step: int, last: int) -> None:
        """Prepare for the steps after `step`, up to `last`, to be run and logged again."""


def check_loggers(settings: LogSettings) -> None:
    """Check before the run starts that the loggers can work.

    Raises:
        UserError: a package or the key is missing.
    """
    wanted = {"tensorboard": settings.tensorboard, "wandb": settings.wandb is not None}
    for package, is_wanted in wanted.items():
        if is_wanted and importlib.util.find_spec(package) is None:
            raise UserError(f"log.{package}: {package} is not installed; pip install 'tempflow[{package}]'")
    if settings.wandb and settings.wandb.mode == "online" and not os.environ.get(WANDB_KEY):
        raise UserError(f"log.wandb: no key; set {WANDB_KEY} in the environment, or log.wandb.mode=offline")


@contextmanager
def open_loggers(config: RunConfig, folder: Path) -> Iterator[Sequence[MetricsLogger]]:
    """Open the loggers that the recipe asks for. A resumed run continues its earlier logs."""
    with ExitStack() as stack:
        loggers: list[MetricsLogger] = []
        if config.log.tensorboard:
            loggers.append(stack.enter_context(_tensorboard(folder)))
        if config.log.wandb:
            loggers.append(stack.enter_context(_wandb(config, config.log.wandb, folder)))
        yield loggers


class TensorBoard:
    """Writes event files. When steps are repeated, TensorBoard drops the values that it read before.

    Args:
        writer: an `EventFileWriter`.
    """

    def __init__(self, writer: Any) -> None:
        self.writer = writer

    def log_metrics(self, step: int, line: Mapping[str, Any]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._add(step, [Summary.Value(tag=tag, simple_value=value) for tag, value in numbers(line).items()])

    def log_images(self, step: int, images_NHWC: np.ndarray, tag: str = "samples") -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        if not len(images_NHWC):
            return
        grid_HWC = tiled(images_NHWC)
        height, width, _ = grid_HWC.shape
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=encode_image(grid_HWC))
        self._add(step, [Summary.Value(tag=tag, image=image)])

    def forget_after(self, step: int, last: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        if last > step:
            self.writer.add_event(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))

    def _add(self, step: int, values: list[Any]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        self.writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
        self.writer.flush()


class Wandb:
    """Logs to a run on W&B, which cannot delete steps. Repeated steps give the same bits, so they are not sent again.

    If the evaluation of such a step had not been sent before, it is not sent now either.

    Args:
        run: the run that `wandb.init` returns.
    """

    def __init__(self, run: Any) -> None:
        self.run, self.sent = run, -1

    def log_metrics(self, step: int, line: Mapping[str, Any]) -> None:
        if step > self.sent:
            self.run.log({"step": step, **numbers(line)}, step=step)

    def log_images(self, step: int, images_NHWC: np.ndarray, tag: str = "samples") -> None:
        import wandb

        if step > self.sent and len(images_NHWC):
            self.run.log({tag: wandb.Image(tiled(images_NHWC))}, step=step)

    def forget_after(self, step: int, last: int) -> None:
        self.sent = max(self.sent, last)


@contextmanager
def _tensorboard(folder: Path) -> Iterator[TensorBoard]:
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = EventFileWriter(str(folder / "tensorboard"))
    try:
        yield TensorBoard(writer)
    finally:
        writer.close()


@contextmanager
def _wandb(config: RunConfig, settings: WandbSettings, folder: Path) -> Iterator[Wandb]:
    import wandb

    id_file = folder / WANDB_ID_FILE
    if not id_file.exists():
        write_atomically(id_file, uuid.uuid4().hex.encode())
    run = wandb.init(
        project=settings.project,
        entity=settings.entity,
        name=config.name,
        id=id_file.read_text(),
        resume="allow",
        mode=settings.mode,
        dir=folder,
        config=config.model_dump(mode="json"),
        settings=wandb.Settings(console="off", silent=True),
    )
    failed = True
    try:
        yield Wandb(run)
        failed = False
    finally:
        run.finish(exit_code=int(failed))


def numbers(line: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers among the metrics of a step, by key. Item i of a list (sampling step i) gets the key KEY/i."""
    flat: dict[str, Any] = {}
    for key, value in line.items():
        flat |= {f"{key}/{i}": item for i, item in enumerate(value)} if isinstance(value, list) else {key: value}
    kinds = (int, float, np.integer, np.floating)
    return {key: float(value) for key, value in flat.items() if isinstance(value, kinds) and math.isfinite(value)}


def tiled(images_NHWC: np.ndarray) -> np.ndarray:
    """Tile N images into one picture, ⌈√N⌉ in a row. Empty cells are black."""
    count, height, width, channels = images_NHWC.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    cells = np.zeros((rows * columns, height, width, channels), np.uint8)
    cells[:count] = images_NHWC
    return cells.reshape(rows, columns, height, width, channels).swapaxes(1, 2).reshape(rows * height, -1, channels)
