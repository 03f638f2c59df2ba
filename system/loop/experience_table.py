"""The experience log: every leaf of a training step with its rewards and advantage, as one Parquet table."""

import numpy as np
import pyarrow as pa

from actors.reward.scores import Scores
from actors.trajectory import Task, Tree
from system.loop.experience import Experience


def experience_table(experience: Experience) -> pa.Table:
    """One row for each (action, leaf) pair.

    Columns: step, policy_version, prompt_row, prompt, seed, branch_step, exploration, leaf, reward/SCORER…, reward,
    advantage. A leaf that several actions own (a chain) stands once for each.
    """
    parts = [
        _task_columns(done.task, done.tree, scores, reward_M, advantage_NK)
        for done, scores, reward_M, advantage_NK in zip(
            experience.generated,
            experience.scores,
            experience.rewards,
            experience.advantages.by_task,
            strict=True,
        )
    ]
    return pa.table({name: pa.concat_arrays([pa.array(part[name]) for part in parts]) for name in parts[0]})


def _task_columns(task: Task, tree: Tree, scores: Scores, reward_M: np.ndarray, advantage_NK: np.ndarray) -> dict:
    n, k, place = np.nonzero(tree.leaf_NKL >= 0)
    leaf = tree.leaf_NKL[n, k, place]
    rows = len(leaf)
    return {
        "step": np.full(rows, task.step),
        "policy_version": np.full(rows, task.version),
        "prompt_row": np.full(rows, task.address[2]),
        "prompt": pa.array([task.prompt] * rows, pa.string()),
        "seed": tree.seed_N[n],
        "branch_step": tree.step_N[n],
        "exploration": k,
        "leaf": leaf,
        **{f"reward/{name}": values[leaf] for name, values in scores.by_scorer.items()},
        "reward": reward_M[leaf],
        "advantage": advantage_NK[n, k],
    }
