"""The network policy of a job or a pool: the connections that its pods may accept and make."""

from __future__ import annotations

from system.manifests.infra import Infra
from system.manifests.pods import CALLS, Instance, Manifest
from system.manifests.recipe import POOL_PORT

DASHBOARD = 8265
METRICS = (8080, 44217, 44227)
DNS = (53, 5353)
"""Ports of DNS, open to every address, because a node's own DNS cache is in no namespace."""
OUTSIDE = (443, 6443)
"""Ports of the Kubernetes API, which the autoscaler uses, and of buckets and loggers."""


def network_policy(infra: Infra, instance: Instance) -> Manifest:
    """The policy for all pods of an instance. They may talk freely among themselves, and otherwise only as listed."""
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
