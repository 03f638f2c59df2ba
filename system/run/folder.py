"""The folder of an open run: everything that its driver writes there. `files.py` lists the content.

The order of writing within a step: its other files first, then its line of metrics, then its checkpoint's manifest.
"""

import io
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from services.base.storage import write_atomically
from system.recipe.evaluation import DEFAULT_SET
from system.run.files import RunFiles, eval_folder, eval_folders, samples_folder, subfolder, tables
from system.run.loggers import MetricsLogger
from system.run.metrics_file import MetricsFile, missing_steps
from system.run.recorded import Recorded

log = logging.getLogger(__name__)

MAX_PICTURES, NEWEST_PICTURES = 100, 20
"""The most steps whose training images are kept, and how many of them are the newest. The others are spread evenly."""


class RunFolder(RunFiles):
    """Writes the folder of a run. `opening.open_run` makes it and keeps other drivers out.

    Args:
        recorded: the recipe and the identity of the run.
        notes: sentences about how the run was opened, for the log file, which does not exist yet at that moment.
    """

    def __init__(self, path: Path, recorded: Recorded, notes: Sequence[str]) -> None:
        super().__init__(path)
        self.recorded, self.notes = recorded, notes
        self.recipe = recorded.text()
        """The text of config.yaml, which each checkpoint contains, too."""
        self.loggers: Sequence[MetricsLogger] = ()
        """These loggers receive the metrics and pictures that are written to the folder."""

    @property
    def trained(self) -> Path:
        """The weights that were saved last: `lora/`, or `transformer/` if every weight is trained."""
        return self.path / ("lora" if self.recorded.config.policy.lora else "transformer")

    @property
    def best(self) -> Path:
        """The trained weights with the best held-out reward, in the layout of `trained`."""
        return self.path / "best"

    def write_recipe(self) -> None:
        write_atomically(self.config_file, self.recipe.encode())

    def append_metrics(self, line: dict[str, Any]) -> None:
        MetricsFile(self.metrics_file).append(line)
        for logger in self.loggers:
            logger.log_metrics(line["step"], line)

    def amend_metrics(self, extra: dict[str, Any]) -> None:
        """Add keys to the last line."""
        step = MetricsFile(self.metrics_file).amend(extra)["step"]
        for logger in self.loggers:
            logger.log_metrics(step, extra)

    def has_eval(self, step: int, sets: Iterable[str]) -> bool:
        """Whether the evaluation of a step is recorded for each of these sets."""
        return all((self.path / eval_folder(name) / f"step_{step:06d}.parquet").exists() for name in sets)

    def forget_after(self, step: int) -> None:
        """Drop everything recorded after `step`, so that a resumed run records it again.

        The log names the steps up to `step` whose metrics are missing, unless the folder is new.
        """
        lines, was_new = self.read_metrics(), not self.begun
        MetricsFile(self.metrics_file).forget_after(step)
        if not was_new and (missing := missing_steps(lines, step)):
            log.warning("%s has no intact line for step %s", self.metrics_file, missing)
        for folder in (self.path / "experience", self.path / "pictures", *eval_folders(self.path).values()):
            for of_step, file in tables(folder).items():
                if of_step > step:
                    file.unlink()
        for logger in self.loggers:
            logger.forget_after(step, lines[-1]["step"] if lines else -1)

    def write_experience(self, step: int, table: pa.Table) -> None:
        self._write_table("experience", step, table)
        for logger in self.loggers:
            logger.log_experience(step, table)

    def write_eval(self, step: int, table: pa.Table, name: str = DEFAULT_SET) -> None:
        """Write the scores of a held-out set."""
        self._write_table(eval_folder(name), step, table)

    def write_pictures(self, step: int, table: pa.Table) -> None:
        """Write the images of a training step. Beyond MAX_PICTURES files, those of another step are removed."""
        self._write_table("pictures", step, table)
        files = tables(self.path / "pictures")
        if len(files) > MAX_PICTURES:
            files[superfluous(list(files)[:-NEWEST_PICTURES])].unlink(missing_ok=True)

    def _write_table(self, folder: str, step: int, table: pa.Table) -> None:
        content = io.BytesIO()
        pq.write_table(table, content, compression="zstd")
        write_atomically(self.path / folder / f"step_{step:06d}.parquet", content.getbuffer())

    def write_samples(
        self, step: int, images_NHWC: np.ndarray, captions: Sequence[str], name: str = DEFAULT_SET
    ) -> None:
        """Write pictures of a held-out set. The loggers get them with their captions."""
        folder = samples_folder(self.path, step, name)
        for i, image in enumerate(images_NHWC):
            content = io.BytesIO()
            Image.fromarray(image).save(content, "PNG")
            write_atomically(folder / f"{i:03d}.png", content.getbuffer())
        for logger in self.loggers:
            logger.log_images(step, str(Path("samples", subfolder(name))), images_NHWC, captions)

    def log_training(self, step: int, images_NHWC: np.ndarray, captions: Sequence[str]) -> None:
        """Send training images to the loggers. The folder keeps them with `write_pictures`."""
        for logger in self.loggers:
            logger.log_images(step, "training", images_NHWC, captions)


def superfluous(steps: Sequence[int]) -> int:
    """The step whose neighbours are closest to each other, the earliest of several; never the first or the last.

    Args:
        steps: in order, at least three.
    """
    gaps = [after - before for before, after in zip(steps, steps[2:], strict=False)]
    return steps[1 + gaps.index(min(gaps))]
