"""An estimate as a program reads it."""

from __future__ import annotations

from typing import Any

from system.capacity.cards import GB
from system.capacity.estimate import Estimate
from system.capacity.host import node_share
from system.capacity.memory import Process


def estimate_json(estimate: Estimate, price: float | None) -> dict[str, Any]:
    """Numbers with their units in the keys."""
    task, step = estimate.task, estimate.step
    return {
        "card": estimate.card.name,
        "rates": estimate.card.source,
        "gpus": estimate.gpus,
        "gpus_asked": estimate.asked,
        "roles_on_gpus": estimate.packing.cards,
        "fits": estimate.fits,
        "fix": estimate.fix,
        "memory_gb": {one.role: _process(one) for one in estimate.processes},
        "host_memory_gb": {one.role: _process(one) for one in estimate.host},
        "host_gb": estimate.host_bytes / GB,
        "host_gb_of_a_node": estimate.host_bytes * node_share(estimate.host) / GB,
        "task_s": {name: getattr(task, name) for name in ("encoding", "sampling", "decoding", "scoring", "learning")},
        "task_counts": {"nfe": task.nfe, "images": task.images, "learner_nfe": task.passes},
        "padding": {"sampling": task.sampling_padding, "learning": task.learning_padding},
        "step_s": {
            "rollout": step.rollout,
            "scoring": step.scoring,
            "last_scores": step.last_scores,
            "learning": step.learning,
            "optimizer": step.optimizer,
            "total": step.total,
            "evaluation": step.evaluation,
        },
        "idle": step.idle,
        "idle_gpus": estimate.waits,
        "store_gb": estimate.store_bytes / GB,
        "checkpoint_gb": estimate.checkpoint_bytes / GB,
        "disk_gb_per_day": estimate.disk_bytes_per_day / GB,
        "gpu_hours": estimate.gpu_hours,
        "price": None if price is None else price * estimate.gpu_hours,
        "best_split": vars(estimate.best),
        "own_split": vars(estimate.own),
        "merged_step_s": estimate.merged_seconds,
    }


def _process(one: Process) -> dict[str, Any]:
    return {
        "processes": one.count,
        "gpus_each": one.gpus,
        "peak": one.peak_bytes / GB,
        "peak_phase": one.phase,
        "held": {name: num_bytes / GB for name, num_bytes in one.held.items()},
        "phases": {name: num_bytes / GB for name, num_bytes in one.phases.items()},
    }
