"""A pool that is a service of its own: it comes after its run, goes, and comes back."""

import subprocess
import sys

import pytest
import yaml

from services.base.ports import free_port
from tests.helpers.command_line import RUN_TIMEOUT_S, environment
from tests.helpers.http_pool import serving, wait_until
from tests.helpers.run_folders import adapter, wait_for_steps

pytestmark = [pytest.mark.chaos, pytest.mark.slow]
SCORERS = [{"name": "size", "scorer": "jpeg_size", "num_cpus": 0.1}]
STEPS = 40


def said(file, text: str) -> bool:
    return file.exists() and text in file.read_text()


def test_a_run_waits_for_its_pool_and_loses_nothing(recipe, tempflow, ray_head, tmp_path):
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    settings = yaml.safe_load(recipe.read_text()) | {"steps": STEPS}
    settings["scorers"] = [
        {"name": "size", "scorer": "remote", "num_cpus": 0.1, "options": {"url": url, "scorer": "size"}}
    ]
    recipe.write_text(yaml.safe_dump(settings))
    folder, run = tmp_path / "pool", tmp_path / "runs" / "tried"
    folder.mkdir()
    output = tmp_path / "tried.log"
    with output.open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "system", "train", str(recipe), "name=tried"],
            cwd=tmp_path, env=environment(ray_head.address), stdout=log, stderr=log, text=True,
        )  # fmt: skip
    wait_until(lambda: said(output, "waiting up to"), RUN_TIMEOUT_S)
    with serving(folder, SCORERS, port=port):
        wait_until(lambda: (run / "metrics.jsonl").exists(), RUN_TIMEOUT_S)
        wait_for_steps(process, run, 2, output.read_text)
    wait_until(lambda: said(run / "logs" / "scorer-size.log", "waiting up to"), RUN_TIMEOUT_S)
    with serving(folder, SCORERS, port=port):
        assert process.wait(RUN_TIMEOUT_S) == 0, output.read_text()
        whole = tempflow("train", recipe, "name=whole", address=ray_head.address)
    assert whole.returncode == 0, whole.stderr
    assert adapter(run, STEPS) == adapter(tmp_path / "runs" / "whole", STEPS)
