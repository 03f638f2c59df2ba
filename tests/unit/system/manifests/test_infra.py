"""What a user can get wrong in an infrastructure file, or in a recipe for a cluster, is one sentence."""

import re

import pytest

from services.base.errors import UserError
from system.manifests.infra import load_infra
from system.manifests.manifests import manifests
from system.manifests.recipe import resource_name
from tests.helpers.manifests import OWN, SMALL, infra, recipe


@pytest.mark.parametrize(
    ("overrides", "raw", "sentence"),
    [
        (["data.train=prompts/train.txt"], OWN, r"data.train: `prompts/train.txt` is a path on this machine"),
        ([f"name=x{'y' * 40}"], OWN, "at most 40 characters"),
        (["name=3d"], OWN, "that begins with a letter"),
        (["rollout.max_workers=9"], OWN | {"queue": {"kueue": "q"}}, "queue.kueue needs a job of fixed size"),
        ([], OWN | {"head": {"gpus": 1}}, "head.gpus"),
        (["serve.max_bytes=1000"], OWN, "serve.max_bytes: 1000 is less than one image"),
        (["policy.adapter=runs/earlier/lora"], OWN, "policy.adapter: `runs/earlier/lora` is a path on this machine"),
        (["checkpoint.folder=here"], OWN, "checkpoint.folder: `here` is a path on this machine"),
        (["scorers.0.options.metadata=x.jsonl"], OWN, r"scorers.0.options.metadata: `x.jsonl` is a path"),
        (
            ["scorers.0.options.url=http://127.0.0.1:8100/x"],
            OWN,
            "nothing listens at http://127.0.0.1:8100/x inside a pod",
        ),
        (["reward.app=shared"], OWN, "reward.app: the job starts a new cluster"),
    ],
)
def test_what_does_not_fit_is_the_users_mistake(overrides, raw, sentence):
    with pytest.raises(UserError, match=sentence):
        manifests(recipe(*overrides), infra(raw))


def test_a_pool_alone_needs_nodes_of_its_own():
    with pytest.raises(UserError, match="give `reward` nodes"):
        manifests(recipe(), infra(SMALL), "pool")
    kinds = [d["kind"] for d in manifests(recipe(), infra(OWN), "job")]
    assert kinds == ["NetworkPolicy", "ConfigMap", "RayJob"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("image: x\nruns: {claim: runs}\nworker: {}", "unknown key `worker`; did you mean `workers`"),
        ("image: x\nruns: {claim: Runs}\nworkers: {}", "`runs.claim` = 'Runs': give at most 253 lower-case"),
        ("image: x\nruns: {claim: runs}\nworkers: {}\nqueue: {}", "queue: give kueue or volcano"),
        ("- image", "an infrastructure file must be a mapping"),
        ("image: [", "not YAML"),
    ],
)
def test_a_wrong_infrastructure_file_is_explained(tmp_path, text, sentence):
    path = tmp_path / "infra.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=sentence):
        load_infra(path)
    with pytest.raises(UserError, match="there is no infrastructure file"):
        load_infra(tmp_path / "other.yaml")


REFUSED = [
    ("namespace", "a" * 64, "at most 63"),
    ("namespace", "a.b", "at most 63"),
    ("namespace", "", "at most 63"),
    ("namespace", "a\n", "at most 63"),
    ("operator_namespace", "Kuberay", "at most 63"),
    ("monitoring_namespace", "", "at most 63"),
    ("image", "", "an image's name"),
    ("image", "registry/Tempflow:1", "an image's name"),
    ("image", "tempflow:1 ", "an image's name"),
    ("image", "tempflow:", "an image's name"),
    ("models.image", "", "an image's name"),
    ("models.claim", "a_b", "at most 253"),
    ("pull_secrets", ["Registry"], "at most 253"),
    ("secrets.ray_token", "tempflow ray", "at most 253"),
    ("secrets.pool_token", "", "at most 253"),
    ("secrets.environment", ["bucket_key"], "at most 253"),
    ("secrets.pool_environment", ["-hub"], "at most 253"),
    ("runs.claim", "a" * 254, "at most 253"),
    ("runs.storage_class", "", "at most 253"),
    ("runs.size", "0Gi", "a quantity above 0"),
    ("workers.memory", "16 Gi", "a quantity above 0"),
    ("workers.gpu_resource", "gpu", "with its domain"),
    ("workers.runtime_class", "nvidia_x", "at most 253"),
    ("workers.environment.A=B", "x", "a variable's name"),
    ("workers.environment.1A", "x", "a variable's name"),
    ("workers.environment.", "x", "a variable's name"),
    ("workers.resources.gpu", "1", "with its domain"),
    ("workers.resources.cpu", "1", "with its domain"),
    ("workers.resources.rdma/hca", "0", "a quantity above 0"),
    ("workers.resources.rdma/hca", "1.5", "whole number"),
    ("workers.resources.nvidia.com/gpu", "1", "set gpus"),
    ("workers.node_selector.a b", "x", "a label's key"),
    ("workers.node_selector.A.b/c/d", "x", "a label's key"),
    ("workers.node_selector.zone", "a" * 64, "at most 63"),
    ("workers.node_selector.zone", "a b", "at most 63"),
    ("workers.tolerations", [{"key": "spot", "operator": "In"}], "'Equal' or 'Exists'"),
    ("workers.tolerations", [{"key": "spot", "effect": "Never"}], "'NoSchedule'"),
    ("workers.tolerations", [{"key": "spot", "operator": "Exists", "value": "x"}], "cannot have a value"),
    ("workers.tolerations", [{"effect": "NoSchedule"}], "without a key"),
    ("workers.tolerations", [{"key": "spot", "tolerationSeconds": 5}], "effect NoExecute"),
    ("reward.service", "a" * 48, "at most 47"),
    ("reward.service", "3d", "a letter first"),
    ("head.environment.RAY_REDIS_ADDRESS", "x", "KubeRay sets RAY_REDIS_ADDRESS itself"),
    ("egress", [{"cidr": "10.1.2.3/16", "ports": [1]}], "has host bits set"),
    ("egress", [{"cidr": "10.1.0.0", "ports": [1]}], "ADDRESS/BITS"),
    ("egress", [{"cidr": "10.1.0.0/255.255.0.0", "ports": [1]}], "ADDRESS/BITS"),
    ("egress", [{"cidr": "10.1.0.0/33", "ports": [1]}], "give a CIDR"),
    ("egress", [{"cidr": "300.1.0.0/16", "ports": [1]}], "give a CIDR"),
    ("egress", [{"cidr": "fe80::/129", "ports": [1]}], "give a CIDR"),
    ("egress", [{"namespace": "a.b", "ports": [1]}], "at most 63"),
    ("egress", [{"namespace": "a", "ports": [0]}], "greater than or equal to 1"),
    ("egress", [{"namespace": "a", "ports": [99999]}], "less than or equal to 65535"),
    ("egress", [{"namespace": "a", "ports": []}], "at least 1 item"),
    ("queue.kueue", "a" * 64, "at most 63"),
    ("queue.volcano", "", "at most 63"),
    ("ray_version", "nightly", "the version of Ray"),
    ("ray_version", "2.51.9", "2.52.0 or later"),
    ("retries", 2**31, "less than or equal to 2147483647"),
    ("keep_s", -1, "greater than or equal to 0"),
]


@pytest.mark.parametrize(("key", "value", "rule"), REFUSED)
def test_what_the_api_server_would_refuse_is_not_printed(key, value, rule):
    place, *rest = key.split(".", 2 if key.startswith(("workers", "head")) else 1)
    for part in reversed(rest):
        value = {part: value}
    with pytest.raises(UserError, match=f"^infra.yaml: .*{place}.*{rule}"):
        infra(OWN, **{place: {**OWN[place], **value} if place in OWN and isinstance(value, dict) else value})


def test_runs_of_different_names_have_different_resources():
    names = ["run-a", "run_a", "run_A", "run.a", "Run-a", "run--a"]
    found = [resource_name(name) for name in names]
    assert found[0] == "run-a"
    assert len(set(found)) == len(names)
    assert all(re.fullmatch(r"run-a(-[0-9a-f]{6})?", name) for name in found)
    for name in ("3d", "x" * 41, "X" * 40):
        with pytest.raises(UserError, match="is not a name for Kubernetes"):
            resource_name(name)
