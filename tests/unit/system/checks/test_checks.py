"""The list of checks, as `tempflow doctor` shows it and as other commands refuse its first problem."""

import pytest
from typer.testing import CliRunner

from services.base.errors import UserError
from system.checks import checks
from system.checks.checks import By, diagnose, refuse
from system.checks.finding import Finding
from system.commands.main import app
from system.recipe.load import load_config

MISTAKES = ["policy.model=./nowhere", "data.train=gone.txt", "scorers.0.scorer=pickscorer", "log.wandb={}"]
SAID = ("no folder `./nowhere`", "no prompt file at `gone.txt`", "neither built in", "set WANDB_API_KEY")


def test_a_healthy_machine_and_recipe_have_no_problem_and_exit_code_0(tmp_path):
    done = CliRunner().invoke(app, ["doctor", "shapes", f"output={tmp_path}"])
    assert done.exit_code == 0, done.output
    assert "problem" not in done.output
    assert "4096 in package:system.miniature" in done.output


def test_doctor_shows_all_problems_once_and_its_exit_code_is_2(tmp_path):
    done = CliRunner().invoke(app, ["doctor", "shapes", f"output={tmp_path}", *MISTAKES])
    assert done.exit_code == 2
    assert isinstance(done.exception, SystemExit)
    for said in SAID:
        assert said in done.output
    assert done.output.count("\nproblem ") == 4


@pytest.mark.parametrize(("mistake", "said"), zip(MISTAKES, SAID, strict=True))
def test_training_and_dry_runs_refuse_what_doctor_shows(mistake, said):
    config = load_config("shapes", [mistake])
    for command in (By.TRAIN, By.DRY_RUN):
        with pytest.raises(UserError, match=said):
            refuse(config, command)
    assert [said in finding.says for finding in diagnose(config) if finding.level == "problem"] == [True]


def test_training_refuses_roles_that_this_machine_cannot_hold_and_a_dry_run_does_not(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    config = load_config("shapes")
    refuse(config, By.DRY_RUN)
    with pytest.raises(UserError, match=r"ask for 1\.4 CPUs, and this machine has 1; lower num_cpus"):
        refuse(config, By.TRAIN)
    monkeypatch.setenv("RAY_ADDRESS", "nobody")
    with pytest.raises(UserError, match="no Ray answers at nobody"):
        refuse(config, By.TRAIN)


def test_a_check_that_raises_ends_only_itself(monkeypatch):
    def raises(config):
        yield Finding("ok", "first", "fine")
        raise UserError("it is broken; fix it")

    def finds(config):
        yield Finding("warning", "second", "odd")

    listed = ((raises, By.DOCTOR), (finds, By.DOCTOR), (finds, By.TRAIN))
    monkeypatch.setattr(checks, "MACHINE_CHECKS", listed)
    assert list(diagnose(None)) == [
        Finding("ok", "first", "fine"),
        Finding("problem", "raises", "it is broken; fix it"),
        Finding("warning", "second", "odd"),
    ]
