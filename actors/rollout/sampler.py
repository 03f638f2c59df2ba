"""The wavefront sampler: at each step, every unfinished trajectory runs through the model in one batch.

This takes T rounds instead of T(T−1)/2. Each round uses full micro-batches of one shape, so that a row's bits do not
depend on other rows. Shape legend: B trunks, R unfinished rows, N decisions, K actions, Z latent dimensions, M leaves,
P prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from actors.policy.families.family import Conditioning, Family
from actors.policy.kernels import Kernel
from actors.policy.noise import noise
from actors.policy.solvers import euler
from actors.rollout.plans.plan import Fate, Fork, Plan, visits
from actors.rollout.rows import SOLVERS, Branches, Owners, Rows
from actors.trajectory import Address, Cost, Decisions, Tree


@dataclass(frozen=True)
class Wavefront:
    """The sampler's result: the leaves in the order of `tree`, the decisions, and the cost."""

    leaf_MZ: Tensor
    tree: Tree
    decisions: Decisions
    cost: Cost


@dataclass
class _Record:
    """Collects the decisions of a task during sampling."""

    siblings: int
    """K of every decision."""
    step_N: list[int] = field(default_factory=list)
    seed_N: list[int] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)
    means: list[Tensor] = field(default_factory=list)
    noise_NK: list[list[Address]] = field(default_factory=list)
    log_probs: list[Tensor] = field(default_factory=list)
    weight_N: list[float] = field(default_factory=list)

    def add(
        self, i: int, trunks: Rows, mean_BZ: Tensor, addresses: list[Address], log_prob_BK: Tensor, weight: float
    ) -> list[tuple[int, int]]:
        """Record the actions of step i, with the addresses of their noise, trunk by trunk.

        Returns:
            The (decision, action) pair of each action.
        """
        width = log_prob_BK.shape[1]
        repeats = width // self.siblings
        first = len(self.step_N)
        count = len(trunks) * repeats
        self.step_N += [i] * count
        self.seed_N += [seed for seed in trunks.seed for _ in range(repeats)]
        self.weight_N += [weight] * count
        self.states.append(trunks.x_RZ.repeat_interleave(repeats, 0))
        self.means.append(mean_BZ.repeat_interleave(repeats, 0))
        self.noise_NK += [addresses[a : a + self.siblings] for a in range(0, len(addresses), self.siblings)]
        self.log_probs.append(log_prob_BK.reshape(count, self.siblings))
        return [(first + a // self.siblings, a % self.siblings) for a in range(len(trunks) * width)]

    def decisions(self, latent_shape: tuple[int, ...]) -> Decisions:
        step_N, weight_N = np.array(self.step_N, np.int64), np.array(self.weight_N, np.float32)
        if not self.states:
            empty = np.zeros((0, *latent_shape), np.float32)
            return Decisions(step_N, empty, empty, [], np.zeros((0, 0), np.float32), weight_N)
        state_NZ, mean_NZ, log_prob_NK = (
            torch.cat(parts).cpu().numpy() for parts in (self.states, self.means, self.log_probs)
        )
        return Decisions(step_N, state_NZ, mean_NZ, self.noise_NK, log_prob_NK, weight_N)

    def tree(self, owners: Sequence[Owners]) -> Tree:
        """The leaves of each action, from the actions that own each leaf."""
        step_N, seed_N = np.array(self.step_N, np.int64), np.array(self.seed_N, np.int64)
        owned: dict[tuple[int, int], list[int]] = {}
        for leaf, above in enumerate(owners):
            for pair in above:
                owned.setdefault(pair, []).append(leaf)
        most = max((len(leaves) for leaves in owned.values()), default=1)
        leaf_NKL = np.full((len(step_N), self.siblings, most), -1, np.int64)
        for (n, k), leaves in owned.items():
            leaf_NKL[n, k, : len(leaves)] = leaves
        return Tree(step_N, seed_N, leaf_NKL, len(owners))


class Sampler:
    """Runs a plan on a policy family.

    Args:
        family: the model.
        sigmas: (T+1,) on the family's device.
        kernel: draws the actions of stochastic steps.
        micro_batch: rows in one transformer forward. The two halves of guidance count as rows.
    """

    def __init__(self, family: Family, sigmas: Tensor, kernel: Kernel, micro_batch: int) -> None:
        self.family = family
        self.sigmas = sigmas
        self.kernel = kernel
        self.rows = max(1, micro_batch // family.forwards_per_row)

    @torch.no_grad()
    def __call__(
        self, plan: Plan, roots: Sequence[Address], prompts: Sequence[int], conditioning: Conditioning
    ) -> Wavefront:
        """Generate one trunk per root, and the branches of the plan.

        Args:
            plan: one Fork per step.
            roots: B addresses. Trunk b starts from the noise of address b.
            prompts: the row of `conditioning` for each of the B trunks.
            conditioning: the embeddings of P prompts.
        """
        trunks = self._trunks(self.noise(roots), roots, prompts)
        branches: list[Branches] = []
        record = _Record(plan.siblings)
        nfe = padding = 0
        for i, fork in enumerate(plan.forks):
            due = [branch for branch in branches if branch.visits[0] == i]
            (v_trunk_BZ, *v_due), padded = self._velocity([trunks, *(branch.rows for branch in due)], i, conditioning)
            nfe += len(trunks) + sum(len(branch.rows) for branch in due)
            padding += padded
            for branch, v_RZ in zip(due, v_due, strict=True):
                branch.advance(v_RZ)
            actions = self._actions(trunks, v_trunk_BZ, i, fork, record) if fork.width else trunks.none()
            if fork.baseline is not None:
                branches.append(self._baselines(trunks, actions, v_trunk_BZ, plan, i))
            match plan.fate(i):
                case Fate.CONTINUES:
                    trunks = self._continued(trunks, v_trunk_BZ, i)
                case Fate.BRANCHES:
                    branches += self._branches(actions, plan, i)
                    trunks = self._continued(trunks, v_trunk_BZ, i)
                case Fate.ENDS:
                    branches += self._branches(actions, plan, i)
                    trunks = trunks.none()
                case Fate.SPLITS:
                    trunks = actions
        leaves = [trunks, *(branch.rows for branch in branches)]
        each = self.family.forwards_per_row
        return Wavefront(
            torch.cat([rows.x_RZ for rows in leaves]),
            record.tree([above for rows in leaves for above in rows.owners]),
            record.decisions(self.family.latent_shape),
            Cost(nfe * each, padding * each),
        )

    @torch.no_grad()
    def flow(
        self,
        x_BZ: Tensor,
        roots: Sequence[Address],
        prompts: Sequence[int],
        conditioning: Conditioning,
        steps: range,
    ) -> Tensor:
        """Take deterministic steps.

        Args:
            x_BZ: the states before the first of the steps.
            steps: which of the T steps are taken.

        Returns:
            The states after the steps, (B, Z).
        """
        rows = self._trunks(x_BZ, roots, prompts)
        for i in steps:
            (v_BZ,), _ = self._velocity([rows], i, conditioning)
            rows = self._continued(rows, v_BZ, i)
        return rows.x_RZ

    def _trunks(self, x_BZ: Tensor, roots: Sequence[Address], prompts: Sequence[int]) -> Rows:
        return Rows(x_BZ, list(roots), list(range(len(roots))), list(prompts), [()] * len(roots))

    def noise(self, addresses: Sequence[Address]) -> Tensor:
        """The noise at B addresses, (B, Z)."""
        return noise(addresses, self.family.latent_shape).to(self.sigmas.device, non_blocking=True)

    def _velocity(self, parts: list[Rows], i: int, conditioning: Conditioning) -> tuple[list[Tensor], int]:
        """The velocities (R, Z) of each of `parts` at step i, and the number of padding rows in all."""
        x_RZ = torch.cat([rows.x_RZ for rows in parts])
        if not len(x_RZ):
            return [x_RZ] * len(parts), 0
        prompt_R = torch.tensor([prompt for rows in parts for prompt in rows.prompt])
        prompt_R = prompt_R.to(x_RZ.device, non_blocking=True)
        padding = -len(x_RZ) % self.rows
        x_RZ = torch.cat([x_RZ, x_RZ[:1].expand(padding, *x_RZ.shape[1:])])
        prompt_R = torch.cat([prompt_R, prompt_R[:1].expand(padding)])
        sigma_R = self.sigmas[i].expand(self.rows)
        chunks = []
        for start in range(0, len(x_RZ), self.rows):
            rows = slice(start, start + self.rows)
            chosen = {name: tensor[prompt_R[rows]] for name, tensor in conditioning.items()}
            chunks.append(self.family.velocity(x_RZ[rows], sigma_R, chosen))
        *v, _ = torch.cat(chunks).split([*map(len, parts), padding])
        return v, padding

    def _continued(self, trunks: Rows, v_BZ: Tensor, i: int) -> Rows:
        """The trunks after a deterministic step."""
        return trunks.at(euler(trunks.x_RZ, v_BZ, self.sigmas[i], self.sigmas[i + 1]))

    def _actions(self, trunks: Rows, v_BZ: Tensor, i: int, fork: Fork, record: _Record) -> Rows:
        """Draw K actions from the state of each trunk. Trained actions are recorded."""
        step_B = torch.full((len(trunks),), i, device=v_BZ.device)
        mean_BZ = self.kernel.mean(trunks.x_RZ, v_BZ, step_B)
        addresses = [(*address, i, k) for address in trunks.address for k in range(fork.width)]
        noise_BKZ = self.noise(addresses).unflatten(0, (len(trunks), fork.width))
        action_BKZ = self.kernel.action(mean_BZ, noise_BKZ, step_B)
        owners = [above for above in trunks.owners for _ in range(fork.width)]
        if fork.trained:
            log_prob_BK = self.kernel.log_prob(action_BKZ, mean_BZ, step_B)
            pairs = record.add(i, trunks, mean_BZ, addresses, log_prob_BK, 1 / fork.chance)
            owners = [(*above, pair) for above, pair in zip(owners, pairs, strict=True)]
        return trunks.children(action_BKZ, addresses, owners)

    def _baselines(self, trunks: Rows, actions: Rows, v_BZ: Tensor, plan: Plan, i: int) -> Branches:
        """The baselines of step i: the trunks after one deterministic step. Each becomes a leaf of its actions."""
        width = len(actions) // len(trunks)
        owners = [
            (*above, *(pairs[-1] for pairs in actions.owners[b * width : (b + 1) * width]))
            for b, above in enumerate(trunks.owners)
        ]
        points = plan.baseline_visits(i)
        x_BZ = euler(trunks.x_RZ, v_BZ, self.sigmas[i], self.sigmas[points[0]])
        return Branches(replace(trunks.at(x_BZ), owners=owners), points, SOLVERS[plan.solver](self.sigmas))

    def _branches(self, actions: Rows, plan: Plan, i: int) -> list[Branches]:
        """The branches of the actions of step i, one `Branches` per stride."""
        return [
            Branches(actions, visits(i + 1, len(plan.forks), stride), SOLVERS[plan.solver](self.sigmas))
            for stride in plan.forks[i].strides
        ]
