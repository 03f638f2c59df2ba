"""Which settings a resumed run may change."""

import pytest

from services.base.errors import UserError
from system.recipe.load import load_config
from system.run.recorded import check_same
from tests.helpers.begun_runs import config


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        ({"steps": 9}, False),
        ({"reward": {"concurrency": 3, "max_hole_share": 0.9}}, False),
        ({"reward": {"combine": "group_norm"}}, True),
        ({"reward": {"app": "other"}}, True),
        ({"seed": 5}, True),
        ({"rollout": {"workers": 3, "task_timeout_s": 5}}, False),
        ({"rollout": {"micro_batch": 6}}, False),
        ({"learner": {"lr": 1}}, True),
    ],
)
def test_a_resumed_run_may_change_what_enters_no_arithmetic(tmp_path, change, refused):
    before, now = config(tmp_path), config(tmp_path, **change)
    if refused:
        with pytest.raises(UserError, match=f"the run began with other settings: {next(iter(change))}"):
            check_same(before, now, "the run")
    else:
        check_same(before, now, "the run")


def test_what_a_resumed_run_began_with_otherwise_is_said_key_by_key():
    before = load_config("shapes", ["learner.lr=5e-4"])
    now = load_config(
        "shapes", ["learner.lr=1e-3", "seed=3", "scorers.0.options.scale=2", "policy.lora=null", "steps=9"]
    )
    with pytest.raises(UserError) as refused:
        check_same(before, now, "the run `mine`")
    for said in (
        "learner.lr was 0.0005 and is 0.001",
        "seed was 0 and is 3",
        "scorers.0.options.scale was null and is 2",
        "policy.lora was {'rank': 16",
        "tempflow train FOLDER --resume",
    ):
        assert said in str(refused.value)
    assert "steps" not in str(refused.value)
