"""The wavefront sampler: all that is alive at step i, trunks and branches, goes through the model together.

T rounds instead of T(T−1)/2, each in full micro-batches of one shape, so that a row's bits do not depend on its
neighbours. Shape legend: B trunks, R live rows, N decisions, K actions, Z latent dimensions, M leaves, P prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from actors.policy.family import Conditioning, Family
from actors.policy.kernels import Kernel
from actors.policy.noise import Address, noise
from actors.policy.solvers import dpm_solver_2m, euler
from actors.rollout.plans.plan import Fork, Plan, Solver, visits
from actors.trajectory import Cost, Decisions, Tree

Owners = tuple[tuple[int, int], ...]
"""(decision, action) pairs above a row, from the root down."""


@dataclass(frozen=True)
class Wavefront:
    """What the sampler returns: leaves in the order of `Tree`, decisions, cost."""

    leaf_MZ: Tensor
    tree: Tree
    decisions: Decisions
    cost: Cost


@dataclass
class _Rows:
    """Trajectories that move together: the live trunks, or branches born at one step with one stride."""

    x_RZ: Tensor
    address: list[Address]
    prompt: list[int]
    """Row of the conditioning."""
    owners: list[Owners]
    """The row becomes a leaf of each of its owners."""
    visits: tuple[int, ...] = ()
    """Of branches: where they are on the grid, then where they go, to the end."""
    before: tuple[Tensor, Tensor] | None = None
    """Of branches on a multistep solver: x̂₀ (R, Z) and σ at the last visit."""

    def __len__(self) -> int:
        return len(self.address)

    def advance(self, v_RZ: Tensor, sigmas: Tensor, solver: Solver) -> None:
        """To the next visit."""
        here, there = self.visits[:2]
        sigma, following = sigmas[here], sigmas[there]
        x_RZ, before = self.x_RZ, self.before
        if solver == "dpm2":
            self.before = (x_RZ - sigma * v_RZ, sigma)
        if before is None or self.before is None:
            self.x_RZ = euler(x_RZ, v_RZ, sigma, following)
        elif there == len(sigmas) - 1:
            self.x_RZ = self.before[0]
        else:
            self.x_RZ = dpm_solver_2m(x_RZ, self.before[0], before[0], sigma, following, before[1])
        self.visits = self.visits[1:]


@dataclass
class _Record:
    """The decisions of a task as they are made."""

    siblings: int
    step_N: list[int] = field(default_factory=list)
    seed_N: list[int] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)
    actions: list[Tensor] = field(default_factory=list)
    log_probs: list[Tensor] = field(default_factory=list)
    weight_N: list[float] = field(default_factory=list)

    def add(
        self, i: int, seeds: list[int], state_BZ: Tensor, action_BKZ: Tensor, log_prob_BK: Tensor, weight: float
    ) -> list[tuple[int, int]]:
        """Record step i; returns the (decision, action) of each action, trunk after trunk."""
        width = action_BKZ.shape[1]
        repeats = width // self.siblings
        first = len(self.step_N)
        count = len(seeds) * repeats
        self.step_N += [i] * count
        self.seed_N += [seed for seed in seeds for _ in range(repeats)]
        self.weight_N += [weight] * count
        self.states.append(state_BZ.repeat_interleave(repeats, 0))
        self.actions.append(action_BKZ.reshape(count, self.siblings, *state_BZ.shape[1:]))
        self.log_probs.append(log_prob_BK.reshape(count, self.siblings))
        return [(first + a // self.siblings, a % self.siblings) for a in range(len(seeds) * width)]

    def decisions(self, latent_shape: tuple[int, ...]) -> Decisions:
        step_N, weight_N = np.array(self.step_N, np.int64), np.array(self.weight_N, np.float32)
        if not self.states:
            empty = np.zeros((0, *latent_shape), np.float32)
            return Decisions(step_N, empty, empty[:, None], np.zeros((0, 0), np.float32), weight_N)
        state_NZ, action_NKZ, log_prob_NK = (
            torch.cat(parts).cpu().numpy() for parts in (self.states, self.actions, self.log_probs)
        )
        return Decisions(step_N, state_NZ, action_NKZ, log_prob_NK, weight_N)


class Sampler:
    """Runs a plan on a policy family.

    Args:
        family: the model.
        sigmas: (T+1,) on the family's device.
        kernel: draws the actions of stochastic steps.
        micro_batch: rows of one transformer forward, guidance halves included.
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
        """Generate one trunk a root and the branches that the plan asks for.

        Args:
            plan: one Fork a step.
            roots: B addresses; root b starts from noise(root).
            prompts: B rows of `conditioning`.
            conditioning: embeddings of P prompts.
        """
        trunks = _Rows(self._noise(roots), list(roots), list(prompts), [()] * len(roots))
        branches: list[_Rows] = []
        seed_of = {root: b for b, root in enumerate(roots)}
        depth = len(roots[0])
        record = _Record(plan.siblings)
        nfe = padding = 0
        for i, fork in enumerate(plan.forks):
            due = [branch for branch in branches if branch.visits[0] == i]
            (v_trunk_BZ, *v_due), padded = self._velocity([trunks, *due], i, conditioning)
            nfe += len(trunks) + sum(map(len, due))
            padding += padded
            for branch, v_RZ in zip(due, v_due, strict=True):
                branch.advance(v_RZ, self.sigmas, plan.solver)
            if fork.width:
                action_BKZ, log_prob_BK, children = self._act(trunks, v_trunk_BZ, i, fork.width)
                if fork.trained:
                    seeds = [seed_of[address[:depth]] for address in trunks.address]
                    pairs = record.add(i, seeds, trunks.x_RZ, action_BKZ, log_prob_BK, 1 / fork.chance)
                    children.owners = [(*above, pair) for above, pair in zip(children.owners, pairs, strict=True)]
                if fork.baseline:
                    branches.append(self._baselines(trunks, children, v_trunk_BZ, i))
                if not fork.keep_trunk:
                    trunks = children
                    continue
                branches += self._completions(children, fork, i, len(plan.forks))
            trunks.x_RZ = euler(trunks.x_RZ, v_trunk_BZ, self.sigmas[i], self.sigmas[i + 1])
            if i == plan.last_fork:
                trunks = _Rows(trunks.x_RZ[:0], [], [], [])
        leaves = [trunks, *branches]
        owners = [above for rows in leaves for above in rows.owners]
        decisions = record.decisions(self.family.latent_shape)
        tree = Tree(
            decisions.step_N,
            np.array(record.seed_N, np.int64),
            _ownership(owners, len(decisions.step_N), plan.siblings),
            len(owners),
        )
        return Wavefront(
            torch.cat([rows.x_RZ for rows in leaves]),
            tree,
            decisions,
            Cost(nfe * self.family.forwards_per_row, padding * self.family.forwards_per_row),
        )

    def _noise(self, addresses: Sequence[Address]) -> Tensor:
        return noise(addresses, self.family.latent_shape).to(self.sigmas.device)

    def _velocity(self, groups: list[_Rows], i: int, conditioning: Conditioning) -> tuple[list[Tensor], int]:
        """(R, Z) velocities of each group at step i, and the rows of padding they took together."""
        x_RZ = torch.cat([rows.x_RZ for rows in groups])
        if not len(x_RZ):
            return [x_RZ] * len(groups), 0
        prompt_R = torch.tensor([prompt for rows in groups for prompt in rows.prompt], device=x_RZ.device)
        padding = -len(x_RZ) % self.rows
        x_RZ = torch.cat([x_RZ, x_RZ[:1].expand(padding, *x_RZ.shape[1:])])
        prompt_R = torch.cat([prompt_R, prompt_R[:1].expand(padding)])
        sigma_R = self.sigmas[i].expand(self.rows)
        chunks = []
        for start in range(0, len(x_RZ), self.rows):
            rows = slice(start, start + self.rows)
            chosen = {name: tensor[prompt_R[rows]] for name, tensor in conditioning.items()}
            chunks.append(self.family.velocity(x_RZ[rows], sigma_R, chosen))
        *parts, _ = torch.cat(chunks).split([*map(len, groups), padding])
        return parts, padding

    def _act(self, trunks: _Rows, v_BZ: Tensor, i: int, width: int) -> tuple[Tensor, Tensor, _Rows]:
        """Draw K actions from each trunk's state: (B, K, Z), their log-probs (B, K), and the rows that go on."""
        step_B = torch.full((len(trunks),), i, device=v_BZ.device)
        mean_BZ = self.kernel.mean(trunks.x_RZ, v_BZ, step_B)
        addresses = [(*address, i, k) for address in trunks.address for k in range(width)]
        noise_BKZ = self._noise(addresses).unflatten(0, (len(trunks), width))
        action_BKZ = mean_BZ.unsqueeze(1) + self.kernel.std_T[i] * noise_BKZ
        children = _Rows(
            action_BKZ.flatten(0, 1),
            addresses,
            [prompt for prompt in trunks.prompt for _ in range(width)],
            [above for above in trunks.owners for _ in range(width)],
        )
        return action_BKZ, self.kernel.log_prob(action_BKZ, mean_BZ, step_B), children

    def _baselines(self, trunks: _Rows, children: _Rows, v_BZ: Tensor, i: int) -> _Rows:
        """The trunks of step i after a deterministic step, to be completed: a leaf of each of their actions."""
        width = len(children) // len(trunks)
        owners = [
            (*above, *(pairs[-1] for pairs in children.owners[b * width : (b + 1) * width]))
            for b, above in enumerate(trunks.owners)
        ]
        x_BZ = euler(trunks.x_RZ, v_BZ, self.sigmas[i], self.sigmas[i + 1])
        num_steps = len(self.sigmas) - 1
        return _Rows(x_BZ, trunks.address, trunks.prompt, owners, visits(i + 1, num_steps, 1.0))

    def _completions(self, children: _Rows, fork: Fork, i: int, num_steps: int) -> list[_Rows]:
        """Branches of the actions of step i, a group a stride."""
        return [
            _Rows(children.x_RZ, children.address, children.prompt, children.owners, visits(i + 1, num_steps, stride))
            for stride in fork.strides
        ]


def _ownership(owners: list[Owners], decisions: int, siblings: int) -> np.ndarray:
    """leaf_NKL from the owners of each leaf."""
    owned: dict[tuple[int, int], list[int]] = {}
    for leaf, above in enumerate(owners):
        for pair in above:
            owned.setdefault(pair, []).append(leaf)
    most = max((len(leaves) for leaves in owned.values()), default=1)
    leaf_NKL = np.full((decisions, siblings, most), -1, np.int64)
    for (n, k), leaves in owned.items():
        leaf_NKL[n, k, : len(leaves)] = leaves
    return leaf_NKL
