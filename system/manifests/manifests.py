"""Turns a recipe and an infrastructure file into Kubernetes documents."""

from __future__ import annotations

from typing import Literal

import yaml

from services.base.errors import UserError
from services.base.yaml_text import Dumper
from system.launch.serving import serve_config
from system.manifests.infra import Infra, Nodes
from system.manifests.network import network_policy
from system.manifests.pods import RECIPE, RESTRICTED, TMP, Instance, Manifest, ray_pod, submitter_pod
from system.manifests.recipe import ROLE, job_recipe, pool_recipe, pool_service, resource_name
from system.manifests.sizing import WorkerGroup, job_groups, pods, replicas
from system.recipe.dump import dump_config
from system.recipe.model import RunConfig

Part = Literal["all", "job", "pool", "volume"]

IDLE_S = 300
"""Seconds after which a node without actors is removed."""


def manifests(config: RunConfig, infra: Infra, part: Part = "all") -> list[Manifest]:
    """The documents to apply: the job with its recipe, and the pool, each with its network policy.

    The policies come first, so that a refused policy is noticed before any pod starts.

    Args:
        part: `pool` or `job` alone are for a pool that several jobs share. `volume` is the claim of the run folders.
            It is not part of `all`, because deleting a job's documents must not delete the runs.

    Raises:
        UserError: a name, a path or an actor does not fit, or `pool` is asked for and the infrastructure has none.
    """
    if part == "pool" and infra.reward is None:
        raise UserError("this infrastructure file has no nodes for a pool: give `reward` nodes, or leave out --part")
    if part == "volume":
        return _claim(infra)
    documents = []
    if infra.reward and part != "job":
        documents += _pool(config, infra)
    if part != "pool":
        documents += _job(config, infra)
    return sorted(documents, key=lambda document: document["kind"] != "NetworkPolicy")


def render(documents: list[Manifest]) -> str:
    """The documents as one YAML stream."""
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120, explicit_start=True)


class _Block(str):
    """Text that YAML shows line by line."""


class _Dumper(Dumper):
    def ignore_aliases(self, data: object) -> bool:
        return True


_Dumper.add_representer(_Block, lambda dump, text: dump.represent_scalar("tag:yaml.org,2002:str", text, style="|"))


def _job(config: RunConfig, infra: Infra) -> list[Manifest]:
    recipe, name = job_recipe(config, infra), resource_name(config.name)
    instance = Instance(name, "job", calls=pool_service(config, infra) if infra.reward else None)
    groups = job_groups(recipe, infra)
    grows = any(group.max > group.min for group in groups.values())
    if grows and infra.queue and infra.queue.kueue:
        raise UserError(
            "queue.kueue needs a job of fixed size, but this recipe can grow: leave out rollout.max_workers and "
            "ranges of replicas, or give the reward pool its own nodes"
        )
    job = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {**_metadata(infra, instance), "labels": instance.labels | _queue(infra)},
        "spec": {
            "entrypoint": f"tempflow train {RECIPE}/recipe.yaml --resume",
            "submissionMode": "K8sJobMode",
            "backoffLimit": infra.retries,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": infra.keep_s,
            "submitterPodTemplate": submitter_pod(infra, instance),
            "rayClusterSpec": _cluster(infra, instance, groups, grows),
        },
    }
    files = {"recipe.yaml": _Block(dump_config(recipe))}
    return [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": _metadata(infra, instance, "-recipe"), "data": files},
        network_policy(infra, instance),
        job,
    ]


def _pool(config: RunConfig, infra: Infra) -> list[Manifest]:
    pool, nodes = pool_recipe(config, infra), infra.reward
    assert nodes is not None
    instance = Instance(pool.name, "pool")
    bounds = [pods(replicas(pool.scorers, most), nodes) for most in (False, True)]
    groups = {"reward": WorkerGroup(nodes, *bounds)}
    service = {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": _metadata(infra, instance),
        "spec": {
            "serveConfigV2": _Block(serve_config(pool)),
            "upgradeStrategy": {"type": "NewCluster"},
            "excludeHeadPodFromServeSvc": True,
            "rayClusterConfig": _cluster(infra, instance, groups, grows=bounds[1] > bounds[0]),
        },
    }
    return [network_policy(infra, instance), service]


def _cluster(infra: Infra, instance: Instance, groups: dict[str, WorkerGroup], grows: bool) -> Manifest:
    """The spec of a Ray cluster whose head runs no role."""
    autoscaler: Manifest = {}
    if grows:
        autoscaler = {
            "enableInTreeAutoscaling": True,
            "autoscalerOptions": {
                "version": "v2",
                "idleTimeoutSeconds": IDLE_S,
                "securityContext": RESTRICTED,
                "volumeMounts": [TMP],
            },
        }
    return {
        "rayVersion": infra.ray_version,
        "authOptions": {"mode": "token", "secretName": infra.secrets.ray_token},
        **autoscaler,
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0"},
            "template": ray_pod(infra, instance, "head", _without_gpus(infra.head), service_account=grows),
        },
        "workerGroupSpecs": [
            {
                "groupName": role,
                "replicas": group.min,
                "minReplicas": group.min,
                "maxReplicas": group.max,
                "labels": {ROLE: role},
                "rayStartParams": {"num-gpus": str(group.nodes.gpus)} if group.nodes.gpus else {},
                "template": ray_pod(infra, instance, role, group.nodes),
            }
            for role, group in groups.items()
        ],
    }


def _without_gpus(head: Nodes) -> Nodes:
    if head.gpus:
        raise UserError("head.gpus: the head runs no role and needs no GPU; leave it out")
    return head


def _metadata(infra: Infra, instance: Instance, suffix: str = "") -> Manifest:
    return {"name": instance.name + suffix, "namespace": infra.namespace, "labels": instance.labels}


def _queue(infra: Infra) -> dict[str, str]:
    if infra.queue is None:
        return {}
    if infra.queue.kueue:
        return {"kueue.x-k8s.io/queue-name": infra.queue.kueue}
    return {"ray.io/scheduler-name": "volcano", "volcano.sh/queue-name": str(infra.queue.volcano)}


def _claim(infra: Infra) -> list[Manifest]:
    """The PersistentVolumeClaim of the run folders."""
    if infra.runs.size is None:
        raise UserError(
            "runs.size: the infrastructure file gives no size, so the claim must exist already; give a size to make it"
        )
    spec: Manifest = {
        "accessModes": [infra.runs.access],
        "resources": {"requests": {"storage": infra.runs.size}},
    }
    if infra.runs.storage_class:
        spec["storageClassName"] = infra.runs.storage_class
    metadata = {"name": infra.runs.claim, "namespace": infra.namespace}
    return [{"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}]
