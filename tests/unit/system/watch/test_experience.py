"""Groups, prompts and the tree of a task against small tables worked out by hand."""

import math

import numpy as np
import pyarrow as pa
import pytest

from actors.trajectory import Task, Tree
from system.loop.experience_table import task_columns
from system.watch.experience import decisions, describe_groups, groups, prompt_means, tree
from tests.helpers.watched_runs import experience

REWARDS = {(3, 0, 0, 0): [1.0, 3.0], (3, 1, 0, 1): [2.0, 2.0], (3, 2, 1, 0): [0.0, None], (5, 0, 0, 0): [None, None]}
TABLE = experience(1, REWARDS)


def test_siblings_are_grouped_and_the_widest_spread_comes_first():
    found = [(g.row, g.seed, g.step, g.actions, g.holes, g.mean, g.spread) for g in groups(TABLE, "seed")]
    assert found == [
        (3, 0, 0, 2, 0, 2.0, 1.0),
        (3, 0, 1, 2, 0, 2.0, 0.0),
        (3, 1, 0, 2, 1, 0.0, 0.0),
        (5, 0, 0, 2, 2, None, None),
    ]


def test_other_rules_compare_more_actions():
    by_step = {(g.row, g.step): (g.seed, g.mean) for g in groups(TABLE, "prompt_step")}
    assert by_step == {(3, 0): (None, 4 / 3), (3, 1): (None, 2.0), (5, 0): (None, None)}
    by_prompt = {g.row: (g.step, g.actions, g.mean, g.spread) for g in groups(TABLE, "prompt")}
    assert by_prompt[3] == (None, 6, 1.6, pytest.approx(np.std([1, 3, 2, 2, 0])))


def test_the_description_counts_flat_groups_and_names_both_ends():
    described = describe_groups(groups(TABLE, "seed"))
    assert (described["count"], described["flat"], sum(described["histogram"]["counts"])) == (4, 2, 3)
    assert [end["spread"] for end in described["ends"]] == [1.0, 0.0, 0.0, None]
    rewards = {(0, i, 0, i): [0.0, float(i)] for i in range(100)}
    ends = describe_groups(groups(experience(1, rewards), "seed"))["ends"]
    assert [end["step"] for end in ends] == [*range(99, 91, -1), *range(7, -1, -1)]


def test_the_mean_of_a_prompt_leaves_out_holes():
    means = prompt_means(TABLE)
    assert means[3] == ("prompt 3", 1.6)
    assert math.isnan(means[5][1])


def test_a_task_is_its_trunks_with_their_decisions():
    found = tree(TABLE, 3)
    assert (found["prompt"], found["scorers"]) == ("prompt 3", ["size"])
    assert [trunk["seed"] for trunk in found["trunks"]] == [0, 1]
    first, second = found["trunks"][0]["decisions"]
    assert (first["step"], second["step"]) == (0, 1)
    assert first["actions"] == [
        {"advantage": -1.0, "leaves": [0], "reward": 1.0},
        {"advantage": 1.0, "leaves": [1], "reward": 3.0},
    ]
    assert found["trunks"][1]["decisions"][0]["actions"][1]["reward"] is None
    assert found["leaves"][5] == {"leaf": 5, "seed": 1, "advantages": [0.0], "reward": None, "scores": {"size": None}}


def test_an_action_with_several_leaves_has_their_mean_and_is_a_hole_with_one_of_them():
    rows = {"prompt_row": [1] * 4, "prompt": ["p"] * 4, "decision": [0] * 4, "seed": [0] * 4, "branch_step": [0] * 4}
    own = {"exploration": [0, 0, 1, 1], "leaf": [0, 1, 2, 3], "reward": [1.0, 3.0, None, 2.0], "advantage": [1.0] * 4}
    (decision,) = decisions(pa.table(rows | own))
    assert decision.actions[0].reward == 2.0
    assert math.isnan(decision.actions[1].reward)


def test_nodes_of_one_step_stay_apart():
    """A tree with one noise has several states at a step; only `decision` tells them apart."""
    same = {"prompt_row": [1] * 2, "prompt": ["p"] * 2, "seed": [0] * 2, "branch_step": [3] * 2, "exploration": [0] * 2}
    table = pa.table(same | {"decision": [4, 5], "leaf": [0, 1], "reward": [1.0, 2.0], "advantage": [0.0, 0.0]})
    assert [decision.index for decision in decisions(table)] == [4, 5]
    assert len(decisions(table.drop_columns("decision"))) == 1


def test_the_table_that_a_run_writes_is_read():
    leaf_NKL = np.arange(6).reshape(3, 2, 1)
    parts = task_columns(
        Task(0, "a cat", (0, 4, 17), 4),
        Tree(np.array([0, 1, 0]), np.array([0, 0, 1]), leaf_NKL, 6),
        {"size": np.arange(6.0)},
        np.arange(6.0),
        np.array([[-1.0, 1.0]] * 3),
    )
    found = tree(pa.table(parts), 17)
    assert [[d["step"] for d in trunk["decisions"]] for trunk in found["trunks"]] == [[0, 1], [0]]
    assert found["trunks"][1]["decisions"][0]["actions"][1] == {"advantage": 1.0, "leaves": [5], "reward": 5.0}
