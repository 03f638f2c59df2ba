"""What a recipe does not know: the cluster's nodes, image, volumes, secrets and queues."""

from __future__ import annotations

from functools import partial
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
    """Key of the taint."""
    operator: Literal["Equal", "Exists"] = "Equal"
    """`Equal` compares the value; `Exists` tolerates every value."""
    value: LabelValue | None = None
    """Value of the taint."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect of the taint; every effect if not given."""
    tolerationSeconds: int | None = None
    """Seconds that a pod stays after a taint with the effect NoExecute appeared; without end if not given."""

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
    """CPUs of one pod."""
    memory: Quantity = "16Gi"
    """Memory of one pod, as Kubernetes writes it."""
    gpus: int = Field(0, ge=0)
    """GPUs of one pod."""
    gpu_resource: ExtendedResource = "nvidia.com/gpu"
    """The resource that counts GPUs, or slices of them, such as `nvidia.com/mig-3g.40gb`."""
    resources: dict[Resource, Quantity] = Field(default_factory=dict)
    """Further resources of a pod, such as `rdma/hca: "1"`."""
    node_selector: dict[LabelKey, LabelValue] = Field(default_factory=dict)
    """Labels that a Kubernetes node must have for these pods."""
    tolerations: list[Toleration] = Field(default_factory=list)
    """Taints of Kubernetes nodes that these pods tolerate."""
    runtime_class: ObjectName | None = None
    """The RuntimeClass of these pods; the cluster's default if not given."""
    environment: dict[Variable, str] = Field(default_factory=dict)
    """Environment variables that anybody may read, such as `NCCL_SOCKET_IFNAME`. Secrets are named under `secrets`."""
    grace_s: int = Field(120, ge=1)
    """Seconds from SIGTERM to SIGKILL: time to drain, and to write the checkpoint of a stopped run."""

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
    """Name of the RayService; the recipe's name with `-pool` if not given. Jobs with the same name here share it."""


class Volume(Settings):
    """A PersistentVolumeClaim."""

    claim: ObjectName
    """Name of the claim."""
    size: Quantity | None = None
    """Size of the claim, which `--part volume` then prints. If not given, the claim must exist."""
    storage_class: ObjectName | None = None
    """Storage class of the claim; the cluster's default if not given."""
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
    """Where model weights are: a cache in the hub's layout, or plain folders. Pods see them read-only, at /models."""

    either = ("claim", "image")
    claim: ObjectName | None = None
    """Name of a PersistentVolumeClaim that holds them."""
    image: Image | None = None
    """An OCI image that is mounted as a volume."""


class Secrets(Settings):
    """Names of Secrets; their contents never appear in a manifest."""

    ray_token: ObjectName = "tempflow-ray"
    """The Secret whose key `auth_token` is the token that Ray's dashboard, jobs and actors ask for."""
    pool_token: ObjectName = "tempflow-pool"
    """The Secret whose key `token` is the token that the reward pool asks for."""
    environment: Listed[ObjectName] = ()
    """Secrets whose keys become environment variables of the job's pods, such as the credentials of a bucket or a
    logger."""
    pool_environment: Listed[ObjectName] = ()
    """The same for the pool's pods. They read what strangers send, so give them as little as their scorers need."""


class Egress(_Either):
    """Somewhere that pods may connect to, beyond each other, DNS and HTTPS."""

    either = ("cidr", "namespace")
    cidr: Cidr | None = None
    """Addresses outside the cluster."""
    namespace: Namespace | None = None
    """A namespace of the cluster."""
    ports: Listed[Port] = Field(min_length=1)
    """TCP ports; those of the pods, not of a service."""


class Queue(_Either):
    """Gang scheduling: all pods of a job at once, or none."""

    either = ("kueue", "volcano")
    kueue: QueueName | None = None
    """Name of a LocalQueue of Kueue."""
    volcano: QueueName | None = None
    """Name of a queue of Volcano."""


class Infra(Settings):
    """An infrastructure file with every default filled in."""

    namespace: Namespace = "tempflow"
    """The namespace of everything that is printed."""
    image: Image
    """A container image with tempflow and the modules that the recipe names (see deploy/Dockerfile)."""
    pull_secrets: Listed[ObjectName] = ()
    """Secrets with which nodes pull the image."""
    ray_version: RayVersion = Field(default_factory=partial(version, "ray"))
    """Ray's version in the image; the version that is installed here if not given."""
    runs: Volume
    """The volume of the run folders, at /runs. A retry resumes from it, and it outlives the cluster."""
    models: Models | None = None
    """Model weights. If given, nothing is downloaded."""
    secrets: Secrets = Secrets()
    head: Nodes = Nodes(cpus=4, memory="16Gi")
    """The node of the head, which runs no role."""
    workers: Nodes
    """Nodes of the rollout workers, and of each role below that has no nodes of its own."""
    learner: Nodes | None = None
    """Nodes of the learner's ranks."""
    reward: PoolNodes | None = None
    """Nodes of the reward pool, which then is a RayService, a cluster of its own."""
    egress: Listed[Egress] = ()
    """What else pods may connect to: a bucket that is not at port 443, a detector, another pool."""
    queue: Queue | None = None
    """The queue that admits all pods of a job at once."""
    retries: Int32 = 2
    """New clusters that continue a run whose cluster failed. A broken recipe uses up all of them."""
    keep_s: Int32 = 600
    """Seconds until the cluster of a finished job is deleted."""
    operator_namespace: Namespace = "kuberay-operator"
    """The namespace of KubeRay's operator, which must reach the heads."""
    monitoring_namespace: Namespace = "monitoring"
    """The namespace of Prometheus."""

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
