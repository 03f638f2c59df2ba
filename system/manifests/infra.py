"""The infrastructure file: the cluster's nodes, image, volumes, secrets and queues, which a recipe does not contain."""

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
"""Environment variables that KubeRay sets itself. It refuses a head that sets them."""


class Toleration(Settings):
    """A toleration in Kubernetes' own form: a taint of nodes that the pods tolerate."""

    key: LabelKey | None = None
    """Key of the taint."""
    operator: Literal["Equal", "Exists"] = "Equal"
    """`Equal` compares the value; `Exists` tolerates every value."""
    value: LabelValue | None = None
    """Value of the taint."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect of the taint. If not given, every effect is tolerated."""
    tolerationSeconds: int | None = None
    """Seconds that a pod stays after a taint with the effect NoExecute appears. If not given, it stays forever."""

    @model_validator(mode="after")
    def _as_the_api_server_checks(self) -> Toleration:
        if self.operator == "Exists" and self.value:
            raise ValueError(
                "a toleration with operator Exists cannot have a value; leave it out, or set operator to Equal"
            )
        if self.operator == "Equal" and self.key is None:
            raise ValueError("a toleration without a key tolerates every taint; set operator to Exists, or give a key")
        if self.tolerationSeconds is not None and self.effect != "NoExecute":
            raise ValueError(
                "tolerationSeconds needs effect NoExecute; set effect to NoExecute, or leave tolerationSeconds out"
            )
        return self


class Nodes(Settings):
    """The pods of a role, which are all alike. Each pod is a Ray node."""

    cpus: int = Field(4, ge=1)
    """CPUs of one pod."""
    memory: Quantity = "16Gi"
    """Memory of one pod, as a Kubernetes quantity."""
    gpus: int = Field(0, ge=0)
    """GPUs of one pod."""
    gpu_resource: ExtendedResource = "nvidia.com/gpu"
    """The resource by which Kubernetes counts GPUs, or slices of GPUs, such as `nvidia.com/mig-3g.40gb`."""
    resources: dict[Resource, Quantity] = Field(default_factory=dict)
    """Further resources of a pod, such as `rdma/hca: "1"`."""
    node_selector: dict[LabelKey, LabelValue] = Field(default_factory=dict)
    """Labels that a Kubernetes node must have for these pods."""
    tolerations: list[Toleration] = Field(default_factory=list)
    """Taints of Kubernetes nodes that these pods tolerate."""
    runtime_class: ObjectName | None = None
    """The RuntimeClass of these pods. If not given, the cluster's default is used."""
    environment: dict[Variable, str] = Field(default_factory=dict)
    """Environment variables that are not secret, such as `NCCL_SOCKET_IFNAME`. For secret ones, see `secrets`."""
    grace_s: int = Field(120, ge=1)
    """Seconds from SIGTERM to SIGKILL: the time to drain the node and to write the checkpoint of a stopped run."""

    @model_validator(mode="after")
    def _resources_fit(self) -> Nodes:
        if self.gpu_resource in self.resources:
            raise ValueError(
                f"resources: `{self.gpu_resource}` is already counted by `gpus`; leave it out and set gpus"
            )
        for name, count in self.resources.items():
            if "/" in name and not count.isdigit():
                raise ValueError(f"resources: `{name}` must be a whole number, and {count} is not; give one, such as 1")
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
    """Size of the claim. If given, `--part volume` prints the claim. If not given, the claim must exist."""
    storage_class: ObjectName | None = None
    """Storage class of the claim. If not given, the cluster's default is used."""
    access: Literal["ReadWriteMany", "ReadWriteOnce"] = "ReadWriteMany"
    """All pods of a job mount the volume, so `ReadWriteOnce` works only on a Kubernetes cluster with one node."""


class _Either(Settings):
    """Settings with two keys, of which exactly one must be given."""

    either: ClassVar[tuple[str, str]]

    @model_validator(mode="after")
    def _one(self) -> _Either:
        if sum(getattr(self, key) is not None for key in self.either) != 1:
            raise ValueError(f"{type(self).__name__.lower()}: give {' or '.join(self.either)}")
        return self


class Models(_Either):
    """The place of model weights: a cache in the hub's layout, or plain folders. Pods mount it read-only at /models."""

    either = ("claim", "image")
    claim: ObjectName | None = None
    """Name of a PersistentVolumeClaim with the weights."""
    image: Image | None = None
    """An OCI image with the weights, which is mounted as a volume."""


class Secrets(Settings):
    """Names of Secrets; their contents never appear in a manifest."""

    ray_token: ObjectName = "tempflow-ray"
    """The Secret with the token for Ray's dashboard, jobs and actors, under the key `auth_token`."""
    pool_token: ObjectName = "tempflow-pool"
    """The Secret with the token for the reward pool, under the key `token`."""
    environment: Listed[ObjectName] = ()
    """Secrets whose keys become environment variables of the job's pods, such as the credentials of a bucket or a
    logger."""
    pool_environment: Listed[ObjectName] = ()
    """Secrets whose keys become environment variables of the pool's pods. The pool reads untrusted requests, so give it
    only the secrets that its scorers need."""


class Egress(_Either):
    """A destination that pods may connect to, in addition to each other, DNS and HTTPS."""

    either = ("cidr", "namespace")
    cidr: Cidr | None = None
    """Addresses outside the cluster."""
    namespace: Namespace | None = None
    """A namespace of the cluster."""
    ports: Listed[Port] = Field(min_length=1)
    """TCP ports of the destination's pods or hosts, not of a Kubernetes service in front of them."""


class Queue(_Either):
    """Gang scheduling: all pods of a job start together or not at all."""

    either = ("kueue", "volcano")
    kueue: QueueName | None = None
    """Name of a LocalQueue of Kueue."""
    volcano: QueueName | None = None
    """Name of a queue of Volcano."""


class Infra(Settings):
    """An infrastructure file with every default filled in."""

    namespace: Namespace = "tempflow"
    """The namespace of all printed objects."""
    image: Image
    """A container image with tempflow and the modules that the recipe names (see deploy/Dockerfile)."""
    pull_secrets: Listed[ObjectName] = ()
    """Secrets that nodes use to pull the image."""
    ray_version: RayVersion = Field(default_factory=partial(version, "ray"))
    """The version of Ray in the image. If not given, the version that is installed here is used."""
    runs: Volume
    """The volume of the run folders, mounted at /runs. It outlives the cluster, and a retry resumes from it."""
    models: Models | None = None
    """Model weights. If given, nothing is downloaded."""
    secrets: Secrets = Secrets()
    head: Nodes = Nodes(cpus=4, memory="16Gi")
    """The node of the head. It runs no role."""
    workers: Nodes
    """The nodes of the rollout workers, and of every role below that has no nodes of its own."""
    learner: Nodes | None = None
    """The nodes of the learner's ranks."""
    reward: PoolNodes | None = None
    """The nodes of the reward pool. If given, the pool is a RayService in its own Ray cluster."""
    egress: Listed[Egress] = ()
    """Further destinations that pods may connect to: a bucket not at port 443, a detector, another pool."""
    queue: Queue | None = None
    """The queue that admits all pods of a job together."""
    retries: Int32 = 2
    """How many times a run whose cluster failed continues on a new cluster. A broken recipe uses up every retry."""
    keep_s: Int32 = 600
    """Seconds until the cluster of a finished job is deleted."""
    operator_namespace: Namespace = "kuberay-operator"
    """The namespace of KubeRay's operator, which must be able to reach the heads."""
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
        UserError: the file is missing or wrong. The message names the file, the key, the value and, for an unknown
            key, the nearest valid one.
    """
    if not path.is_file():
        raise UserError(f"there is no infrastructure file at `{path}`; give --infra one that exists")
    return parse_config(Infra, read_mapping(path, "an infrastructure file"), str(path))
