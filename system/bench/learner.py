"""One forward a decision against one row a branch, as the reference scripts train."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from actors.learner.learner import Learner
from actors.policy.arrays import to_arrays
from actors.policy.families.family import Conditioning
from actors.policy.kernels import make_kernel
from actors.policy.policy import Policy
from actors.rollout.plans import make_plan, trainable_steps
from actors.rollout.sampler import Sampler
from actors.trajectory import Decisions
from system.bench.measure import alternate, name_of
from system.recipe.model import RunConfig


def bench_learner(config: RunConfig, policy: Policy, conditioning: Conditioning, rounds: int) -> dict[str, Any]:
    """Figures of both, on the decisions of one task and the same rows a micro-batch."""
    plan = make_plan(config.plan, policy.settings.num_steps)
    kernel = make_kernel(config.kernel, policy.sigmas)
    sampler = Sampler(policy.family, policy.sigmas, kernel, config.rollout.micro_batch)
    front = sampler(plan, [(0, 0, 0, seed) for seed in range(plan.seeds)], [0] * plan.seeds, conditioning)
    shared = replace(front.decisions, conditioning=to_arrays(conditioning))
    advantage_NK = np.random.default_rng(0).normal(size=shared.log_prob_NK.shape)
    batches = {"a decision": (shared, advantage_NK), "a branch": (apart(shared), advantage_NK.reshape(-1, 1))}
    settings = config.learner.model_copy(update={"lr": 1e-12, "weight_decay": 0.0, "max_drift": 10.0})
    learner = Learner(
        policy, config.kernel, config.objective, settings, trainable_steps(config.plan, policy.settings.num_steps)
    )
    figures: dict[str, Any] = {
        "device": name_of(policy.device),
        "decisions": len(shared.step_N),
        "K": plan.siblings,
    }
    norms, peaks = {}, {}
    for name, batch in batches.items():
        if policy.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(policy.device)
        norms[name] = learner.update([batch]).grad_norm
        peaks[name] = torch.cuda.max_memory_allocated(policy.device) if policy.device.type == "cuda" else None
    calls = {name: partial(learner.update, [batch]) for name, batch in batches.items()}
    best = alternate(calls, rounds, policy.device)
    for name in batches:
        figures[f"one forward {name}"] = {
            "seconds": best[name],
            "decisions_per_s": len(shared.step_N) / best[name],
            "grad_norm": norms[name],
            "peak_bytes": peaks[name],
        }
    figures["speedup"] = best["a branch"] / best["a decision"]
    figures["speedup_of_K"] = figures["speedup"] / figures["K"]
    return figures


def apart(decisions: Decisions) -> Decisions:
    """The same actions, each with a row of its own: (N, K) decisions become (N·K, 1)."""
    width = decisions.log_prob_NK.shape[1]
    return Decisions(
        np.repeat(decisions.step_N, width),
        np.repeat(decisions.state_NZ, width, axis=0),
        np.repeat(decisions.mean_NZ, width, axis=0),
        [[address] for addresses in decisions.noise_NK for address in addresses],
        decisions.log_prob_NK.reshape(-1, 1),
        np.repeat(decisions.weight_N, width),
        decisions.conditioning,
    )
