"""The experience of one training step: its prompts, its groups by spread, and the tree of one task."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from system.report.data import number

SHOWN_GROUPS = 8
"""Groups that are listed at each end."""
BINS = 24
"""Bars of the histogram of spreads."""


@dataclass
class Action:
    """One action of a decision."""

    advantage: float
    leaves: list[int] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    """The reward of each leaf; NaN is a hole."""

    @property
    def reward(self) -> float:
        """The mean of the leaves' rewards; NaN if one is a hole."""
        return sum(self.rewards) / len(self.rewards)


@dataclass
class Decision:
    """A state at which actions were drawn."""

    row: int
    """The prompt's row, which names the task within the step."""
    index: int
    """The decision's place in its task."""
    seed: int
    branch_step: int
    actions: dict[int, Action] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """Actions that are compared with each other."""

    row: int
    prompt: str
    seed: int | None
    """The trunk; None if actions of several trunks are compared."""
    step: int | None
    """The branch step; None if actions of several steps are compared."""
    actions: int
    holes: int
    mean: float | None
    spread: float | None
    """The standard deviation of the rewards; None if all are holes."""


def numbers(table: pa.Table, name: str) -> list[float]:
    """A column of numbers. A missing value is NaN."""
    return [math.nan if value is None else value for value in table[name].to_pylist()]


def decisions(table: pa.Table) -> list[Decision]:
    """The decisions of a training step. Without the column `decision`, trunk and branch step name a state."""
    names = ["prompt_row", "decision" if "decision" in table.column_names else "branch_step"]
    columns = [table[name].to_pylist() for name in (*names, "seed", "branch_step", "exploration", "leaf")]
    found: dict[tuple[int, int, int], Decision] = {}
    rows = zip(*columns, numbers(table, "reward"), numbers(table, "advantage"), strict=True)
    for row, index, seed, branch_step, k, leaf, reward, advantage in rows:
        decision = found.setdefault((row, index, seed), Decision(row, index, seed, branch_step))
        action = decision.actions.setdefault(k, Action(advantage))
        action.leaves.append(leaf)
        action.rewards.append(reward)
    return list(found.values())


def groups(table: pa.Table, rule: str) -> list[Group]:
    """The groups of a training step, the widest spread first.

    Args:
        rule: who is compared with whom, as `advantage.group` names it.
    """
    prompts = dict(zip(table["prompt_row"].to_pylist(), table["prompt"].to_pylist(), strict=True))
    members: dict[tuple[int, ...], list[float]] = {}
    first: dict[tuple[int, ...], Decision] = {}
    for decision in decisions(table):
        key = {"prompt": (), "prompt_step": (decision.branch_step,)}.get(
            rule, (decision.branch_step, decision.seed, decision.index)
        )
        first.setdefault((decision.row, *key), decision)
        members.setdefault((decision.row, *key), []).extend(action.reward for action in decision.actions.values())
    found = []
    for key, rewards in members.items():
        known = [reward for reward in rewards if not math.isnan(reward)]
        found.append(
            Group(
                key[0],
                prompts[key[0]],
                key[2] if len(key) > 2 else None,
                key[1] if len(key) > 1 else None,
                len(rewards),
                len(rewards) - len(known),
                float(np.mean(known)) if known else None,
                _spread(known),
            )
        )
    return sorted(found, key=lambda group: math.inf if group.spread is None else -group.spread)


def _spread(rewards: list[float]) -> float | None:
    """The standard deviation, exactly 0 for equal rewards; None without any."""
    if not rewards:
        return None
    return float(np.std(rewards)) if min(rewards) < max(rewards) else 0.0


def describe_groups(found: list[Group]) -> dict[str, Any]:
    """How many groups have which spread, and the groups at both ends."""
    spreads = [group.spread for group in found if group.spread is not None]
    counts, edges = np.histogram(spreads, BINS, (0.0, max(spreads, default=0.0) or 1.0))
    ends = found[:SHOWN_GROUPS] + found[max(SHOWN_GROUPS, len(found) - SHOWN_GROUPS) :]
    return {
        "count": len(found),
        "flat": sum(not spread > 0 for spread in spreads),
        "histogram": {"counts": counts.tolist(), "edges": edges.tolist()},
        "ends": [asdict(group) for group in ends],
    }


def prompt_means(table: pa.Table) -> dict[int, tuple[str, float]]:
    """The prompt and the mean reward of each task, by prompt row. Holes are left out; the mean is NaN if all are."""
    row_R, reward_R = np.array(table["prompt_row"].to_pylist()), np.array(numbers(table, "reward"))
    prompts = dict(zip(row_R.tolist(), table["prompt"].to_pylist(), strict=True))
    found = {}
    for row, prompt in prompts.items():
        known = reward_R[(row_R == row) & ~np.isnan(reward_R)]
        found[row] = (prompt, float(known.mean()) if len(known) else math.nan)
    return found


def tree(table: pa.Table, row: int) -> dict[str, Any]:
    """One task: its trunks with their decisions and actions, and its leaves with their scores and advantages."""
    task = table.filter(pc.equal(table["prompt_row"], row))
    scorers = [name.removeprefix("reward/") for name in task.column_names if name.startswith("reward/")]
    leaves: dict[int, dict[str, Any]] = {}
    for line in task.to_pylist():
        leaf = leaves.setdefault(line["leaf"], {"leaf": line["leaf"], "seed": line["seed"], "advantages": []})
        leaf["reward"] = number(line["reward"])
        leaf["scores"] = {name: number(line[f"reward/{name}"]) for name in scorers}
        if (advantage := number(line["advantage"])) not in leaf["advantages"]:
            leaf["advantages"].append(advantage)
    trunks: dict[int, list[dict[str, Any]]] = {}
    for decision in decisions(task):
        actions = [
            {"advantage": number(action.advantage), "leaves": action.leaves, "reward": number(action.reward)}
            for _, action in sorted(decision.actions.items())
        ]
        trunks.setdefault(decision.seed, []).append({"step": decision.branch_step, "actions": actions})
    return {
        "row": row,
        "prompt": next(iter(task["prompt"].to_pylist()), ""),
        "scorers": scorers,
        "leaves": [leaves[leaf] for leaf in sorted(leaves)],
        "trunks": [{"seed": seed, "decisions": found} for seed, found in trunks.items()],
    }
