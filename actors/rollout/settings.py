"""Settings of the rollout workers."""

from pydantic import Field

from services.base.settings import Gpus, Settings


class RolloutSettings(Settings):
    """The rollout workers."""

    workers: int = Field(1, ge=1)
    """Workers that the run begins with, on reserved resources."""
    max_workers: int | None = Field(None, ge=1)
    """More, up to this many, come while the cluster has room for them, and may go again; none if not given."""
    micro_batch: int = Field(24, ge=1)
    """Rows of one transformer forward; the halves of classifier-free guidance count as rows."""
    decode_batch: int = Field(24, ge=1)
    """Latents decoded at once."""
    num_cpus: float = Field(1, ge=0)
    num_gpus: Gpus = 0
    labels: dict[str, str] = Field(default_factory=dict)
    """Labels of the Ray nodes that workers may be placed on; any node if empty."""
    threads: int = Field(1, ge=1)
    """CPU threads of one worker. Part of the arithmetic: another count gives other last bits."""
    max_bytes_in_flight: int | None = Field(None, ge=1)
    """A task waits while the images of those begun and not yet scored take this many bytes; if not given, a worker may
    have two tasks' images: those it makes, and those that wait for their scores."""
    embedding_bytes: int = Field(2**30, ge=0)
    """Text embeddings that a worker keeps in memory; each distinct prompt is encoded once while it is kept."""
    embedding_folder: str | None = None
    """Where text embeddings are kept as Arrow files, for all workers and later runs; nowhere if not given."""
    offload_text_encoders: bool = False
    """Keep the text encoders on the CPU, and on the GPU only while they encode prompts that are new."""
    task_timeout_s: float = Field(1800, gt=0)
    """A task that takes longer counts as lost."""

    @property
    def most_workers(self) -> int:
        """Workers that there may be at once."""
        return self.max_workers or self.workers

    def check(self) -> None:
        """Refuse fewer workers at most than the run begins with.

        Raises:
            ValueError: names both numbers.
        """
        if self.max_workers is not None and self.max_workers < self.workers:
            raise ValueError(
                f"rollout.max_workers: {self.max_workers} is less than rollout.workers = {self.workers}; "
                "raise it or lower rollout.workers"
            )
