"""Which version generates which step, and that results are taken in task order."""

import json
from concurrent.futures import Future

import numpy as np
import pytest

from actors.policy.weights import Exported, Label
from services.base.errors import UserError
from system.loop.collect import Collector
from system.loop.prompts import read_prompts
from system.loop.stop import Stopped
from system.recipe.load import load_config
from tests.helpers.fakes import FakeRoles


def exported(version: int) -> Exported:
    return Exported((f"weights {version}",), Label(version, f"weights {version}", 1))


def collector_of(tmp_path, roles: FakeRoles, *overrides: str, first: int = 0, check_stop=lambda: None) -> Collector:
    (tmp_path / "prompts.txt").write_text("".join(f"prompt number {i}\n" for i in range(8)))
    config = load_config(
        "shapes",
        [f"data.train={tmp_path / 'prompts.txt'}", "data.prompts_per_step=2", "steps=5", "plan.seeds=1", *overrides],
    )
    return Collector(config, roles, read_prompts(config.data.train), first, check_stop)


@pytest.mark.parametrize("staleness", [0, 1, 3])
def test_a_step_is_generated_by_the_version_that_is_as_many_behind_as_allowed(tmp_path, staleness):
    """The fake asserts that each task is generated with the weights of the version that it names."""
    roles = FakeRoles()
    with collector_of(tmp_path, roles, f"learner.max_staleness={staleness}") as collector:
        behaviour = []
        for step in range(5):
            collector.publish(exported(step))
            assert max(at for at, _ in roles.rollouts.generated) == min(step + staleness, 4)
            behaviour.append(collector.take(step, lambda done, of: None).behaviour)
    assert behaviour == [max(0, step - staleness) for step in range(5)]


def test_a_resumed_run_starts_with_its_own_step(tmp_path):
    roles = FakeRoles()
    with collector_of(tmp_path, roles, "learner.max_staleness=1", first=3) as collector:
        collector.publish(exported(2))
        assert {step for step, _ in roles.rollouts.generated} == {3}


def test_results_are_in_task_order_whatever_the_order_of_arrival(tmp_path):
    roles, asked = FakeRoles(), []
    generate = roles.rollouts.generate

    def later(*arguments):
        asked.append((Future(), generate(*arguments)))
        return asked[-1][0]

    roles.rollouts.generate = later
    progress = []
    with collector_of(tmp_path, roles) as collector:
        collector.publish(exported(0))
        for promised, done in reversed(asked):
            promised.set_result(done.result())
        experience = collector.take(0, lambda done, of: progress.append((done, of)))
    assert [task.task.index for task in experience.generated] == [0, 1]
    assert progress[-1] == (2, 2)
    assert experience.cost.decodes == experience.num_scores == sum(len(reward_M) for reward_M in experience.rewards)
    for task, reward_M, score in zip(experience.generated, experience.rewards, experience.scores, strict=True):
        np.testing.assert_array_equal(reward_M, score.by_scorer["pickscore"])
        assert len(reward_M) == task.tree.num_leaves


def test_a_stop_ends_the_wait_and_what_has_not_begun_is_cancelled(tmp_path):
    roles, cancelled = FakeRoles(), []
    roles.rollouts.generate = lambda *arguments: Future()
    roles.rollouts.cancel = lambda: cancelled.append(True)

    def stop() -> None:
        raise Stopped("SIGTERM")

    with collector_of(tmp_path, roles, check_stop=stop) as collector:
        collector.publish(exported(0))
        with pytest.raises(Stopped):
            collector.take(0, lambda done, of: None)
    assert cancelled == [True]


def test_the_first_error_ends_the_wait_while_other_tasks_are_open(tmp_path):
    roles = FakeRoles()
    open_, failed = Future(), Future()
    futures = [open_, failed]
    roles.rollouts.generate = lambda *arguments: futures.pop(0)
    failed.set_exception(UserError("no such thing"))
    with collector_of(tmp_path, roles) as collector:
        collector.publish(exported(0))
        with pytest.raises(UserError, match="no such thing"):
            collector.take(0, lambda done, of: None)


class Reads:
    """A scorer that asks for rows."""

    def __call__(self, images_NHWC, prompts, rows): ...


def test_a_task_is_scored_with_the_row_of_its_prompt(tmp_path):
    """Every image gets it, if a training scorer asks for rows; else nothing is read."""
    rows = [{"prompt": f"prompt {i}", "count": i} for i in range(8)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for scorer, reads in ((f"{__name__}:Reads", True), ("jpeg_size", False)):
        roles = FakeRoles()
        scorers = f"scorers=[{{name: mine, scorer: '{scorer}'}}, {{name: text, scorer: ocr, weight: 0}}]"
        with collector_of(tmp_path, roles, f"data.train={tmp_path / 'p.jsonl'}", scorers) as collector:
            collector.publish(exported(0))
            tasks = collector.take(0, lambda done, of: None).generated
        expected = [[{"count": task.task.address[2]}] * task.tree.num_leaves if reads else [] for task in tasks]
        assert roles.rewards.asked == [(["mine"], rows) for rows in expected]
        assert [task.task.prompt for task in tasks] == [f"prompt {task.task.address[2]}" for task in tasks]
