"""The judge against a real server: `transformers serve` with a tiny vision-language model."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import requests

from services.base.ports import free_port
from services.scoring.judge.scorer import VlmJudge
from services.scoring.loaded import LoadedScorer
from services.scoring.probe import probe
from services.scoring.settings import ScorerSettings
from tests.helpers.http_pool import wait_until
from tests.helpers.tiny_vlm import save_tiny_vlm

START_TIMEOUT_S = 240
RATE = {"read": "pattern", "pattern": r"Score: ([\d.]+)", "range": [0, 10]}
RUBRIC = [{"text": "Rate a fox.", "scores": {"rate": RATE}}]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The address of the server, and the name of its model."""
    folder = tmp_path_factory.mktemp("judge")
    model = str(folder / "tiny")
    assert save_tiny_vlm(folder / "tiny", "Rate a fox.") < 0.1
    port = free_port()
    program = str(Path(sys.executable).parent / "transformers")
    command = [program, "serve", model, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    settings = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with (folder / "serve.log").open("w") as log:
        process = subprocess.Popen(command, env=settings, stdout=log, stderr=log)
    try:
        wait_until(lambda: process.poll() is not None or healthy(port), START_TIMEOUT_S)
        assert process.poll() is None, (folder / "serve.log").read_text()
        yield f"http://127.0.0.1:{port}/v1", model
    finally:
        process.terminate()
        process.wait(60)


def healthy(port: int) -> bool:
    try:
        return requests.get(f"http://127.0.0.1:{port}/health", timeout=5).ok
    except (requests.ConnectionError, requests.Timeout):
        return False


def grey(value: int) -> np.ndarray:
    return np.full((64, 64, 3), value, np.uint8)


def test_the_model_sees_each_image(served):
    """The model was trained to answer 2 to a dark image and 8.5 to a bright one."""
    url, model = served
    options = {"url": url, "model": model, "rubric": RUBRIC, "concurrency": 2, "max_tokens": 16}
    settings = ScorerSettings(name="judge", scorer="vlm_judge", options=options)
    scored = LoadedScorer(settings).score(np.stack([grey(0), grey(255), grey(60)]), ["a fox"] * 3)
    assert scored.score_N.tolist() == scored.sub_scores["rate"].tolist() == [0.2, 0.85, 0.2]
    assert (scored.sub_scores["tokens_out"] > 8).all()
    assert (scored.sub_scores["seconds"] > 0).all()
    assert probe(settings, 64, 64).startswith(f"vlm_judge: {model} at {url} answers in")


def test_an_answer_that_is_cut_off_is_a_hole(served, caplog):
    url, model = served
    judge = VlmJudge(url, model, RUBRIC, max_tokens=8)
    said = judge(grey(0)[None], ["a fox"], [{}])
    assert np.isnan(said["score"]).all()
    assert said["tokens_out"] == [8]
    assert "was cut off; raise options.max_tokens; the model answered 'Score:" in caplog.text


def test_a_server_without_log_probabilities_leaves_a_hole_and_the_reason(served, caplog):
    url, model = served
    said = VlmJudge(url, model, "alignment")(grey(0)[None], ["a fox"], [{}])
    assert np.isnan(said["score"]).all()
    assert "the answer has no log-probabilities" in caplog.text
