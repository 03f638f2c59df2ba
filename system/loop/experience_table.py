"""The experience log: every leaf of a training step with its rewards and advantage, as one Parquet table."""

import numpy as np
import pyarrow as pa

from actors.reward.scores import gathered
from actors.trajectory import Task, Tree
from system.loop.experience import Experience


def experience_table(experience: Experience) -> pa.Table:
    """One row for each (action, leaf) pair.

    Columns: step, policy_version, prompt_row, prompt, decision (its index in the task), seed, branch_step, exploration,
    leaf, reward/SCORER…, reward/SCORER.SUB…, reward, advantage. A leaf that several actions own (a chain) stands once
    for each.
    """
    every_leaf = gathered(experience.scores)
    ends = np.cumsum([task.tree.num_leaves for task in experience.generated])[:-1]
    split = {name: np.split(values, ends) for name, values in every_leaf.items()}
    parts = [
        task_columns(done.task, done.tree, {name: parts[i] for name, parts in split.items()}, reward_M, advantage_NK)
        for i, (done, reward_M, advantage_NK) in enumerate(
            zip(experience.generated, experience.rewards, experience.advantages.by_task, strict=True)
        )
    ]
    return pa.table({name: pa.concat_arrays([pa.array(part[name]) for part in parts]) for name in parts[0]})


def task_columns(
    task: Task, tree: Tree, scores: dict[str, np.ndarray], reward_M: np.ndarray, advantage_NK: np.ndarray
) -> dict[str, np.ndarray | pa.Array]:
    """The columns of one task. Its scores (by scorer) and rewards have one number for each of its M leaves."""
    n, k, place = np.nonzero(tree.leaf_NKL >= 0)
    leaf = tree.leaf_NKL[n, k, place]
    rows = len(leaf)
    return {
        "step": np.full(rows, task.training_step),
        "policy_version": np.full(rows, task.version),
        "prompt_row": np.full(rows, task.address[2]),
        "prompt": pa.array([task.prompt] * rows, pa.string()),
        "decision": n,
        "seed": tree.seed_N[n],
        "branch_step": tree.step_N[n],
        "exploration": k,
        "leaf": leaf,
        **{f"reward/{name}": values[leaf] for name, values in scores.items()},
        "reward": reward_M[leaf],
        "advantage": advantage_NK[n, k],
    }
