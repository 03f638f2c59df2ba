"""What `tempflow deploy` prints, on a Kubernetes cluster with KubeRay's operator."""

import pytest

from tests.helpers.kubernetes import Namespace
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.kubernetes
EXAMPLES = sorted(ROOT.glob("deploy/kuberay/*[!a].yaml"))
JOB_S = 900
"""For a run of six steps with the start of its cluster, on two cores."""


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda file: file.stem)
def test_the_api_server_accepts_the_examples(namespace: Namespace, example):
    text = example.read_text().replace("namespace: tempflow\n", f"namespace: {namespace.name}\n")
    said = namespace.kubectl("apply", "--dry-run=server", "--filename", "-", given=text)
    assert said.count("(server dry run)") == text.count("\nkind: ")


@pytest.fixture(scope="module")
def undisturbed(namespace: Namespace) -> str:
    """The name of a run that came to its end."""
    namespace.job("undisturbed")
    assert namespace.ended("undisturbed", JOB_S)["jobStatus"] == "SUCCEEDED"
    return "undisturbed"


def test_a_job_leaves_its_adapter_and_a_report(namespace: Namespace, undisturbed):
    assert namespace.last(undisturbed)["step"] == 6
    assert namespace.adapter(undisturbed)
    assert "</html>" in namespace.in_files("cat", f"/runs/{undisturbed}/report.html")


def test_a_run_survives_its_worker_and_its_head(namespace: Namespace, undisturbed):
    """The worker's pod has the learner, too. The run ends with the weights of one that nobody disturbed."""
    namespace.job("disturbed")
    namespace.wait_until(lambda: namespace.last("disturbed")["step"] >= 1, JOB_S)
    namespace.kill("disturbed", "rollout")
    namespace.wait_until(lambda: namespace.last("disturbed")["step"] >= 3, JOB_S)
    namespace.kill("disturbed", "head")
    assert namespace.ended("disturbed", JOB_S)["jobStatus"] == "SUCCEEDED"
    assert namespace.adapter("disturbed") == namespace.adapter(undisturbed)


def test_a_pool_scores_the_images_of_a_job(namespace: Namespace):
    reward = {"service": "pool", "cpus": 1, "memory": "3Gi"}
    namespace.job("pooled", "steps=2", "eval.every=2", reward=reward)
    assert namespace.ended("pooled", JOB_S)["jobStatus"] == "SUCCEEDED"
    assert namespace.last("pooled")["eval_holes/pickscore"] == 0
    namespace.kubectl("delete", "rayservice", "pool")


def test_a_cluster_grows_and_a_pod_that_is_told_to_end_finishes_its_task(namespace: Namespace):
    """The second worker has a pod of its own. It leaves with its pod, and another one joins."""
    growing = ["placement=split", "rollout.workers=1", "rollout.max_workers=2", "rollout.num_cpus=1.4"]
    namespace.job("growing", "steps=1000", *growing)
    namespace.wait_until(lambda: namespace.last("growing").get("workers") == 2, JOB_S)
    first, second = namespace.pods("growing", "rollout")
    namespace.kubectl("delete", "pod", second, timeout_s=JOB_S)
    left_at = namespace.last("growing")["step"]

    def has_another() -> bool:
        last = namespace.last("growing")
        return last["step"] > left_at + 1 and last["workers"] == 2

    namespace.wait_until(has_another, JOB_S)
    assert namespace.pods("growing", "rollout")[0] == first
    assert namespace.last("growing")["workers_replaced"] == 0, "no task was lost"
    namespace.kubectl("delete", "rayjob", "growing")


def test_a_stop_leaves_a_checkpoint_and_waits_for_nothing_else(namespace: Namespace):
    """Ray kills what has not ended after three quarters of `grace_s`: here 900 s, which the test would not wait for."""
    namespace.job("stopped", "steps=1000", "checkpoint.every=1000", head=namespace.infra["head"] | {"grace_s": 1200})
    namespace.wait_until(lambda: namespace.last("stopped")["step"] >= 1, JOB_S)
    namespace.stop("stopped", timeout_s=300)
    assert namespace.ended("stopped", JOB_S)["jobStatus"] == "STOPPED"
    last = namespace.last("stopped")["step"]
    namespace.in_files("test", "-s", f"/runs/stopped/checkpoints/step_{last:06d}/manifest.json")
