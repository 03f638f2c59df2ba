"""The whole system over the same work in one process without Ray; and what a broadcast of weights costs."""

from __future__ import annotations

import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray
import torch
from rich.console import Console

from actors.learner.learner import Learner
from actors.policy.policy import Policy
from actors.reward.counted import Counted, counted
from actors.reward.scores import scores_of
from actors.rollout.plans import make_plan, trainable_steps
from actors.rollout.worker import Generator
from services.scoring.loaded import LoadedScorer
from system.launch.cluster import connect
from system.launch.roles import RayRoles
from system.loop.combine import combine
from system.loop.prompts import prompts_of, rows_for, tasks_of_step
from system.recipe.model import RunConfig
from system.training import train_run

SKIPPED_STEPS = 1
"""The first step pays for what is made once; it is not counted."""


def bench_pipeline(config: RunConfig, steps: int, console: Console) -> dict[str, Any]:
    """Images a second of both, over the same tasks and updates."""
    plain = one_process(config, steps)
    lines = _train(config, steps, console)[SKIPPED_STEPS:]
    plan = make_plan(config.plan, config.policy.num_steps)
    images = plan.leaves * config.data.prompts_per_step
    system = images * len(lines) / sum(line["seconds/step"] for line in lines)
    return {
        "steps": steps,
        "images_per_step": images,
        "rollout_workers": config.rollout.workers,
        "system_images_per_s": system,
        "one_process_images_per_s": plain,
        "ratio": system / plain,
    }


def bench_weights(config: RunConfig, rounds: int) -> dict[str, Any]:
    """MB, and seconds from the export to the last confirmation, for an adapter and for every weight."""
    full = config.policy.model_copy(update={"lora": None})
    runs = {"lora": config, "full": config.model_copy(update={"policy": full})}
    figures: dict[str, Any] = {"rollout_workers": config.rollout.workers}
    trainable = trainable_steps(config.plan, config.policy.num_steps)
    connect()
    try:
        for name, run in runs.items():
            with TemporaryDirectory() as logs, RayRoles(run, trainable, Path(logs)) as roles:
                started = 0.0
                for i in range(SKIPPED_STEPS + rounds):
                    if i == SKIPPED_STEPS:
                        started = time.perf_counter()
                    exported = roles.learners.export(0)
                    sent = (exported.label, *exported.buckets)
                    answers = [worker.load.remote(*sent) for worker in roles.rollouts.workers.values()]
                    ray.get(answers, timeout=config.rollout.task_timeout_s)
                figures[name] = {
                    "mb": exported.label.num_bytes / 1e6,
                    "seconds": (time.perf_counter() - started) / rounds,
                }
    finally:
        ray.shutdown()
    return figures


def one_process(config: RunConfig, steps: int) -> float:
    """Images a second of generate, score, compare, update, load, one after the other in this process.

    It has the CPU threads of all rollout workers together.
    """
    torch.set_num_threads(config.rollout.threads * config.rollout.workers)
    generator = Generator(Policy(config.policy, config.seed), config.kernel, config.rollout)
    policy = Policy(config.policy, config.seed, "transformer")
    learner = Learner(
        policy, config.kernel, config.objective, config.learner, trainable_steps(config.plan, config.policy.num_steps)
    )
    scorers = [LoadedScorer(scorer) for scorer in config.training_scorers]
    prompts = prompts_of(config.data, config.data.train)
    images, started = 0, 0.0
    for step in range(steps):
        if step == SKIPPED_STEPS:
            started = time.perf_counter()
        generator.load(learner.export())
        done: list[Any] = []
        tasks: list[Counted] = []
        for task in tasks_of_step(prompts, config.data.prompts_per_step, step, config.seed, version=step):
            experience, images_MHWC, (tree, *_) = generator.generate(
                task, make_plan(config.plan, config.policy.num_steps, task.address)
            )
            texts = [task.prompt] * len(images_MHWC)
            done.append((experience, tree))
            rows = rows_for(config.scorers, prompts, [task.address[2]]) * len(texts)
            scores = scores_of(scorers, images_MHWC, texts, rows)
            tasks.append(counted(config.scorers, scores, prompts.category(task.address[2])))
            images += len(images_MHWC) if step >= SKIPPED_STEPS else 0
        compared = combine(config.reward.combine, config.advantage, [tree for _, tree in done], tasks).advantages
        learner.update([(experience, a) for (experience, _), a in zip(done, compared.by_task, strict=True)])
    return images / (time.perf_counter() - started)


def _train(config: RunConfig, steps: int, console: Console) -> list[dict[str, Any]]:
    """Metrics of a short run of the recipe, without evaluation."""
    with TemporaryDirectory(prefix="tempflow-bench-") as folder:
        short = config.model_copy(
            update={
                "name": "bench",
                "output": folder,
                "steps": steps,
                "data": config.data.model_copy(update={"heldout": None}),
                "checkpoint": config.checkpoint.model_copy(update={"every": steps, "folder": None}),
            }
        )
        train_run(short, resume=False, console=console)
        lines = (Path(folder) / "bench" / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["step"]]
