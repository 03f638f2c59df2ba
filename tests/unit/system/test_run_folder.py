"""A run's folder: who may go on with it, and what a kill in the middle of a line leaves."""

import shutil

import pytest

from services.errors import UserError
from system.config import RunConfig, parse_config
from system.run_folder import RunFolder, check_same
from tests.unit.system.test_config import MINIMAL


def config(tmp_path, **more) -> RunConfig:
    return parse_config(RunConfig, MINIMAL | {"name": "mine", "output": str(tmp_path)} | more, "test")


def test_a_line_that_was_cut_off_is_no_line(tmp_path):
    with RunFolder.open(config(tmp_path), resume=False) as run:
        for step in range(3):
            run.append_metrics({"step": step})
        text = run.metrics_file.read_text()
        run.metrics_file.write_text(text + '{"step": 3, "los')
        assert [line["step"] for line in run.read_metrics()] == [0, 1, 2]
        run.forget_after(1)
        run.append_metrics({"step": 2})
        assert run.metrics_file.read_text() == text


def test_the_recipe_of_a_run_is_read_as_it_was_written(tmp_path):
    options = {"a": "1e3", "b": "010", "c": "yes", "d": 1e-7, "e": "1:30", "f": "x\u2028y"}
    settings = config(tmp_path, scorers=[{"name": "size", "scorer": "jpeg_size", "options": options}])
    with RunFolder.open(settings, resume=False) as run:
        assert run.read_config() == settings


def refused(settings: RunConfig, resume: bool, message: str) -> None:
    with pytest.raises(UserError, match=message), RunFolder.open(settings, resume):
        pass


def test_a_run_that_has_begun_is_gone_on_with_only_if_asked_and_with_its_own_recipe(tmp_path):
    with RunFolder.open(config(tmp_path), resume=False) as run:
        run.append_metrics({"step": 0})
    refused(config(tmp_path), False, "the run `.*mine` exists; add --resume")
    refused(config(tmp_path, seed=5), True, "the run `.*mine` began with other settings of seed")
    with RunFolder.open(config(tmp_path), resume=True):
        pass


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_ended_before_it_began_may_begin_with_another_recipe(tmp_path, resume):
    """What a first try names as too large can be mended and tried again."""
    with RunFolder.open(config(tmp_path), resume):
        pass
    with RunFolder.open(config(tmp_path, seed=5), resume) as run:
        assert run.read_config().seed == 5


def test_checkpoints_without_a_run_folder_are_gone_on_from_only_if_asked_and_with_their_own_recipe(tmp_path):
    def settings(**more) -> RunConfig:
        return config(tmp_path / "new", checkpoint={"folder": str(tmp_path / "kept")}, **more)

    with RunFolder.open(config(tmp_path), resume=False) as run:
        checkpoint = tmp_path / "kept" / "mine" / "step_000002"
        checkpoint.mkdir(parents=True)
        shutil.copy(run.config_file, checkpoint / "recipe.yaml")
    refused(settings(), False, "the run of the checkpoints in `.*kept/mine` exists; add --resume")
    refused(settings(seed=5), True, "kept/mine` began with other settings of seed")
    with RunFolder.open(settings(), resume=True):
        pass
    (checkpoint / "recipe.yaml").write_text("- no recipe")
    refused(settings(), True, "kept/mine: not a recipe")


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        ({"steps": 9}, False),
        ({"reward": {"concurrency": 3, "max_hole_share": 0.9}}, False),
        ({"reward": {"combine": "group_norm"}}, True),
        ({"reward": {"app": "other"}}, True),
        ({"seed": 5}, True),
    ],
)
def test_a_resumed_run_may_change_what_enters_no_arithmetic(tmp_path, change, refused):
    before, now = config(tmp_path), config(tmp_path, **change)
    if refused:
        with pytest.raises(UserError, match=f"the run began with other settings of {next(iter(change))}"):
            check_same(before, now, "the run")
    else:
        check_same(before, now, "the run")
