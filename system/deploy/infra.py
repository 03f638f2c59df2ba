"""What a recipe does not know: the cluster's nodes, image, volumes, secrets and queues."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from services.errors import UserError
from services.settings import Listed, Settings
from system.config import parse_config, read_mapping

QUANTITY = r"^[0-9]+(\.[0-9]+)?(Ki|Mi|Gi|Ti)?$"
NAME = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"


class Nodes(Settings):
    """The pods of a role, all alike; each is a Ray node."""

    cpus: int = Field(4, ge=1)
    memory: str = Field("16Gi", pattern=QUANTITY)
    gpus: int = Field(0, ge=0)
    gpu_resource: str = "nvidia.com/gpu"
    """Or a slice of one, such as `nvidia.com/mig-3g.40gb`."""
    resources: dict[str, str] = Field(default_factory=dict)
    """Further ones, such as `rdma/hca: "1"`."""
    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerations: list[dict[str, Any]] = Field(default_factory=list)
    runtime_class: str | None = None
    environment: dict[str, str] = Field(default_factory=dict)
    """Variables that anybody may read, such as `NCCL_SOCKET_IFNAME`; Secrets are named under `secrets`."""
    grace_s: int = Field(120, ge=1)
    """From SIGTERM to SIGKILL: time to drain, and for the checkpoint of a stopped run."""


class PoolNodes(Nodes):
    """The pods of the reward pool."""

    service: str | None = Field(None, pattern=NAME, max_length=47)
    """Name of the RayService; that of the recipe with `-pool` if not given. Jobs with the same name share it."""


class Volume(Settings):
    """A PersistentVolumeClaim."""

    claim: str = Field(pattern=NAME)
    size: str | None = Field(None, pattern=QUANTITY)
    """Makes the claim; it is there already if not given."""
    storage_class: str | None = None
    access: Literal["ReadWriteMany", "ReadWriteOnce"] = "ReadWriteMany"
    """`ReadWriteOnce` is for a Kubernetes of one node: all pods of a job mount the volume."""


class _Either(Settings):
    """Settings of which exactly one of two keys is given."""

    either: ClassVar[tuple[str, str]]

    @model_validator(mode="after")
    def _one(self) -> _Either:
        if sum(getattr(self, key) is not None for key in self.either) != 1:
            raise ValueError(f"{type(self).__name__.lower()}: give {' or '.join(self.either)}")
        return self


class Models(_Either):
    """Where model weights lie, as a cache in the hub's layout or as plain folders: read-only, at /models."""

    either = ("claim", "image")
    claim: str | None = Field(None, pattern=NAME)
    image: str | None = None
    """An OCI image that is mounted as a volume."""


class Secrets(Settings):
    """Names of Secrets; their contents never appear in a manifest."""

    ray_token: str = Field("tempflow-ray", pattern=NAME)
    """Key `auth_token`: what Ray's dashboard, jobs and actors ask for."""
    pool_token: str = Field("tempflow-pool", pattern=NAME)
    """Key `token`: what the reward pool asks for."""
    environment: Listed[str] = ()
    """Each key is an environment variable of the job's pods: credentials of a bucket, of a logger."""
    pool_environment: Listed[str] = ()
    """The same for the pool's pods, which read what strangers send: as little as its scorers need."""


class Egress(_Either):
    """Somewhere that pods may connect to, beyond each other, DNS and HTTPS."""

    either = ("cidr", "namespace")
    cidr: str | None = None
    namespace: str | None = Field(None, pattern=NAME)
    ports: Listed[int] = Field(min_length=1)


class Queue(_Either):
    """Gang scheduling: all pods of a job at once, or none."""

    either = ("kueue", "volcano")
    kueue: str | None = None
    """A LocalQueue."""
    volcano: str | None = None
    """A queue."""


class Infra(Settings):
    """An infrastructure file with every default filled in."""

    namespace: str = Field("tempflow", pattern=NAME)
    image: str
    """Has tempflow installed, and whatever modules the recipe names (see deploy/Dockerfile)."""
    pull_secrets: Listed[str] = ()
    ray_version: str = version("ray")
    """Of the image."""
    runs: Volume
    """Run folders, at /runs: what a retry resumes from, and what outlives the cluster."""
    models: Models | None = None
    """Nothing is downloaded where it is given."""
    secrets: Secrets = Secrets()
    head: Nodes = Nodes(cpus=4, memory="16Gi")
    workers: Nodes
    """Of the rollout workers, and of each role below that has none of its own."""
    learner: Nodes | None = None
    reward: PoolNodes | None = None
    """The pool becomes a RayService, a cluster of its own."""
    egress: Listed[Egress] = ()
    """A bucket that is not at port 443, a detector, a pool of somebody else."""
    queue: Queue | None = None
    retries: int = Field(2, ge=0)
    """New clusters that go on with a run whose cluster failed; a recipe that cannot run fails on each of them."""
    keep_s: int = Field(600, ge=0)
    """Until the cluster of a finished job is deleted."""
    operator_namespace: str = "kuberay-operator"
    """Where KubeRay's operator runs: it must reach the heads."""
    monitoring_namespace: str = "monitoring"
    """Where Prometheus runs."""


def load_infra(path: Path) -> Infra:
    """Read an infrastructure file.

    Raises:
        UserError: names the file, the key, the value and the nearest valid key.
    """
    if not path.is_file():
        raise UserError(f"no infrastructure file at `{path}`")
    return parse_config(Infra, read_mapping(path, "an infrastructure file"), str(path))
