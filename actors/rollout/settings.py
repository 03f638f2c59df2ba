"""Settings of the rollout workers."""

from pydantic import Field

from services.base.settings import Gpus, Settings


class RolloutSettings(Settings):
    """The rollout workers."""

    workers: int = Field(1, ge=1)
    """Workers that the run begins with. Their resources are reserved."""
    max_workers: int | None = Field(None, ge=1)
    """Further workers join, up to this many in all, while the cluster has room for them, and may leave again. None join
    if not given."""
    micro_batch: int = Field(24, ge=1)
    """Rows of one transformer forward; the halves of classifier-free guidance count as rows."""
    decode_batch: int = Field(24, ge=1)
    """Latents decoded at once."""
    merge_adapter: bool = False
    """Add the adapter into the base's weights while a task or an evaluation batch is sampled: faster forwards, for a
    copy of the weights that have an adapter in the CPU's memory. The learner's arithmetic stays as it is, so that the
    first ratio is still exactly 1; what the two differ by is in the metric `drift`."""
    num_cpus: float = Field(1, ge=0)
    """CPUs that Ray reserves for one worker."""
    num_gpus: Gpus = 0
    """GPUs that Ray reserves for one worker: a fraction of one, or a whole number."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Labels of the Ray nodes that workers may be placed on; any node if empty."""
    threads: int = Field(1, ge=1)
    """CPU threads of one worker. They are part of the arithmetic: another number gives other last bits."""
    max_bytes_in_flight: int | None = Field(None, ge=1)
    """A task waits while the images of tasks that are begun and not yet scored take this many bytes. If not given, each
    worker may have the images of two tasks: those that it makes, and those that wait for their scores."""
    embedding_bytes: int = Field(2**30, ge=0)
    """Bytes of text embeddings that a worker keeps in memory. A prompt whose embedding is kept is not encoded again."""
    embedding_folder: str | None = None
    """A folder where text embeddings are kept as Arrow files, for all workers and later runs. If not given, they are
    not kept on disk."""
    offload_text_encoders: bool = False
    """Keep the text encoders on the CPU. They are on the GPU only while they encode new prompts."""
    task_timeout_s: float = Field(1800, gt=0)
    """Seconds after which a task counts as lost and its worker is replaced."""

    @property
    def most_workers(self) -> int:
        """Workers that there may be at once."""
        return self.max_workers or self.workers

    def check(self, has_adapter: bool) -> None:
        """Refuse fewer workers at most than the run begins with, and to merge an adapter that there is not.

        Raises:
            ValueError: names the settings.
        """
        if self.merge_adapter and not has_adapter:
            raise ValueError("rollout.merge_adapter: policy.lora is null, so there is no adapter; set it to false")
        if self.max_workers is not None and self.max_workers < self.workers:
            raise ValueError(
                f"rollout.max_workers: {self.max_workers} is less than rollout.workers = {self.workers}; "
                "raise it or lower rollout.workers"
            )
