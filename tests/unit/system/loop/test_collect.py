"""Which version generates which step, and that results are taken in task order."""

import json
from concurrent.futures import Future

import numpy as np
import pytest

from actors.policy.weights import Exported, Label
from services.base.errors import UserError
from system.loop.collect import Collector
from system.loop.metrics import describe_rewards
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


def test_a_task_is_scored_by_the_scorers_of_its_category_and_their_gates(tmp_path):
    """hpsv3 counts for `text` alone, and the judge, which has no weight, opens its gate: 'a' needs neither."""
    rows = [{"prompt": "a", "category": "plain"}, {"prompt": "b", "category": "text"}]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    overrides = [
        "scorers.1.weight=0",
        "scorers.1.category_weights={text: 2}",
        "scorers.1.gate={score: judge, min: 0.5}",
        f"data.train={tmp_path / 'prompts.jsonl'}",
        "data.prompts_per_step=2",
    ]
    config, roles, asked = load_config("shapes_both", overrides), FakeRoles(), {}
    score = roles.rewards.score

    def watched(images, prompts, names, *more):
        asked[prompts[0]] = list(names)
        done = score(images, prompts, names, *more)
        for name, value in (("pickscore", 1.0), ("hpsv3", 4.0), ("judge", 1.0)):
            if name in names:
                done.result().by_scorer[name][:] = value
        return done

    roles.rewards.score = watched
    with Collector(config, roles, read_prompts(config.data.train), 0, lambda: None) as collector:
        collector.publish(Exported(("w",), Label(0, "w", 1)))
        taken = collector.take(0, lambda done, of: None)
    assert asked == {"a": ["pickscore"], "b": ["pickscore", "hpsv3", "judge"]}
    by_prompt = {done.task.prompt: reward_M for done, reward_M in zip(taken.generated, taken.rewards, strict=True)}
    assert set(by_prompt["a"]) == {0.5}
    assert set(by_prompt["b"]) == {0.5 + 2 * 4}
    line = describe_rewards(config, taken)
    assert (line["reward/hpsv3/holes"], line["reward/judge/holes"]) == (0, 0), "who is not asked leaves no hole"
    assert line["reward/hpsv3/mean"] == 4
    assert np.isnan(line["reward/hpsv3/share"]), "nothing differs"


def test_a_gate_on_a_sub_score_that_nobody_returns_is_named(tmp_path):
    (tmp_path / "prompts.txt").write_text("a\n")
    overrides = ["scorers.0.gate={score: judge.txt, min: 0.5}", f"data.train={tmp_path / 'prompts.txt'}"]
    config, roles = load_config("shapes", [*overrides, "data.prompts_per_step=1"]), FakeRoles()
    with Collector(config, roles, read_prompts(config.data.train), 0, lambda: None) as collector:
        collector.publish(Exported(("w",), Label(0, "w", 1)))
        with pytest.raises(UserError, match=r"the gate of `pickscore` needs `judge.txt`, which no scorer returned"):
            collector.take(0, lambda done, of: None)
