"""A run's folder: who may go on with it, and what a kill in the middle of a line leaves."""

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


def test_checkpoints_of_a_run_that_has_no_folder_are_gone_on_with_only_if_asked(tmp_path):
    settings = config(tmp_path / "new", checkpoint={"folder": str(tmp_path / "kept")})
    (tmp_path / "kept" / "mine" / "step_000002").mkdir(parents=True)
    refused = pytest.raises(UserError, match="kept/mine` holds checkpoints of a run of this name; add --resume")
    with refused, RunFolder.open(settings, resume=False):
        pass
    with RunFolder.open(settings, resume=True) as run:
        assert run.checkpoints(settings.checkpoint)


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
