"""Seconds of a training step by role, from counts in the plan and a roofline of every pass.

Not in it: Python and the launch of kernels, transfers between processes and the start of a run.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil

import numpy as np

from actors.policy.settings import PolicySettings
from services.scoring.settings import ScorerSettings
from system.capacity.cards import TINY, Card
from system.capacity.counts import live_rows, trained_rows
from system.capacity.memory import (
    compared,
    first_plan,
    forwards_per_row,
    learned_policy,
    local_policy,
    rollout_rows,
    sampling,
    shared_scorers,
)
from system.capacity.optimizer import copied_bytes, step_bytes_moved
from system.capacity.passes import decode_pass, encode_pass, learner_pass, rollout_pass, text_encoders
from system.capacity.scorers import resizing_seconds, reward_of
from system.loop.heldout import scorers_of
from system.recipe.evaluation import EvalSet
from system.recipe.model import RunConfig

TERA = 1e12
COPY_BYTES_PER_S = 20e9
"""From the CPU's pinned memory to a GPU, an assumption. Offloaded text encoders are not copied back."""


@dataclass(frozen=True)
class TaskTime:
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
class StepTime:
    """Seconds of a training step."""

    rollout: float
    scoring: float
    """Seconds in which the replicas of the slowest scorer that trains work."""
    last_scores: float
    """Seconds from the end of the last task's generation to its scores."""
    learning: float
    optimizer: float
    """Seconds of the optimizer's steps, a part of `learning`."""
    total: float
    evaluation: float
    """Generating and scoring held-out images, spread over the steps between two evaluations."""
    idle: dict[str, float]
    """The share of `total` in which the GPUs of a role wait, in the mean over them. Reward models that share the GPUs
    of other roles have none of their own to wait."""

    @property
    def waits(self) -> str:
        """The role whose GPUs wait longest."""
        return max(self.idle, key=lambda role: self.idle[role])


def task_seconds(config: RunConfig, card: Card) -> TaskTime:
    """Raises UserError if the shapes of the policy's model are not known."""
    policy, plan = local_policy(config), first_plan(config)
    each, rows = forwards_per_row(policy), rollout_rows(config, policy)
    forwards = sum(ceil(live / rows) for live in live_rows(plan))
    batch, micro_batch = config.rollout.decode_batch, config.learner.micro_batch
    trained, more = trained_rows(config, plan), compared(config)
    learned = learned_policy(config, policy)
    forward = rollout_pass(learned, micro_batch).seconds(card)
    update = learner_pass(learned, micro_batch, bool(more)).seconds(card) + max(0, more - 1) * forward
    objective, stale = config.objective, config.learner.max_staleness > 0
    micro_batches = ceil(trained / micro_batch)
    return TaskTime(
        encoding=_encoding_seconds(config, card, policy),
        sampling=forwards * rollout_pass(sampling(config, policy), rows).seconds(card),
        decoding=ceil(plan.leaves / batch) * decode_pass(policy, batch).seconds(card),
        scoring=plan.leaves * _image_seconds(config, card, (scorer.name for scorer in config.training_scorers)),
        learning=micro_batches * (objective.epochs * update + objective.read_back(stale) * forward),
        nfe=plan.nfe * each,
        images=plan.leaves,
        passes=forwards_per_row(learned) * objective.task_passes(trained, stale),
        sampling_padding=1 - plan.nfe / (forwards * rows),
        learning_padding=1 - trained / (micro_batches * micro_batch),
    )


def _encoding_seconds(config: RunConfig, card: Card, policy: PolicySettings) -> float:
    """Seconds of encoding one prompt."""
    seconds = encode_pass(policy, forwards_per_row(policy) > 1).seconds(card)
    if config.rollout.offload_text_encoders:
        seconds += sum(num_bytes for _, num_bytes in text_encoders(policy).values()) / COPY_BYTES_PER_S
    return seconds


def _image_seconds(config: RunConfig, card: Card, names: Iterable[str]) -> float:
    """Seconds of one image on all replicas together of the slowest of these scorers."""
    seconds = (_replica_seconds(config, card, name) / _scorer(config, name).replicas.max for name in names)
    return max(seconds, default=0.0)


def _last_scores(config: RunConfig, card: Card, names: Iterable[str], jobs: int, images: int) -> float:
    """Seconds until the images of jobs that end at the same time are scored, by the slowest of these scorers.

    Each job's images are sent in requests. A replica works on one request at a time, so that they come in waves.
    """

    def seconds(name: str) -> float:
        scorer = _scorer(config, name)
        size = min(scorer.request_images, images)
        waves = ceil(jobs * ceil(images / size) / scorer.replicas.max)
        return waves * size * _replica_seconds(config, card, name)

    return max(map(seconds, names), default=0.0)


def _replica_seconds(config: RunConfig, card: Card, name: str) -> float:
    """Seconds of one image on one replica of a scorer: of its model or of its CPU threads, whichever takes longer."""
    scorer = _scorer(config, name)
    on_card = reward_of(scorer, config.policy).per_image.seconds(card) * _on_one_card(config, scorer)
    return max(on_card, resizing_seconds(scorer, config.policy))


def _on_one_card(config: RunConfig, scorer: ScorerSettings) -> float:
    """How many replicas of a scorer share a GPU, each with its part of the GPU's rate."""
    if not 0 < scorer.num_gpus < 1 or scorer.name in shared_scorers(config):
        return 1.0
    return scorer.replicas.max / ceil(scorer.replicas.max / int(1 / scorer.num_gpus + TINY))


def _scorer(config: RunConfig, name: str) -> ScorerSettings:
    return next(scorer for scorer in config.scorers if scorer.name == name)


def _generated_and_scored(rounds: int, round_s: float, scoring: float, last_scores: float) -> float:
    """Seconds until the jobs of all workers, a job a round for each, are generated and scored.

    One round is scored while the next is generated: what ends last is either the last round's scores, or a pool that
    has had work since the end of the first round.
    """
    return max(rounds * round_s + last_scores, round_s + scoring)


def _in_last_round(jobs: int, workers: int) -> int:
    return jobs - workers * (ceil(jobs / workers) - 1)


def step_seconds(config: RunConfig, card: Card, task: TaskTime) -> StepTime:
    """A step on the recipe's numbers of workers and ranks; a role takes as long as its process with most tasks."""
    prompts, rollout, learner = config.data.prompts_per_step, config.rollout, config.learner
    rounds = ceil(prompts / rollout.workers)
    generating, scoring = rounds * task.rollout, prompts * task.scoring
    names = [scorer.name for scorer in config.training_scorers]
    last = _last_scores(config, card, names, _in_last_round(prompts, rollout.workers), task.images)
    minibatches = [len(part) for part in np.array_split(range(prompts), config.objective.optimizer_steps)]
    step_s = step_bytes_moved(config) / (card.memory_tb_per_s * TERA) + copied_bytes(config) / COPY_BYTES_PER_S
    optimizer = config.objective.epochs * len(minibatches) * step_s
    learning = sum(ceil(tasks / learner.ranks) for tasks in minibatches) * task.learning  # each step waits for all
    learning += optimizer
    shared = _scoring_beside(config, card, names, prompts * task.images)
    made = max(_generated_and_scored(rounds, task.rollout, scoring, last), generating + shared)
    ahead = learner.max_staleness > 0
    total = max(made, learning) if ahead else made + learning
    idle = _idle(config, task, shared, optimizer, total)
    if scoring and not shared:
        idle["reward"] = 1 - scoring / total
    return StepTime(
        rollout=generating,
        scoring=scoring,
        last_scores=last,
        learning=learning,
        optimizer=optimizer,
        total=total,
        evaluation=_evaluation(config, card),
        idle=idle,
    )


def _idle(config: RunConfig, task: TaskTime, shared: float, optimizer: float, total: float) -> dict[str, float]:
    """The shares in which rollout and learner wait. Where prompts cannot be dealt out evenly, some of them wait."""
    prompts, workers, ranks = config.data.prompts_per_step, config.rollout.workers, config.learner.ranks
    generates = prompts * task.rollout / workers + shared
    learns = prompts * task.learning + ranks * optimizer
    if config.placement == "colocated":
        return {"rollout and learner": 1 - (generates + learns / workers) / total}
    return {"rollout": 1 - generates / total, "learner": 1 - learns / ranks / total}


def _scoring_beside(config: RunConfig, card: Card, names: Iterable[str], images: int) -> float:
    """Seconds that scoring takes from a rollout worker whose GPU it shares; 0 if the reward models have GPUs of their
    own.

    The work of each scorer is spread evenly over its replicas, and no GPU has two replicas of one scorer.
    """
    shared = shared_scorers(config)
    scorers = [_scorer(config, name) for name in names if name in shared]
    return sum(
        images * reward_of(scorer, config.policy).per_image.seconds(card) / scorer.replicas.max for scorer in scorers
    )


def _evaluation(config: RunConfig, card: Card) -> float:
    """Seconds of evaluating, for each training step."""
    return sum(_set_seconds(config, card, one) for one in config.eval_sets.values()) / config.eval.every


def _set_seconds(config: RunConfig, card: Card, one: EvalSet) -> float:
    """Seconds of evaluating a held-out set once. Its file is taken to have the number of prompts that is asked for."""
    prompts, each = config.eval.prompts, one.images_per_prompt
    policy = config.eval_sampling.of(local_policy(config))
    rows, workers, batch = rollout_rows(config, policy), config.rollout.workers, config.rollout.decode_batch
    in_batch = min(max(1, config.eval.batch // each), prompts)
    batches, images = ceil(prompts / in_batch), in_batch * each
    generating = (
        ceil(images / rows) * policy.num_steps * rollout_pass(sampling(config, policy), rows).seconds(card)
        + ceil(images / batch) * decode_pass(policy, batch).seconds(card)
        + in_batch * _encoding_seconds(config, card, policy)
    )
    names = [scorer.name for scorer in scorers_of(config, one)]
    scoring = prompts * each * _image_seconds(config, card, names)
    last = _last_scores(config, card, names, _in_last_round(batches, workers), images)
    rounds, shared = ceil(batches / workers), _scoring_beside(config, card, names, prompts * each)
    return max(_generated_and_scored(rounds, generating, scoring, last), rounds * generating + shared)
