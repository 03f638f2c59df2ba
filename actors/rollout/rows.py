"""The rows of a wavefront: trajectories that move together, and the ODE solvers that complete branches.

Shape legend: R rows, K actions, Z latent dimensions, T sampling steps.
"""

from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from actors.policy.solvers import dpm_solver_2m, euler
from actors.rollout.plans.plan import Solver
from actors.trajectory import Address

Owners = tuple[tuple[int, int], ...]
"""The (decision, action) pairs that led to a row, from the root down."""


@dataclass(frozen=True)
class Rows:
    """Trajectories at the same step."""

    x_RZ: Tensor
    address: list[Address]
    """The address of the noise that made each row."""
    seed: list[int]
    """The index of the initial noise of each row."""
    prompt: list[int]
    """The row of the conditioning that belongs to each row."""
    owners: list[Owners]
    """The actions that each row belongs to. The row becomes a leaf of all of them."""

    def __len__(self) -> int:
        return len(self.address)

    def at(self, x_RZ: Tensor) -> "Rows":
        """The same trajectories in their next states."""
        return replace(self, x_RZ=x_RZ)

    def none(self) -> "Rows":
        """Empty rows with the same latent shape and device."""
        return Rows(self.x_RZ[:0], [], [], [], [])

    def children(self, action_RKZ: Tensor, address: list[Address], owners: list[Owners]) -> "Rows":
        """Turn the K actions of each row into R·K rows. `address` and `owners` belong to the actions."""
        width = action_RKZ.shape[1]
        seed, prompt = ([value for value in values for _ in range(width)] for values in (self.seed, self.prompt))
        return Rows(action_RKZ.flatten(0, 1), address, seed, prompt, owners)


class CompletionSolver(Protocol):
    """Moves branches from one grid point to the next. It may keep their history."""

    def step(self, x_RZ: Tensor, v_RZ: Tensor, here: int, there: int) -> Tensor:
        """The states at grid point `there`, computed from the states and velocities at `here`."""


class Euler:
    """Euler's method, which has no history."""

    def __init__(self, sigmas: Tensor) -> None:
        self.sigmas = sigmas

    def step(self, x_RZ: Tensor, v_RZ: Tensor, here: int, there: int) -> Tensor:
        return euler(x_RZ, v_RZ, self.sigmas[here], self.sigmas[there])


@dataclass(frozen=True)
class Prediction:
    """The prediction x̂₀ (R, Z), made at noise level σ."""

    x0_RZ: Tensor
    sigma: Tensor


class DpmSolver2M:
    """DPM-Solver++(2M) extrapolates from the predictions at this grid point and at the previous one.

    The first step has no previous prediction and is an Euler step. A later step to σ = 0 returns the prediction itself.
    """

    def __init__(self, sigmas: Tensor) -> None:
        self.sigmas = sigmas
        self.earlier: Prediction | None = None
        """The prediction at the previous grid point; None before the first step."""

    def step(self, x_RZ: Tensor, v_RZ: Tensor, here: int, there: int) -> Tensor:
        sigma, following = self.sigmas[here], self.sigmas[there]
        earlier, now = self.earlier, Prediction(x_RZ - sigma * v_RZ, sigma)
        self.earlier = now
        if earlier is None:
            return euler(x_RZ, v_RZ, sigma, following)
        if there == len(self.sigmas) - 1:
            return now.x0_RZ
        return dpm_solver_2m(x_RZ, now.x0_RZ, earlier.x0_RZ, sigma, following, earlier.sigma)


SOLVERS: dict[Solver, type[Euler] | type[DpmSolver2M]] = {"euler": Euler, "dpm2": DpmSolver2M}


@dataclass
class Branches:
    """Branches that began at the same step and are completed with the same stride."""

    rows: Rows
    visits: tuple[int, ...]
    """The present grid point of the branches, and the remaining ones up to the end."""
    solver: CompletionSolver

    def advance(self, v_RZ: Tensor) -> None:
        """Move to the next grid point with the velocities (R, Z) at the present one."""
        here, there, *_ = self.visits
        self.rows = self.rows.at(self.solver.step(self.rows.x_RZ, v_RZ, here, there))
        self.visits = self.visits[1:]
