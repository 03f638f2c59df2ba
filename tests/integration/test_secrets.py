"""Tokens and keys of the environment are in no log, no file of the run, nothing that is printed."""

import json

from tests.helpers.secrets import CANARIES, leaks


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


def test_a_run_leaves_no_secret_behind(with_holes):
    assert not leaks(with_holes.printed)
    run = with_holes.path
    files = [path for path in run.rglob("*") if path.is_file()]
    assert {"config.yaml", "metrics.jsonl", "report.html", "driver.log", "wandb_id"} <= {file.name for file in files}
    assert list(run.glob("tensorboard/events.*"))
    assert list(run.glob("wandb/offline-run-*/run-*.wandb"))
    assert not {str(file): found for file in files if (found := leaks(file.read_bytes()))}


def test_the_logs_of_a_run_say_who_wrote_them(with_holes):
    logs = (with_holes.path / "logs").glob("*.log")
    written = {file.stem: [json.loads(line) for line in file.read_text().splitlines()] for file in logs}
    assert {"driver", "learner-0", "rollout-0", "rollout-1", "scorer-size"} <= written.keys()
    assert {line["run"] for lines in written.values() for line in lines} == {"ray"}
    (ready,) = [line for line in written["scorer-size"] if "ready in" in line["message"]]
    assert (ready["role"], ready["scorer"], ready["level"]) == ("reward", "size", "INFO")
