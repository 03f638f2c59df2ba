"""What a recipe does not know: the cluster's nodes, image, volumes, secrets and queues."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from services.base.errors import UserError
from services.base.settings import Listed, Settings
from system.manifests.texts import (
    Cidr,
    ExtendedResource,
    Image,
    Int32,
    LabelKey,
    LabelValue,
    Namespace,
    ObjectName,
    Port,
    Quantity,
    QueueName,
    RayVersion,
    Resource,
    ServiceName,
    Variable,
)
from system.recipe.load import parse_config, read_mapping

OPERATORS_OWN = frozenset({"RAY_REDIS_ADDRESS", "REDIS_USERNAME", "REDIS_PASSWORD", "RAY_enable_autoscaler_v2"})
"""Variables that KubeRay sets itself and refuses on a head."""


class Toleration(Settings):
    """A taint of nodes that pods tolerate, as Kubernetes writes it."""

    key: LabelKey | None = None
    operator: Literal["Equal", "Exists"] = "Equal"
    value: LabelValue | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    tolerationSeconds: int | None = None

    @model_validator(mode="after")
    def _as_the_api_server_checks(self) -> Toleration:
        if self.operator == "Exists" and self.value:
            raise ValueError("a toleration with operator Exists takes no value; leave it out, or set operator to Equal")
        if self.operator == "Equal" and self.key is None:
            raise ValueError("a toleration without a key tolerates every taint; set operator to Exists, or give a key")
        if self.tolerationSeconds is not None and self.effect != "NoExecute":
            raise ValueError("tolerationSeconds is for effect NoExecute; set effect to it, or leave the seconds out")
        return self


class Nodes(Settings):
    """The pods of a role, all alike; each is a Ray node."""

    cpus: int = Field(4, ge=1)
    memory: Quantity = "16Gi"
    gpus: int = Field(0, ge=0)
    gpu_resource: ExtendedResource = "nvidia.com/gpu"
    """Or a slice of one, such as `nvidia.com/mig-3g.40gb`."""
    resources: dict[Resource, Quantity] = Field(default_factory=dict)
    """Further ones, such as `rdma/hca: "1"`."""
    node_selector: dict[LabelKey, LabelValue] = Field(default_factory=dict)
    tolerations: list[Toleration] = Field(default_factory=list)
    runtime_class: ObjectName | None = None
    environment: dict[Variable, str] = Field(default_factory=dict)
    """Variables that anybody may read, such as `NCCL_SOCKET_IFNAME`; Secrets are named under `secrets`."""
    grace_s: int = Field(120, ge=1)
    """From SIGTERM to SIGKILL: time to drain, and for the checkpoint of a stopped run."""

    @model_validator(mode="after")
    def _resources_fit(self) -> Nodes:
        if self.gpu_resource in self.resources:
            raise ValueError(f"resources: `{self.gpu_resource}` is what `gpus` counts; leave it out and set gpus")
        for name, count in self.resources.items():
            if "/" in name and not count.isdigit():
                raise ValueError(
                    f"resources: `{name}` comes in whole numbers, and {count} is none; give one, such as 1"
                )
        return self


class PoolNodes(Nodes):
    """The pods of the reward pool."""

    service: ServiceName | None = None
    """Name of the RayService; that of the recipe with `-pool` if not given. Jobs with the same name share it."""


class Volume(Settings):
    """A PersistentVolumeClaim."""

    claim: ObjectName
    size: Quantity | None = None
    """Makes the claim; it is there already if not given."""
    storage_class: ObjectName | None = None
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
    claim: ObjectName | None = None
    image: Image | None = None
    """An OCI image that is mounted as a volume."""


class Secrets(Settings):
    """Names of Secrets; their contents never appear in a manifest."""

    ray_token: ObjectName = "tempflow-ray"
    """Key `auth_token`: what Ray's dashboard, jobs and actors ask for."""
    pool_token: ObjectName = "tempflow-pool"
    """Key `token`: what the reward pool asks for."""
    environment: Listed[ObjectName] = ()
    """Each key is an environment variable of the job's pods: credentials of a bucket, of a logger."""
    pool_environment: Listed[ObjectName] = ()
    """The same for the pool's pods, which read what strangers send: as little as its scorers need."""


class Egress(_Either):
    """Somewhere that pods may connect to, beyond each other, DNS and HTTPS."""

    either = ("cidr", "namespace")
    cidr: Cidr | None = None
    namespace: Namespace | None = None
    ports: Listed[Port] = Field(min_length=1)


class Queue(_Either):
    """Gang scheduling: all pods of a job at once, or none."""

    either = ("kueue", "volcano")
    kueue: QueueName | None = None
    """A LocalQueue."""
    volcano: QueueName | None = None
    """A queue."""


class Infra(Settings):
    """An infrastructure file with every default filled in."""

    namespace: Namespace = "tempflow"
    image: Image
    """Has tempflow installed, and whatever modules the recipe names (see deploy/Dockerfile)."""
    pull_secrets: Listed[ObjectName] = ()
    ray_version: RayVersion = version("ray")
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
    retries: Int32 = 2
    """New clusters that go on with a run whose cluster failed; a recipe that cannot run fails on each of them."""
    keep_s: Int32 = 600
    """Until the cluster of a finished job is deleted."""
    operator_namespace: Namespace = "kuberay-operator"
    """Where KubeRay's operator runs: it must reach the heads."""
    monitoring_namespace: Namespace = "monitoring"
    """Where Prometheus runs."""

    @model_validator(mode="after")
    def _head_is_the_operators(self) -> Infra:
        if taken := OPERATORS_OWN & self.head.environment.keys():
            raise ValueError(f"head.environment: KubeRay sets {min(taken)} itself and refuses it here; leave it out")
        return self


def load_infra(path: Path) -> Infra:
    """Read an infrastructure file.

    Raises:
        UserError: names the file, the key, the value and the nearest valid key.
    """
    if not path.is_file():
        raise UserError(f"no infrastructure file at `{path}`")
    return parse_config(Infra, read_mapping(path, "an infrastructure file"), str(path))
