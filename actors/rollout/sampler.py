"""The wavefront sampler: all that is alive at step i, trunks and branches, goes through the model together.

T rounds instead of T(T−1)/2, each in full micro-batches of one shape, so that a row's bits do not depend on its
neighbours. Shape legend: B trunks, R live rows, N decisions, K actions, Z latent dimensions, M leaves, P prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from actors.policy.family import Conditioning, Family
from actors.policy.kernels import FlowSDE, ode_step
from actors.rollout.noise import Address, noise
from actors.rollout.plans import Plan
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
    """Live trajectories that travel together."""

    x_RZ: Tensor
    address: list[Address]
    prompt: list[int]
    """Row of the conditioning."""
    owners: list[Owners]
    """The row becomes a leaf of each of its owners."""

    def __len__(self) -> int:
        return len(self.address)


class Sampler:
    """Runs a plan on a policy family.

    Args:
        family: the model.
        sigmas: (T+1,) on the family's device.
        kernel: draws the actions of stochastic steps.
        micro_batch: rows of one transformer forward, guidance halves included.
    """

    def __init__(self, family: Family, sigmas: Tensor, kernel: FlowSDE, micro_batch: int) -> None:
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
        branches = _Rows(trunks.x_RZ[:0], [], [], [])
        seed_of = {root: b for b, root in enumerate(roots)}
        depth = len(roots[0])
        step_N: list[int] = []
        seed_N: list[int] = []
        states, actions, log_probs = [], [], []
        nfe = padding = 0
        for i, fork in enumerate(plan.forks):
            v_RZ, padded = self._velocity(trunks, branches, i, conditioning)
            nfe += len(v_RZ)
            padding += padded
            v_trunk_BZ, v_branch_RZ = v_RZ[: len(trunks)], v_RZ[len(trunks) :]
            branches.x_RZ = ode_step(branches.x_RZ, v_branch_RZ, self.sigmas, i)
            if not fork.width:
                trunks.x_RZ = ode_step(trunks.x_RZ, v_trunk_BZ, self.sigmas, i)
                continue
            action_BKZ, log_prob_BK, children = self._act(trunks, v_trunk_BZ, i, fork.width)
            if fork.trained:
                children.owners = _descend(trunks.owners, len(step_N), fork.width)
                states.append(trunks.x_RZ)
                actions.append(action_BKZ)
                log_probs.append(log_prob_BK)
                step_N += [i] * len(trunks)
                seed_N += [seed_of[address[:depth]] for address in trunks.address]
            if not fork.keep_trunk:
                trunks = children
                continue
            branches = _join(branches, children)
            trunks.x_RZ = ode_step(trunks.x_RZ, v_trunk_BZ, self.sigmas, i)
            if i == plan.last_fork:
                trunks = _Rows(trunks.x_RZ[:0], [], [], [])
        leaves = _join(trunks, branches)
        tree = Tree(
            np.array(step_N, np.int64),
            np.array(seed_N, np.int64),
            _ownership(leaves.owners, [a.shape[1] for a in actions for _ in range(len(a))]),
            len(leaves),
        )
        return Wavefront(
            leaves.x_RZ,
            tree,
            self._decisions(tree, states, actions, log_probs),
            Cost(nfe * self.family.forwards_per_row, padding * self.family.forwards_per_row),
        )

    def _noise(self, addresses: Sequence[Address]) -> Tensor:
        return noise(addresses, self.family.latent_shape).to(self.sigmas.device)

    def _velocity(self, trunks: _Rows, branches: _Rows, i: int, conditioning: Conditioning) -> tuple[Tensor, int]:
        """(R, Z) velocities of trunks then branches at step i, and the rows of padding they took."""
        x_RZ = torch.cat([trunks.x_RZ, branches.x_RZ])
        prompt_R = torch.tensor(trunks.prompt + branches.prompt, device=x_RZ.device)
        padding = -len(x_RZ) % self.rows
        x_RZ = torch.cat([x_RZ, x_RZ[:1].expand(padding, *x_RZ.shape[1:])])
        prompt_R = torch.cat([prompt_R, prompt_R[:1].expand(padding)])
        sigma_R = self.sigmas[i].expand(self.rows)
        chunks = []
        for start in range(0, len(x_RZ), self.rows):
            rows = slice(start, start + self.rows)
            chosen = {name: tensor[prompt_R[rows]] for name, tensor in conditioning.items()}
            chunks.append(self.family.velocity(x_RZ[rows], sigma_R, chosen))
        v_RZ = torch.cat(chunks)
        return v_RZ[: len(v_RZ) - padding], padding

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

    def _decisions(self, tree: Tree, states: list[Tensor], actions: list[Tensor], log_probs: list[Tensor]) -> Decisions:
        if not states:
            empty = np.zeros((0, *self.family.latent_shape), np.float32)
            return Decisions(tree.step_N, empty, empty[:, None], np.zeros((0, 0), np.float32))
        return Decisions(
            tree.step_N, _numpy(torch.cat(states)), _numpy(torch.cat(actions)), _numpy(torch.cat(log_probs))
        )


def _descend(owners: list[Owners], first: int, width: int) -> list[Owners]:
    """The owners of each action of decisions `first`, `first` + 1, …, one below each trunk."""
    return [(*above, (first + b, k)) for b, above in enumerate(owners) for k in range(width)]


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.cpu().numpy()


def _join(first: _Rows, second: _Rows) -> _Rows:
    return _Rows(
        torch.cat([first.x_RZ, second.x_RZ]),
        first.address + second.address,
        first.prompt + second.prompt,
        first.owners + second.owners,
    )


def _ownership(owners: list[Owners], widths: list[int]) -> np.ndarray:
    """leaf_NKL from the owners of each leaf; `widths` holds K of each decision (equal within a plan)."""
    owned: dict[tuple[int, int], list[int]] = {}
    for leaf, above in enumerate(owners):
        for pair in above:
            owned.setdefault(pair, []).append(leaf)
    most = max((len(leaves) for leaves in owned.values()), default=1)
    leaf_NKL = np.full((len(widths), max(widths, default=1), most), -1, np.int64)
    for (n, k), leaves in owned.items():
        leaf_NKL[n, k, : len(leaves)] = leaves
    return leaf_NKL
