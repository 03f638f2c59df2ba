"""Settings of the rollout workers."""

from pydantic import Field

from services.base.settings import Gpus, Settings


class RolloutSettings(Settings):
    """Settings of the rollout workers."""

    workers: int = Field(1, ge=1)
    """The number of workers that the run begins with. Their resources are reserved."""
    max_workers: int | None = Field(None, ge=1)
    """The most workers in all. Workers beyond `workers` join while the cluster has room for them, and may leave again.
    If not given, none join."""
    micro_batch: int = Field(24, ge=1)
    """Rows in one transformer forward. The two halves of classifier-free guidance count as rows."""
    decode_batch: int = Field(24, ge=1)
    """Latents decoded at once."""
    merge_adapter: bool = False
    """Add the adapter to the base's weights while a task or an evaluation batch is sampled. Forwards are then faster,
    but CPU memory holds a copy of the weights that have an adapter. The learner's arithmetic does not change, so the
    first ratio is still exactly 1. The metric `drift` shows the difference between the two."""
    num_cpus: float = Field(1, ge=0)
    """CPUs that Ray reserves for one worker."""
    num_gpus: Gpus = 0
    """GPUs that Ray reserves for one worker: a fraction of one GPU, or a whole number."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Labels that a Ray node must have to run workers. If empty, any node may run them."""
    threads: int = Field(1, ge=1)
    """CPU threads of one worker. Another number changes the last bits of the images."""
    max_bytes_in_flight: int | None = Field(None, ge=1)
    """The most bytes of images that are being generated or wait for scores. Further tasks wait. If not given, there
    is room for the images of two tasks per worker: one that it generates, and one that waits for scores."""
    embedding_bytes: int = Field(2**30, ge=0)
    """Bytes of text embeddings that a worker keeps in memory, so that it need not encode their prompts again."""
    embedding_folder: str | None = None
    """The folder in which text embeddings are stored as Arrow files, for all workers and later runs. If not given, they
    are not stored on disk."""
    offload_text_encoders: bool = False
    """Keep the text encoders on the CPU, and move them to the GPU only while they encode new prompts."""
    task_timeout_s: float = Field(1800, gt=0)
    """Seconds after which a task counts as lost and its worker is replaced."""

    @property
    def most_workers(self) -> int:
        """The most workers at once."""
        return self.max_workers or self.workers

    def check(self, has_adapter: bool) -> None:
        """Refuse a `max_workers` below `workers`, and `merge_adapter` without an adapter.

        Raises:
            ValueError: the settings do not fit together. The message names them.
        """
        if self.merge_adapter and not has_adapter:
            raise ValueError("rollout.merge_adapter: policy.lora is null, so there is no adapter; set it to false")
        if self.max_workers is not None and self.max_workers < self.workers:
            raise ValueError(
                f"rollout.max_workers: {self.max_workers} is less than rollout.workers = {self.workers}; "
                "raise it or lower rollout.workers"
            )
