"""A namespace of its own on the Kubernetes cluster that kubectl talks to."""

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any

import yaml

from tests.helpers.command_line import run_cli
from tests.helpers.http_pool import wait_until
from tests.helpers.paths import ROOT

KUBECTL_TIMEOUT_S = 120
DELETE_TIMEOUT_S = 300
FILES = "tempflow-files"
"""The pod that mounts the volumes, as docs/deploy.md prints it."""
RUNS, MODELS = "tempflow-runs", "tempflow-models"


@dataclass(frozen=True)
class Namespace:
    """A namespace that enforces the Pod Security Standard `restricted` and has what the tutorial creates."""

    name: str
    folder: Path
    infra: dict[str, Any]

    def kubectl(self, *arguments: str, given: str | None = None, timeout_s: float = KUBECTL_TIMEOUT_S) -> str:
        """What a command in the namespace prints. `given` is its standard input."""
        command = ["kubectl", "--namespace", self.name, *arguments]
        done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=timeout_s)
        assert done.returncode == 0, f"{' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def printed(self, *arguments: str, **infra: Any) -> str:
        """What `tempflow deploy` prints. `infra` is added to the infrastructure file."""
        file = self.folder / f"{token_hex(4)}.yaml"
        file.write_text(yaml.safe_dump(self.infra | infra))
        done = run_cli("deploy", *arguments, "--infra", file, folder=self.folder)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def apply(self, manifests: str) -> None:
        """Apply manifests as the tutorial does: none of them if the server refuses one."""
        self.kubectl("apply", "--dry-run=server", "--filename", "-", given=manifests)
        self.kubectl("apply", "--filename", "-", given=manifests)

    def job(self, name: str, *settings: str, **infra: Any) -> None:
        """Start a run of the miniature: six steps, and 21 images of each evaluation."""
        small = ["steps=6", "eval.every=6", "eval.prompts=21", "checkpoint.every=1"]
        self.apply(self.printed("shapes_tempflow_budget", f"name={name}", *small, *settings, **infra))

    def status(self, name: str) -> dict[str, Any]:
        """The status of a RayJob; empty before the operator has seen it."""
        return json.loads(self.kubectl("get", "rayjob", name, "--output", "json")).get("status", {})

    def ended(self, name: str, timeout_s: float) -> dict[str, Any]:
        """The status of a RayJob that has ended, whatever its end."""
        self.wait_until(lambda: self.status(name).get("jobDeploymentStatus") in ("Complete", "Failed"), timeout_s)
        return self.status(name)

    def pods(self, run: str, role: str) -> list[str]:
        """The names of the running pods of a run, the oldest first."""
        of = [f"--selector=tempflow.io/name={run},tempflow.io/role={role}", "--field-selector=status.phase=Running"]
        names = self.kubectl("get", "pods", *of, "--sort-by=.metadata.creationTimestamp", "--output", "name")
        return [name.removeprefix("pod/") for name in names.split()]

    def kill(self, run: str, role: str) -> None:
        """Take a pod away at once, as a node that loses its power does."""
        self.kubectl("delete", "pod", self.pods(run, role)[0], "--force", "--grace-period=0")

    def stop(self, run: str, timeout_s: float) -> None:
        """Ask a run to stop, and wait until it has."""
        head, job = self.pods(run, "head")[0], self.status(run)["jobId"]
        self.kubectl("exec", head, "--container=ray-head", "--", "ray", "job", "stop", job, timeout_s=timeout_s)

    def in_files(self, *command: str) -> str:
        """What a command prints that runs where the volumes are."""
        return self.kubectl("exec", FILES, "--", *command)

    def adapter(self, run: str) -> str:
        """The checksum of the adapter of a run that has ended."""
        return self.in_files("sha256sum", f"/runs/{run}/lora/pytorch_lora_weights.safetensors").split()[0]

    def last(self, run: str) -> dict[str, Any]:
        """What a run recorded last: its metrics by name, and its `step`, which is −1 before the first record."""
        line = self.in_files("sh", "-c", f"tail -n 1 /runs/{run}/metrics.jsonl 2>/dev/null || true")
        return json.loads(line) if line.endswith("}\n") else {"step": -1}

    def wait_until(self, true: Callable[[], bool], timeout_s: float) -> None:
        """Wait until something is true. A failure shows the namespace's pods and events."""
        try:
            wait_until(true, timeout_s, every_s=2)
        except AssertionError as failure:
            pods = self.kubectl("get", "rayjobs,rayservices,pods", "--output", "wide")
            raise AssertionError(f"{failure}\n{pods}\n{self.kubectl('events')}") from failure


@contextmanager
def new_namespace(image: str, operator_namespace: str, folder: Path) -> Iterator[Namespace]:
    """A namespace with the Secrets, the volumes and the pod for files of the documentation.

    It is deleted at the end, with everything in it.

    Args:
        image: an image of tempflow that the cluster's nodes can pull or have.
        operator_namespace: where KubeRay's operator runs.
    """
    infra = {
        "namespace": f"tempflow-test-{token_hex(3)}",
        "image": image,
        "operator_namespace": operator_namespace,
        "runs": {"claim": RUNS, "size": "1Gi", "access": "ReadWriteOnce"},
        "head": {"cpus": 1, "memory": "3Gi", "grace_s": 60},
        "workers": {"cpus": 2, "memory": "4Gi"},
        "keep_s": 0,
    }
    one = Namespace(infra["namespace"], folder, infra)
    one.kubectl("create", "namespace", one.name)
    try:
        one.kubectl("label", "namespace", one.name, "pod-security.kubernetes.io/enforce=restricted")
        for name, key in (("tempflow-ray", "auth_token"), ("tempflow-pool", "token")):
            one.kubectl("create", "secret", "generic", name, f"--from-literal={key}={token_hex(32)}")
        claim = one.printed("shapes", "--part", "volume")
        one.kubectl("apply", "--filename", "-", given=f"{claim}\n{claim.replace(RUNS, MODELS)}")
        one.kubectl("apply", "--filename", "-", given=_pod_for_files(one))
        one.kubectl("wait", "--for=condition=Ready", f"pod/{FILES}", "--timeout=120s", timeout_s=180)
        yield one
    finally:
        one.kubectl("delete", "namespace", one.name, timeout_s=DELETE_TIMEOUT_S)


def _pod_for_files(one: Namespace) -> str:
    """The pod of docs/deploy.md, with this namespace and image."""
    found = re.search(r"^```yaml\n# files\.yaml\n(.*?)^```$", (ROOT / "docs/deploy.md").read_text(), re.DOTALL | re.M)
    assert found
    pod = yaml.safe_load(found[1])
    pod["metadata"]["namespace"] = one.name
    pod["spec"]["containers"][0]["image"] = one.infra["image"]
    return yaml.safe_dump(pod)
