"""Manifests: valid to the last key, sized by the recipe, closed by default, and equal to the examples."""

import os
import subprocess

import jsonschema
import numpy as np
import pytest
import yaml

from services.base.errors import UserError
from services.http.images import encode_image
from services.serving.settings import PoolSettings
from system.capacity.packing import Ask
from system.manifests.infra import Nodes, load_infra
from system.manifests.manifests import manifests, render
from system.manifests.recipe import resource_name
from system.manifests.sizing import pods
from system.recipe.find import recipe_names
from system.recipe.load import load_config
from tests.helpers.manifests import OWN, PROMPTS, SMALL, by_kind, check, infra, ray_cluster, read, recipe, templates
from tests.helpers.paths import ROOT

EXAMPLES = ROOT / "deploy" / "kuberay"


def groups(cluster: dict) -> dict[str, tuple[int, int]]:
    return {g["groupName"]: (g["minReplicas"], g["maxReplicas"]) for g in cluster["workerGroupSpecs"]}


@pytest.mark.parametrize("example", ["one_gpu", "eight_gpus", "four_nodes"])
def test_the_examples_are_valid(example):
    documents = list(yaml.safe_load_all((EXAMPLES / f"{example}.yaml").read_text()))
    assert {"RayJob", "ConfigMap", "NetworkPolicy"} <= {document["kind"] for document in documents}
    for document in documents:
        check(document)


@pytest.mark.slow
@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_valid_on_every_example_of_a_cluster(name):
    scorer = {"sd35_vlm_judge": "vlm_judge", "sd35_pref_grpo": "vlm_pairs"}.get(name)
    judge = [f"scorers.{scorer}.options.url=http://judge:8000/v1"] if scorer else []
    config = load_config(name, [*PROMPTS, *judge])
    for file in EXAMPLES.glob("*.infra.yaml"):
        for part in ("all", "volume"):
            for document in read(render(manifests(config, load_infra(file), part))):
                check(document)


def test_a_secret_that_is_named_twice_is_given_once():
    """KubeRay's CRD refuses a pod with two equal pull secrets."""
    check(by_kind(manifests(recipe(), infra(SMALL, pull_secrets=["registry", "registry"])))["RayJob"])


def test_the_examples_are_what_the_command_prints(in_process, tmp_path):
    """The script runs with a `tempflow` that prints its arguments; the real one gets them in this process."""
    for file in (EXAMPLES / "make.sh", *EXAMPLES.glob("*.infra.yaml")):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    binaries = tmp_path / "bin"
    binaries.mkdir()
    (binaries / "tempflow").write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    (binaries / "tempflow").chmod(0o755)
    env = os.environ | {"PATH": f"{binaries}:{os.environ['PATH']}"}
    subprocess.run(["bash", tmp_path / "make.sh"], check=True, timeout=60, env=env)
    examples = list(EXAMPLES.glob("*[!a].yaml"))
    assert len(examples) == 3
    for example in examples:
        done = in_process(*(tmp_path / example.name).read_text().splitlines())
        assert done.returncode == 0, done.stderr
        assert done.stdout == example.read_text(), f"run {EXAMPLES / 'make.sh'} again"


@pytest.mark.parametrize(
    ("place", "key"),
    [
        ((), "spce"),
        (("rayClusterSpec",), "headGroup"),
        (("rayClusterSpec", "headGroupSpec", "template"), "spce"),
    ],
)
def test_the_validation_refuses_unknown_keys(place, key):
    job = by_kind(manifests(recipe(), infra(SMALL | {"workers": {"gpus": 8, "cpus": 16}})))["RayJob"]
    check(job)
    node = job["spec"]
    for part in place:
        node = node[part]
    node[key] = {}
    with pytest.raises(jsonschema.ValidationError, match=key):
        check(job)


@pytest.mark.parametrize(
    ("asks", "count"),
    [
        ([(1, 1)] * 4, 2),
        ([(1, 0.25)] * 8, 1),
        ([(1, 0.25)] * 9, 2),
        ([(1, 0.75), (1, 0.75), (1, 0.5), (1, 0.25)], 2),
        ([(5, 0), (3, 0), (4, 0), (4, 0)], 2),
        ([(1, 0.75)] * 4, 2),
        ([(1, 0.6), (1, 0.6), (1, 0.4), (1, 0.4), (1, 0.4)], 2),
        ([(1, 2), (1, 0.5)], 2),
        ([], 1),
    ],
)
def test_pods_hold_all_actors(asks, count):
    assert pods([Ask("an actor", *ask) for ask in asks], Nodes(cpus=8, gpus=2)) == count


def test_fractions_that_ray_would_send_to_one_node_are_refused():
    """16 ranks of 0.75 have room on two nodes of 8, but by the sum of its GPUs Ray would send ten to the first one."""
    nodes = infra(OWN, workers={"cpus": 64, "gpus": 8}, learner=None)

    def of(share: float):
        both = [f"{role}={value}" for role, value in (("rollout.num_gpus", share), ("learner.num_gpus", share))]
        return recipe("placement=colocated", "rollout.workers=16", "learner.ranks=16", *both)

    with pytest.raises(UserError, match=r"^Ray finds no place for a colocated rank with 0\.75 of a GPU on 16 GPUs"):
        manifests(of(0.75), nodes)
    assert groups(by_kind(manifests(of(0.9), nodes))["RayJob"]["spec"]["rayClusterSpec"])["rollout"] == (2, 2)


def test_an_actor_that_fits_nowhere_is_named():
    with pytest.raises(UserError, match=r"a learner rank asks for 4 CPUs and 0.9 GPUs, but a node has 8 and 0"):
        manifests(recipe("rollout.num_gpus=0"), infra(OWN, learner={"cpus": 8}))


def test_each_role_has_its_nodes_and_the_pool_follows_load():
    documents = manifests(
        recipe("rollout.max_workers=6", "scorers.0.replicas={min: 2, max: 9}", "learner.ranks=3"), infra(OWN)
    )
    found = by_kind(documents)
    job, pool = found["RayJob"]["spec"]["rayClusterSpec"], found["RayService"]["spec"]["rayClusterConfig"]
    assert groups(job) == {"rollout": (1, 3), "learner": (3, 3)}
    assert groups(pool) == {"reward": (1, 5)}
    callers = yaml.safe_load(found["ConfigMap"]["data"]["recipe.yaml"])["scorers"][0]["replicas"]
    assert callers["min"] == callers["max"] == 9 * 2
    assert job["enableInTreeAutoscaling"]
    assert pool["enableInTreeAutoscaling"]
    labels = {group["groupName"]: group["labels"] for group in job["workerGroupSpecs"]}
    settings = yaml.safe_load(found["ConfigMap"]["data"]["recipe.yaml"])
    assert settings["rollout"]["labels"] == labels["rollout"]
    assert settings["learner"]["labels"] == labels["learner"]
    for document in documents:
        check(document)


def test_without_nodes_of_their_own_all_roles_share_a_group_of_a_fixed_size():
    config = recipe("learner.num_gpus=0.5", "rollout.num_gpus=0.5")
    found = by_kind(manifests(config, infra(SMALL, workers={"cpus": 9, "gpus": 2})))
    assert "RayService" not in found
    assert groups(found["RayJob"]["spec"]["rayClusterSpec"]) == {"rollout": (1, 1)}
    assert "enableInTreeAutoscaling" not in found["RayJob"]["spec"]["rayClusterSpec"]


def test_the_recipe_of_the_job_is_a_recipe_and_asks_the_service(tmp_path):
    found = by_kind(manifests(recipe(), infra(OWN)))
    path = tmp_path / "recipe.yaml"
    path.write_text(found["ConfigMap"]["data"]["recipe.yaml"])
    config = load_config(str(path))
    assert (config.name, config.output) == ("sd35_pickscore", "/runs")
    caller = config.scorers[0]
    assert (caller.scorer, caller.num_gpus) == ("remote", 0)
    service = found["RayService"]["metadata"]["name"]
    assert caller.options["url"] == f"http://{service}-serve-svc:8000"
    assert "sd35_pickscore" in found["RayJob"]["metadata"]["name"].replace("-", "_")


def test_the_pool_is_one_that_serve_takes():
    service = by_kind(manifests(recipe(), infra(OWN, reward={"gpus": 1, "service": "shared"}), "pool"))["RayService"]
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    pool = PoolSettings(**config["applications"][0]["args"])
    assert (pool.name, pool.scorers[0].scorer, pool.scorers[0].num_gpus) == ("shared", "pickscore", 0.25)
    assert pool.serve.token_file is not None
    assert service["metadata"]["name"] == "shared"


def test_requests_to_the_pool_fit_whatever_the_images_show():
    config = recipe("policy.height=1024", "policy.width=1024")
    found = by_kind(manifests(config, infra(OWN)))
    caller = yaml.safe_load(found["ConfigMap"]["data"]["recipe.yaml"])["scorers"][0]
    noise = encode_image(np.random.default_rng(0).integers(0, 256, (1024, 1024, 3), np.uint8))
    assert 10 < caller["request_images"] < config.scorers[0].request_images
    assert caller["request_images"] * len(noise) < config.serve.max_bytes


@pytest.mark.parametrize("raw", [SMALL | {"workers": {"gpus": 8, "cpus": 32}}, OWN], ids=["shared", "own nodes"])
def test_every_container_is_restricted_and_secrets_are_only_named(raw):
    documents = manifests(recipe(), infra(raw, secrets={"environment": ["bucket"]}))
    for document in documents:
        if document["apiVersion"] != "ray.io/v1":
            continue
        spec = document["spec"]
        cluster = ray_cluster(document)
        assert cluster["authOptions"] == {"mode": "token", "secretName": "tempflow-ray"}
        for template in [*templates(cluster), *filter(None, [spec.get("submitterPodTemplate")])]:
            pod = template["spec"]
            assert pod["securityContext"]["runAsNonRoot"]
            assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            (container,) = pod["containers"]
            assert container["securityContext"]["readOnlyRootFilesystem"]
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert not container["securityContext"]["allowPrivilegeEscalation"]
            assert container["resources"]["requests"] == container["resources"]["limits"]
            assert all("value" in variable and "TOKEN" not in variable["name"] for variable in container["env"])
            mounted = {mount["name"] for mount in container["volumeMounts"]}
            assert mounted <= {volume["name"] for volume in pod["volumes"]}
    assert "Secret" not in by_kind(documents)


def test_the_pool_has_no_secrets_but_its_own_and_the_submitter_stands_where_the_head_may():
    tolerations = [{"key": "dedicated", "operator": "Exists"}]
    head = {"tolerations": tolerations, "node_selector": {"zone": "a"}, "environment": {"RAY_GRAFANA_HOST": "http://g"}}
    secrets = {"environment": ["bucket"], "pool_environment": ["hub"]}
    job, pool = (
        by_kind(manifests(recipe(), infra(OWN, head=head, secrets=secrets)))[kind] for kind in ("RayJob", "RayService")
    )
    job_pods, pool_pods = templates(job["spec"]["rayClusterSpec"]), templates(pool["spec"]["rayClusterConfig"])
    for pods_, named in ((job_pods, "bucket"), (pool_pods, "hub")):
        assert {str(pod["spec"]["containers"][0]["envFrom"]) for pod in pods_} == {
            f"[{{'secretRef': {{'name': '{named}'}}}}]"
        }
    submitter = job["spec"]["submitterPodTemplate"]["spec"]
    assert submitter["tolerations"] == tolerations
    assert submitter["nodeSelector"] == {"zone": "a"}
    assert {"name": "RAY_GRAFANA_HOST", "value": "http://g"} in job_pods[0]["spec"]["containers"][0]["env"]


def test_slices_of_gpus_count_as_gpus_for_the_autoscaler_too():
    nodes = {"cpus": 8, "gpus": 2, "gpu_resource": "nvidia.com/mig-3g.40gb"}
    cluster = by_kind(manifests(recipe(), infra(SMALL | {"workers": nodes})))["RayJob"]["spec"]["rayClusterSpec"]
    (group,) = cluster["workerGroupSpecs"]
    assert group["rayStartParams"] == {"num-gpus": "2"}
    assert group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/mig-3g.40gb"] == "2"


def test_only_what_must_talk_may():
    documents = manifests(recipe(), infra(OWN))
    policies = {d["metadata"]["name"]: d["spec"] for d in documents if d["kind"] == "NetworkPolicy"}
    run = resource_name("sd35_pickscore")
    job, pool = policies[f"job-{run}"], policies[f"pool-{run}-pool"]
    assert all(policy["policyTypes"] == ["Ingress", "Egress"] for policy in policies.values())
    assert all("from" in rule for policy in policies.values() for rule in policy["ingress"])
    cluster = by_kind(documents)["RayJob"]["spec"]["rayClusterSpec"]
    ours = cluster["headGroupSpec"]["template"]["metadata"]["labels"]
    theirs = by_kind(documents)["RayService"]["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["template"]
    (callers,), (served,) = peers(pool["ingress"], 8000, "from"), peers(job["egress"], 8000, "to")
    assert callers["podSelector"]["matchLabels"].items() <= ours.items()
    assert served["podSelector"]["matchLabels"].items() <= theirs["metadata"]["labels"].items()
    assert not peers(job["ingress"], 8000, "from")
    for policy, labels in ((job, ours), (pool, theirs["metadata"]["labels"])):
        assert policy["podSelector"]["matchLabels"].items() <= labels.items()
        among = {"podSelector": policy["podSelector"]}
        assert {"from": [among]} in policy["ingress"]
        assert {"to": [among]} in policy["egress"]
        assert named(peers(policy["ingress"], 8265, "from")) == ["kuberay-operator"]
        assert all(named(peers(policy["ingress"], port, "from")) == ["monitoring"] for port in (8080, 44217, 44227))
        dns = next(rule for rule in policy["egress"] if {"port": 53, "protocol": "UDP"} in rule.get("ports", []))
        assert "to" not in dns


def peers(rules: list[dict], port: int, side: str) -> list[dict]:
    """Who may talk to a port."""
    return [peer for rule in rules if {"port": port, "protocol": "TCP"} in rule.get("ports", []) for peer in rule[side]]


def named(found: list[dict]) -> list[str]:
    return [peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"] for peer in found]


def test_a_job_and_a_pool_of_one_name_keep_apart():
    documents = manifests(recipe(), infra(OWN, reward={"gpus": 1, "service": "sd35-pickscore"}))
    first, second = (d for d in documents if d["kind"] == "NetworkPolicy")
    assert first["metadata"]["name"] != second["metadata"]["name"]
    assert first["spec"]["podSelector"] != second["spec"]["podSelector"]


def test_more_may_be_reached_where_the_file_says_so():
    egress = [{"namespace": "minio", "ports": [9000]}, {"cidr": "10.1.0.0/16", "ports": [8100]}]
    for document in manifests(recipe(), infra(OWN, egress=egress)):
        if document["kind"] == "NetworkPolicy":
            check(document)
            assert named(peers(document["spec"]["egress"], 9000, "to")) == ["minio"]
            assert peers(document["spec"]["egress"], 8100, "to") == [{"ipBlock": {"cidr": "10.1.0.0/16"}}]


def test_the_claim_of_the_runs_is_applied_alone():
    sized = infra(OWN, runs={"claim": "runs", "size": "1Gi"})
    assert "PersistentVolumeClaim" not in by_kind(manifests(recipe(), sized))
    (claim,) = manifests(recipe(), sized, "volume")
    check(claim)
    with pytest.raises(UserError, match=r"runs.size: the infrastructure file gives no size"):
        manifests(recipe(), infra(OWN), "volume")


def test_a_head_does_not_outlive_its_job():
    cluster = by_kind(manifests(recipe(), infra(OWN)))["RayJob"]["spec"]["rayClusterSpec"]
    drains = [
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
        in {variable["name"] for variable in pod["spec"]["containers"][0]["env"]}
        for pod in templates(cluster)
    ]
    assert drains == [False, True, True]


def test_ended_processes_of_a_ray_node_have_a_parent_that_takes_note():
    """`ray start` as process 1 does not; a stop would wait for the zombie of the driver."""
    found = by_kind(manifests(recipe(), infra(OWN)))
    for kind in ("RayJob", "RayService"):
        assert all(pod["spec"]["shareProcessNamespace"] for pod in templates(ray_cluster(found[kind])))


def test_a_queue_labels_the_job():
    labels = [
        by_kind(manifests(recipe(), infra(OWN, queue=queue)))["RayJob"]["metadata"]["labels"]
        for queue in ({"kueue": "research"}, {"volcano": "research"})
    ]
    assert labels[0]["kueue.x-k8s.io/queue-name"] == "research"
    assert labels[1]["volcano.sh/queue-name"] == "research"
