"""The pods of Ray nodes. Each has one container, which may only compute, write to its volumes and use the network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from services.base import openmp
from system.manifests.infra import Infra, Nodes
from system.manifests.recipe import MODELS, POOL_TOKEN, ROLE, RUNS

Manifest = dict[str, Any]

USER = 1000
RECIPE = "/etc/tempflow/recipe"
RESTRICTED: Manifest = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
PORTS = {"metrics": 8080}
HEAD_PORTS = PORTS | {
    "gcs-server": 6379,
    "client": 10001,
    "dashboard": 8265,
    "serve": 8000,
    "as-metrics": 44217,
    "dash-metrics": 44227,
}
"""Ports of the head, by the names that the operator and our PodMonitor expect."""
TMP: Manifest = {"name": "tmp", "mountPath": "/tmp"}
CALLS = "tempflow.io/calls"
"""The label of pods that may call a pool. Its value is the pool's name. Clients other than our jobs need it, too."""


@dataclass(frozen=True)
class Instance:
    """A job or a pool. Each has its own pods."""

    name: str
    kind: Literal["job", "pool"]
    calls: str | None = None
    """The RayService that a job asks for scores, if the pool is one."""

    @property
    def labels(self) -> dict[str, str]:
        """Labels of our own, because KubeRay sets `app.kubernetes.io/…` on pods and selects by it."""
        return {"tempflow.io/kind": self.kind, "tempflow.io/name": self.name}

    @property
    def has_token(self) -> bool:
        """Whether the pods get the pool's token."""
        return self.kind == "pool" or self.calls is not None


def ray_pod(infra: Infra, instance: Instance, role: str, nodes: Nodes, service_account: bool = False) -> Manifest:
    """The pod template of a Ray node.

    Its process 1 is the pod's own, not `ray start`, which leaves ended processes as zombies: Ray would take a stopped
    job's driver for alive until RAY_JOB_STOP_WAIT_TIME_S has passed.

    Args:
        service_account: mount the service account's token, which the head's autoscaler needs.
    """
    ports = HEAD_PORTS if role == "head" else PORTS
    secrets = infra.secrets.pool_environment if instance.kind == "pool" else infra.secrets.environment
    container = {
        "name": "ray-head" if role == "head" else "ray-worker",
        "ports": [{"name": name, "containerPort": port} for name, port in ports.items()],
        "resources": _resources(nodes),
        "env": _environment(infra, nodes, drains=role != "head"),
        "envFrom": [{"secretRef": {"name": name}} for name in secrets],
        "volumeMounts": [TMP, *_mounts(infra, instance)],
    }
    spec: Manifest = {
        "restartPolicy": "Never",
        "shareProcessNamespace": True,
        "terminationGracePeriodSeconds": nodes.grace_s,
        "automountServiceAccountToken": service_account,
        "nodeSelector": nodes.node_selector,
        "tolerations": _tolerations(nodes),
        "runtimeClassName": nodes.runtime_class,
    }
    return _pod(infra, instance, role, container, spec, _volumes(infra, instance))


def submitter_pod(infra: Infra, instance: Instance) -> Manifest:
    """The template of the pod that submits the job and follows its log. It runs on the head's kind of node."""
    small = {"cpu": "500m", "memory": "1Gi"}
    container = {
        "name": "ray-job-submitter",
        "resources": {"requests": small, "limits": small},
        "env": [{"name": "HOME", "value": "/tmp"}],
        "volumeMounts": [TMP],
    }
    spec: Manifest = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "nodeSelector": infra.head.node_selector,
        "tolerations": _tolerations(infra.head),
    }
    return _pod(infra, instance, "submitter", container, spec, [])


def _pod(
    infra: Infra, instance: Instance, role: str, container: Manifest, spec: Manifest, volumes: list[Manifest]
) -> Manifest:
    calls = {CALLS: instance.calls} if instance.calls else {}
    pull_secrets = [{"name": name} for name in dict.fromkeys(infra.pull_secrets)]
    return {
        "metadata": {"labels": {**instance.labels, ROLE: role, **calls}},
        "spec": {
            **_given(spec | {"imagePullSecrets": pull_secrets}),
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": USER,
                "runAsGroup": USER,
                "fsGroup": USER,
                "fsGroupChangePolicy": "OnRootMismatch",
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [{**_given(container), "image": infra.image, "securityContext": RESTRICTED}],
            "volumes": [{"name": "tmp", "emptyDir": {}}, *volumes],
        },
    }


def _tolerations(nodes: Nodes) -> list[Manifest]:
    return [toleration.model_dump(exclude_none=True, exclude_defaults=True) for toleration in nodes.tolerations]


def _given(manifest: Manifest) -> Manifest:
    """The manifest without empty values."""
    return {key: value for key, value in manifest.items() if value not in (None, {}, [])}


def _resources(nodes: Nodes) -> Manifest:
    """A pod's resources. Requests equal limits, because Ray reads the limit and Kubernetes' scheduler the request."""
    asked = {"cpu": str(nodes.cpus), "memory": nodes.memory, **nodes.resources}
    if nodes.gpus:
        asked[nodes.gpu_resource] = str(nodes.gpus)
    return {"requests": asked, "limits": asked}


def _environment(infra: Infra, nodes: Nodes, drains: bool) -> list[Manifest]:
    """The environment of a Ray node. Caches are in /tmp, because the root file system is read-only.

    The head does not drain: its driver would continue while the driver of the next cluster resumes the run.
    """
    wait_s = str(max(1, nodes.grace_s * 3 // 4))
    values = {
        "HOME": "/tmp",
        "HF_MODULES_CACHE": "/tmp/huggingface",
        "MPLCONFIGDIR": "/tmp/matplotlib",
        "TORCHINDUCTOR_CACHE_DIR": "/tmp/inductor",
        **openmp.ENVIRONMENT,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_JOB_STOP_WAIT_TIME_S": wait_s,
    }
    if drains:
        values["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] = wait_s
    if infra.models:
        values |= {"HF_HOME": MODELS, "HF_HUB_OFFLINE": "1"}
    values |= nodes.environment
    return [{"name": name, "value": value} for name, value in values.items()]


def _mounts(infra: Infra, instance: Instance) -> list[Manifest]:
    mounts: list[Manifest] = []
    if infra.models:
        mounts.append({"name": "models", "mountPath": MODELS, "readOnly": True})
    if instance.kind == "job":
        mounts.append({"name": "runs", "mountPath": RUNS})
        mounts.append({"name": "recipe", "mountPath": RECIPE, "readOnly": True})
    if instance.has_token:
        mounts.append({"name": "pool-token", "mountPath": POOL_TOKEN.rpartition("/")[0], "readOnly": True})
    return mounts


def _volumes(infra: Infra, instance: Instance) -> list[Manifest]:
    volumes: list[Manifest] = []
    if infra.models and infra.models.claim:
        source = {"claimName": infra.models.claim, "readOnly": True}
        volumes.append({"name": "models", "persistentVolumeClaim": source})
    elif infra.models:
        volumes.append({"name": "models", "image": {"reference": infra.models.image, "pullPolicy": "IfNotPresent"}})
    if instance.kind == "job":
        volumes.append({"name": "runs", "persistentVolumeClaim": {"claimName": infra.runs.claim}})
        volumes.append({"name": "recipe", "configMap": {"name": f"{instance.name}-recipe"}})
    if instance.has_token:
        secret = {"secretName": infra.secrets.pool_token, "defaultMode": 0o440}
        volumes.append({"name": "pool-token", "secret": secret})
    return volumes
