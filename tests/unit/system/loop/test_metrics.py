"""The spread of siblings' rewards, and the metrics of sub-scores, against figures by hand."""

from types import SimpleNamespace

import numpy as np
import pytest

from actors.policy.weights import Exported, Label
from actors.trajectory import Tree
from system.loop.collect import Collector
from system.loop.experience_table import experience_table
from system.loop.metrics import branch_std, describe_rewards
from system.loop.prompts import read_prompts
from system.recipe.load import load_config
from tests.helpers.fakes import FakeRoles


def experience(*tasks: tuple[list[int], list[list[float]]]) -> SimpleNamespace:
    """Tasks whose decisions are at these steps, with one leaf for each action and these rewards (N, K)."""
    generated, rewards = [], []
    for steps, reward_NK in tasks:
        reward_NK = np.array(reward_NK)
        count, width = reward_NK.shape
        leaf_NKL = np.arange(count * width).reshape(count, width, 1)
        tree = Tree(np.array(steps), np.zeros(count, np.int64), leaf_NKL, count * width)
        generated.append(SimpleNamespace(tree=tree))
        rewards.append(reward_NK.reshape(-1))
    return SimpleNamespace(generated=generated, rewards=rewards)


def test_siblings_are_compared_within_a_decision_and_decisions_of_all_tasks_are_averaged():
    first = ([0, 0, 2], [[0, 2], [0, 4], [1, 1]])
    second = ([0], [[5, 11]])
    np.testing.assert_allclose(branch_std(4, experience(first, second)), [(1 + 2 + 3) / 3, np.nan, 0, np.nan])


def test_chains_are_compared_over_the_seeds_of_a_task():
    task = ([0, 1, 0, 1], [[1], [5], [3], [5]])
    np.testing.assert_allclose(branch_std(2, experience(task)), [1, 0])


def test_holes_are_left_out_and_a_group_of_holes_is_none():
    task = ([0, 0, 1], [[0, np.nan, 4], [np.nan, np.nan, np.nan], [np.nan, np.nan, np.nan]])
    np.testing.assert_allclose(branch_std(2, experience(task)), [2, np.nan])


def test_a_step_without_decisions_has_no_spread():
    assert branch_std(2, experience()) == pytest.approx([np.nan, np.nan], nan_ok=True)


def test_sub_scores_have_metrics_and_columns_of_their_own(tmp_path):
    roles = FakeRoles()
    score = roles.rewards.score

    def with_sub_scores(images, prompts, names, *more):
        done = score(images, prompts, names, *more)
        if len(roles.rewards.asked) == 2:
            done.result().sub_scores["pickscore.hue"] = np.arange(float(len(prompts)))
        return done

    roles.rewards.score = with_sub_scores
    (tmp_path / "prompts.txt").write_text("a\nb\n")
    config = load_config("shapes", [f"data.train={tmp_path / 'prompts.txt'}", "data.prompts_per_step=2"])
    with Collector(config, roles, read_prompts(config.data.train), 0, lambda: None) as collector:
        collector.publish(Exported(("w",), Label(0, "w", 1)))
        taken = collector.take(0, lambda done, of: None)
    line, leaves = describe_rewards(config, taken), taken.generated[0].tree.num_leaves
    assert line["reward/pickscore.hue/mean"] == pytest.approx((leaves - 1) / 2)
    assert line["reward/pickscore.hue/std"] == pytest.approx(np.arange(leaves).std())
    assert line["reward/pickscore.hue/holes"] == leaves
    assert line["reward/pickscore/holes"] == 0
    assert "reward/pickscore.hue/flat_groups" not in line
    assert taken.num_scores == 2 * leaves, "the cost counts scorers"
    table = experience_table(taken)
    names = table.column_names
    assert names.index("reward/pickscore.hue") == names.index("reward/pickscore") + 1
    second = table["prompt_row"].to_numpy() == taken.generated[1].task.address[2]
    hue = table["reward/pickscore.hue"].to_numpy()
    assert np.isnan(hue[~second]).all()
    np.testing.assert_array_equal(hue[second], table["leaf"].to_numpy()[second])
