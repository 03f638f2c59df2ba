"""The wavefront sampler against the loop of the reference scripts, on the same trees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from actors.policy.families.family import Conditioning
from actors.policy.kernels import Kernel, make_kernel
from actors.policy.noise import noise
from actors.policy.policy import Policy
from actors.policy.solvers import euler
from actors.rollout.plans import Plan, make_plan
from actors.rollout.sampler import Sampler
from actors.trajectory import Address
from system.bench.measure import Inside, alternate, flops_of, matmul_peak, name_of, seconds
from system.recipe.model import RunConfig


def bench_sampler(config: RunConfig, policy: Policy, conditioning: Conditioning, rounds: int) -> dict[str, Any]:
    """Figures of both, on one task of the recipe's size (TempFlow-GRPO's plan)."""
    plan = make_plan(config.plan, policy.settings.num_steps)
    kernel = make_kernel(config.kernel, policy.sigmas)
    sampler = Sampler(policy.family, policy.sigmas, kernel, config.rollout.micro_batch)
    roots = [(0, 0, 0, seed) for seed in range(plan.seeds)]
    calls = {
        "wavefront": lambda: sampler(plan, roots, [0] * plan.seeds, conditioning).leaf_MZ,
        "reference": lambda: one_branch_at_a_time(policy, kernel, plan, roots, conditioning),
    }
    best = alternate(calls, rounds, policy.device)
    nfe = plan.nfe * policy.family.forwards_per_row
    peak = matmul_peak(policy.device, policy.family.dtype)
    figures: dict[str, Any] = {"device": name_of(policy.device), "nfe": nfe, "matmul_peak_tflops": peak / 1e12}
    flops_per_nfe = _flops_per_forward(policy, conditioning)
    for name, call in calls.items():
        with Inside(policy.transformer, policy.device) as inside:
            watched = seconds(call, policy.device)
        figures[name] = {
            "forwards": inside.calls,
            "rows_padded": inside.rows - nfe,
            "seconds": best[name],
            "nfe_per_s": nfe / best[name],
            "share_inside_transformer": inside.seconds / watched,
            "share_of_matmul_peak": flops_per_nfe * nfe / best[name] / peak,
        }
    figures["speedup"] = best["reference"] / best["wavefront"]
    figures["max_difference"] = float((calls["wavefront"]() - calls["reference"]()).abs().max())
    return figures


@torch.no_grad()
def one_branch_at_a_time(
    policy: Policy, kernel: Kernel, plan: Plan, roots: Sequence[Address], conditioning: Conditioning
) -> Tensor:
    """(M, Z) leaves of TempFlow-GRPO's plan, in the wavefront's order, as the reference scripts make them.

    For each trunk and each branch step, K explorations are completed to the end before the trunk goes on.
    """
    family, sigmas = policy.family, policy.sigmas

    def velocity(x_RZ: Tensor, i: int) -> Tensor:
        rows = {name: tensor.expand(len(x_RZ), *tensor.shape[1:]) for name, tensor in conditioning.items()}
        return family.velocity(x_RZ, sigmas[i].expand(len(x_RZ)), rows)

    leaves: dict[int, list[Tensor]] = {i: [] for i in plan.trained_steps}
    for root in roots:
        x_1Z = noise([root], family.latent_shape).to(policy.device)
        for i in plan.trained_steps:
            v_1Z = velocity(x_1Z, i)
            mean_1Z = kernel.mean(x_1Z, v_1Z, torch.tensor([i], device=policy.device))
            addresses = [(*root, i, k) for k in range(plan.forks[i].width)]
            branch_KZ = mean_1Z + kernel.std_T[i] * noise(addresses, family.latent_shape).to(policy.device)
            for j in range(i + 1, len(plan.forks)):
                branch_KZ = euler(branch_KZ, velocity(branch_KZ, j), sigmas[j], sigmas[j + 1])
            leaves[i].append(branch_KZ)
            x_1Z = euler(x_1Z, v_1Z, sigmas[i], sigmas[i + 1])
    return torch.cat([branch_KZ for i in plan.trained_steps for branch_KZ in leaves[i]])


def _flops_per_forward(policy: Policy, conditioning: Conditioning) -> float:
    """Of one NFE."""
    x_1Z = noise([(0,)], policy.family.latent_shape).to(policy.device)
    with torch.no_grad():
        total = flops_of(lambda: policy.family.velocity(x_1Z, policy.sigmas[:1], conditioning))
    return total / policy.family.forwards_per_row
