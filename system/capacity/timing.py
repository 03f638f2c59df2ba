"""Seconds of a training step by role, from counts in the plan and a roofline of every pass.

Not in it: Python and the launch of kernels, transfers between processes, the optimizer's step and the start of a run.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import numpy as np

from system.capacity.cards import Card
from system.capacity.counts import live_rows, trained_rows
from system.capacity.memory import compared, first_plan, forwards_per_row, local_policy, rollout_rows, sampling
from system.capacity.passes import decode_pass, encode_pass, learner_pass, rollout_pass, text_encoders
from system.capacity.scorers import reward_of
from system.recipe.model import RunConfig

COPY_BYTES_PER_S = 20e9
"""From the CPU's pinned memory to a GPU, an assumption. Offloaded text encoders are not copied back."""


@dataclass(frozen=True)
class Task:
    """Seconds of one task (a prompt) on one process of each role, and the share of padding in its rows."""

    encoding: float
    sampling: float
    decoding: float
    scoring: float
    """Seconds of the slowest scorer that trains, on all of its replicas together."""
    learning: float
    nfe: int
    """Forwards that the task needs; those of guidance count."""
    images: int
    passes: float
    """Passes of the learner that it needs; a backward counts 2."""
    sampling_padding: float
    learning_padding: float

    @property
    def rollout(self) -> float:
        return self.encoding + self.sampling + self.decoding


@dataclass(frozen=True)
class Step:
    """Seconds of a training step."""

    rollout: float
    scoring: float
    learning: float
    total: float
    evaluation: float
    """Held-out images, spread over the steps between two evaluations."""
    idle: dict[str, float]
    """The share of `total` in which the GPUs of a role wait."""

    @property
    def waits(self) -> str:
        """The role whose GPUs wait longest."""
        return max(self.idle, key=lambda role: self.idle[role])


def task_seconds(config: RunConfig, card: Card) -> Task:
    """Raises UserError if the shapes of the policy's model are not known."""
    policy, plan = local_policy(config), first_plan(config)
    each, rows = forwards_per_row(policy), rollout_rows(config)
    forwards = sum(ceil(live / rows) for live in live_rows(plan))
    encoding = encode_pass(policy, each > 1).seconds(card)
    if config.rollout.offload_text_encoders:
        encoding += sum(num_bytes for _, num_bytes in text_encoders(policy).values()) / COPY_BYTES_PER_S
    batch, micro_batch = config.rollout.decode_batch, config.learner.micro_batch
    trained, more = trained_rows(config, plan), compared(config)
    forward = rollout_pass(policy, micro_batch).seconds(card)
    update = learner_pass(policy, micro_batch, bool(more)).seconds(card) + max(0, more - 1) * forward
    objective, stale = config.objective, config.learner.max_staleness > 0
    again = 1.0 if stale else (objective.optimizer_steps - 1) / objective.optimizer_steps
    micro_batches = ceil(trained / micro_batch)
    return Task(
        encoding,
        forwards * rollout_pass(sampling(config, policy), rows).seconds(card),
        ceil(plan.leaves / batch) * decode_pass(policy, batch).seconds(card),
        max((plan.leaves * _image_seconds(config, card, name) for name in config.weights), default=0.0),
        micro_batches * (update + again * objective.compares_with_old * forward),
        plan.nfe * each,
        plan.leaves,
        each * objective.task_passes(trained, stale),
        1 - plan.nfe / (forwards * rows),
        1 - trained / (micro_batches * micro_batch),
    )


def _image_seconds(config: RunConfig, card: Card, name: str) -> float:
    """Seconds of one image on all replicas of a scorer together."""
    scorer = next(scorer for scorer in config.scorers if scorer.name == name)
    found = reward_of(scorer)
    return (found.per_image.seconds(card) + found.cpu_s) / scorer.replicas.max


def step_seconds(config: RunConfig, card: Card, task: Task) -> Step:
    """A step on the recipe's numbers of workers and ranks; a role takes as long as its process with most tasks."""
    prompts, rollout, learner = config.data.prompts_per_step, config.rollout, config.learner
    generating = ceil(prompts / rollout.workers) * task.rollout
    scoring = prompts * task.scoring
    minibatches = [len(part) for part in np.array_split(range(prompts), config.objective.optimizer_steps)]
    learning = sum(ceil(tasks / learner.ranks) for tasks in minibatches) * task.learning  # each step waits for all
    made = max(generating + task.scoring, scoring)  # scores of a task are computed while the next one is generated
    ahead = learner.max_staleness > 0
    total = max(made, learning) if ahead else made + learning
    if config.placement == "colocated":
        idle = {"rollout and learner": 1 - (generating + learning) / total}
    else:
        idle = {"rollout": 1 - generating / total, "learner": 1 - learning / total}
    if scoring:
        idle["reward"] = 1 - scoring / total
    return Step(generating, scoring, learning, total, _evaluation(config, card, task), idle)


def _evaluation(config: RunConfig, card: Card, task: Task) -> float:
    """Seconds of evaluating, for each training step."""
    if config.data.heldout is None:
        return 0.0
    settings, rows = config.eval, rollout_rows(config)
    policy = local_policy(config)
    batches = ceil(settings.prompts / settings.batch)
    forwards = ceil(min(settings.batch, settings.prompts) / rows) * (settings.num_steps or config.policy.num_steps)
    batch = config.rollout.decode_batch
    decoding = ceil(settings.batch / batch) * decode_pass(policy, batch).seconds(card)
    one = (
        forwards * rollout_pass(sampling(config, policy), rows).seconds(card)
        + decoding
        + settings.batch * task.encoding
    )
    return ceil(batches / config.rollout.workers) * one / settings.every
