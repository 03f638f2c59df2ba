"""Who may talk to the pods of a job or a pool, and whom they may talk to."""

from __future__ import annotations

from system.manifests.infra import Infra
from system.manifests.pods import CALLS, Instance, Manifest
from system.manifests.recipe import POOL_PORT

DASHBOARD = 8265
METRICS = (8080, 44217, 44227)
DNS = (53, 5353)
"""Wherever it runs: a node's own cache is in no namespace."""
OUTSIDE = (443, 6443)
"""The Kubernetes API, which the autoscaler asks; buckets and loggers."""


def network_policy(infra: Infra, instance: Instance) -> Manifest:
    """For all pods of the instance: among themselves anything, beyond that only what is listed."""
    own = {"podSelector": {"matchLabels": instance.labels}}
    ingress = [
        {"from": [own]},
        {"from": [_namespace(infra.operator_namespace)], "ports": _ports(DASHBOARD)},
        {"from": [_namespace(infra.monitoring_namespace)], "ports": _ports(*METRICS)},
    ]
    egress = [
        {"to": [own]},
        {"ports": [{"port": port, "protocol": protocol} for port in DNS for protocol in ("UDP", "TCP")]},
        {"ports": _ports(*OUTSIDE)},
    ]
    for more in infra.egress:
        to = {"ipBlock": {"cidr": more.cidr}} if more.cidr else _namespace(str(more.namespace))
        egress.append({"to": [to], "ports": _ports(*more.ports)})
    if instance.calls:
        serving = Instance(instance.calls, "pool").labels
        egress.append({"to": [{"podSelector": {"matchLabels": serving}}], "ports": _ports(POOL_PORT)})
    if instance.kind == "pool":
        callers = {"podSelector": {"matchLabels": {CALLS: instance.name}}}
        ingress.append({"from": [callers], "ports": _ports(POOL_PORT)})
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {
            "name": f"{instance.kind}-{instance.name}",
            "namespace": infra.namespace,
            "labels": instance.labels,
        },
        "spec": {
            "podSelector": {"matchLabels": instance.labels},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": ingress,
            "egress": egress,
        },
    }


def _namespace(name: str) -> Manifest:
    return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}


def _ports(*numbers: int) -> list[Manifest]:
    return [{"port": number, "protocol": "TCP"} for number in numbers]
