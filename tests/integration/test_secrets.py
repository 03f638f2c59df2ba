"""Tokens and keys of the environment are in no log, no file of the run, nothing that is printed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.command_line import RUN_TIMEOUT_S, environment

CANARIES = {
    "TEMPFLOW_TOKEN": "canary-of-the-pool",
    "HF_TOKEN": "hf_canary_of_the_hub",
    "WANDB_API_KEY": "canary" + "0" * 34,
    "AWS_SECRET_ACCESS_KEY": "canary-of-the-storage",
}


def leaks(text: bytes) -> list[str]:
    return [name for name, secret in CANARIES.items() if secret.encode() in text]


@pytest.fixture
def command(tmp_path, recipe):
    """Run the command line with secrets in the environment and a token in a file; what it printed."""
    (tmp_path / "token").write_text(CANARIES["TEMPFLOW_TOKEN"])

    def run(*arguments: str, address: str | None = None) -> bytes:
        done = subprocess.run(
            [sys.executable, "-m", "system", *arguments],
            cwd=tmp_path, env=environment(address) | CANARIES, capture_output=True, timeout=RUN_TIMEOUT_S,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout + done.stderr

    return run


def test_what_is_printed_holds_no_secret(in_process, recipe, tmp_path, monkeypatch):
    (tmp_path / "token").write_text(CANARIES["TEMPFLOW_TOKEN"])
    for name, secret in CANARIES.items():
        monkeypatch.setenv(name, secret)

    def command(*arguments: str) -> bytes:
        done = in_process(*arguments)
        assert done.returncode == 0, done.stderr
        return (done.stdout + done.stderr).encode()

    token_file = f"serve.token_file={tmp_path / 'token'}"
    for arguments in (["config", str(recipe)], ["serve", str(recipe), "--print"], ["doctor", str(recipe)]):
        printed = command(*arguments, token_file)
        assert len(printed) > 200
        assert not leaks(printed)
    assert b"token_file" in command("config", str(recipe), token_file), "the path is a setting, the token is not"


def test_a_run_leaves_no_secret_behind_and_its_logs_say_who_wrote_them(command, recipe, ray_head, tmp_path):
    loggers = ["log.tensorboard=true", "log.wandb={mode: offline}"]
    printed = command("train", str(recipe), "name=kept", "steps=2", *loggers, address=ray_head.address)
    assert not leaks(printed)
    run = tmp_path / "runs" / "kept"
    files = [path for path in run.rglob("*") if path.is_file()]
    assert {"config.yaml", "metrics.jsonl", "report.html", "driver.log", "wandb_id"} <= {file.name for file in files}
    assert list(run.glob("tensorboard/events.*"))
    assert list(run.glob("wandb/offline-run-*/run-*.wandb"))
    assert not {str(file): leaks(file.read_bytes()) for file in files if leaks(file.read_bytes())}
    check_logs(run / "logs")


def check_logs(folder: Path) -> None:
    written = {file.stem: file.read_text().splitlines() for file in folder.glob("*.log")}
    assert {"driver", "learner-0", "rollout-0", "rollout-1", "scorer-size"} <= written.keys()
    lines = [json.loads(line) for text in written.values() for line in text]
    assert [line["run"] for line in lines] == ["kept"] * len(lines)
    (ready,) = [line for line in map(json.loads, written["scorer-size"]) if "ready in" in line["message"]]
    assert (ready["role"], ready["scorer"], ready["level"]) == ("reward", "size", "INFO")
