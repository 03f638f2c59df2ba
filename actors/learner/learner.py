"""The learner: decisions and advantages in, one policy version further out. Plain PyTorch, no Ray.

One forward and one backward serve all K siblings of a decision: they share the state, hence the velocity, and
∂L/∂v is the sum over them. Shape legend: N decisions, K actions, Z latent dimensions, T steps.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from actors.learner.ema import Ema
from actors.learner.objective import grpo
from actors.learner.settings import LearnerSettings, ObjectiveSettings
from actors.policy.kernels import FlowSDE, noise_weights
from actors.policy.policy import Policy
from actors.policy.settings import FlowSDESettings
from actors.policy.weights import Weights, checksum
from actors.trajectory import Decisions
from services.errors import UserError

ADAPTER_FILE, EMA_FILE, OPTIMIZER_FILE = "adapter.safetensors", "ema.safetensors", "optimizer.safetensors"


@dataclass
class UpdateStats:
    """What one update did. Lists are by sampling step (T), NaN where a step had no decision."""

    loss: float = 0.0
    kl: float = 0.0
    grad_norm: float = 0.0
    """Mean over the optimizer steps, before clipping."""
    ratio_mean: float = 0.0
    ratio_max_deviation: float = 0.0
    """max |ρ − 1| over the update; exactly 0 where the update is one optimizer step."""
    first_ratio_deviation: float = 0.0
    """max |ρ − 1| before the first optimizer step: 0, or the learner is wrong."""
    clip_fraction: float = 0.0
    drift_mean: list[float] = field(default_factory=list)
    """Mean |log p(rollout) − log p(learner)| before the update."""
    drift_max: list[float] = field(default_factory=list)
    nfe: int = 0
    """Forwards and backwards (a backward counts 2), reference and old passes included."""
    seconds: float = 0.0


@dataclass(frozen=True)
class _MicroBatch:
    """Rows of one forward: tensors on the device, padded to the fixed size with advantage and weight 0."""

    state_NZ: Tensor
    action_NKZ: Tensor
    step_N: Tensor
    advantage_NK: Tensor
    behaviour_NK: Tensor
    conditioning: dict[str, Tensor]
    real: int
    """Rows that are not padding."""


class Learner:
    """Owns the trained adapter, its optimizer and the policy version.

    Args:
        policy: loaded with parts="transformer".
        trained_steps: the sampling steps the plan trains; the noise weights average 1 over them.
    """

    def __init__(
        self,
        policy: Policy,
        kernel: FlowSDESettings,
        objective: ObjectiveSettings,
        settings: LearnerSettings,
        trained_steps: list[int],
    ) -> None:
        self.policy = policy
        self.objective = objective
        self.settings = settings
        self.kernel = FlowSDE(kernel, policy.sigmas)
        ones_T = torch.ones_like(self.kernel.std_T)
        self.weight_T = noise_weights(self.kernel.std_T if objective.noise_weights else ones_T, trained_steps)
        self.optimizer = torch.optim.AdamW(
            policy.parameters.values(),
            lr=settings.lr,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            eps=settings.eps,
        )
        self.ema = Ema(settings.ema, policy.parameters) if settings.ema else None
        self.version = 0

    def update(self, batch: Sequence[tuple[Decisions, np.ndarray]]) -> UpdateStats:
        """One training step: policy version n to n + 1.

        Args:
            batch: (decisions, advantage_NK) of each task, in index order.

        Raises:
            UserError: rollout and learner disagree by more than `max_drift`, or a gradient is not finite.
        """
        started = time.perf_counter()
        stats = UpdateStats()
        parts = [part for part in np.array_split(np.arange(len(batch)), self.objective.optimizer_steps) if len(part)]
        minibatches = [[b for i in part for b in self._micro_batches(*batch[i])] for part in parts]
        old: list[list[Tensor] | None] = [None] * len(minibatches)
        for m in range(1, len(minibatches)):
            old[m] = [self._log_prob(micro)[0].detach() for micro in minibatches[m]]
            stats.nfe += sum(micro.real for micro in minibatches[m]) * self.policy.family.forwards_per_row
        drift = _Drift(len(self.weight_T))
        totals = _Totals()
        for m, minibatch in enumerate(minibatches):
            planned = sum(batch[i][1].size for i in parts[m])
            for j, micro in enumerate(minibatch):
                old_NK = old[m]
                self._accumulate(micro, old_NK[j] if old_NK else None, planned, stats, totals, drift)
            if m == 0:
                stats.first_ratio_deviation = totals.max_deviation
            drift.check(self.settings.max_drift)
            stats.grad_norm += self._step() / len(minibatches)
        self.version += 1
        stats.loss, stats.kl = totals.loss / len(parts), totals.kl / len(parts)
        stats.ratio_mean, stats.clip_fraction = totals.ratio / totals.count, totals.clipped / totals.count
        stats.ratio_max_deviation = totals.max_deviation
        stats.drift_mean, stats.drift_max = drift.mean(), drift.max()
        stats.seconds = time.perf_counter() - started
        return stats

    def _micro_batches(self, decisions: Decisions, advantage_NK: np.ndarray) -> list[_MicroBatch]:
        device, size = self.policy.device, self.settings.micro_batch
        conditioning = {
            name: torch.from_numpy(np.array(rows)).to(device, self.policy.family.dtype).expand(size, *rows.shape[1:])
            for name, rows in decisions.conditioning.items()
        }
        micro_batches = []
        for start in range(0, len(decisions.step_N), size):
            rows = np.arange(start, min(start + size, len(decisions.step_N)))
            padded = np.pad(rows, (0, size - len(rows)), mode="edge")
            advantage = advantage_NK[padded].astype(np.float32)
            advantage[len(rows) :] = 0
            micro_batches.append(
                _MicroBatch(
                    torch.from_numpy(decisions.state_NZ[padded]).to(device),
                    torch.from_numpy(decisions.action_NKZ[padded]).to(device),
                    torch.from_numpy(decisions.step_N[padded]).to(device),
                    torch.from_numpy(advantage).to(device),
                    torch.from_numpy(decisions.log_prob_NK[padded]).to(device),
                    conditioning,
                    len(rows),
                )
            )
        return micro_batches

    def _mean(self, micro: _MicroBatch) -> Tensor:
        v_NZ = self.policy.family.velocity(micro.state_NZ, self.policy.sigmas[micro.step_N], micro.conditioning)
        return self.kernel.mean(micro.state_NZ, v_NZ, micro.step_N)

    def _log_prob(self, micro: _MicroBatch) -> tuple[Tensor, Tensor]:
        """log p of the actions (N, K) and the mean they were drawn around (N, Z), with gradient."""
        mean_NZ = self._mean(micro)
        return self.kernel.log_prob(micro.action_NKZ, mean_NZ, micro.step_N), mean_NZ

    def _accumulate(
        self,
        micro: _MicroBatch,
        old_NK: Tensor | None,
        planned: int,
        stats: UpdateStats,
        totals: "_Totals",
        drift: "_Drift",
    ) -> None:
        """Add one micro-batch's gradient; the loss is a sum over planned actions, divided by their number."""
        forwards = self.policy.family.forwards_per_row
        log_prob_NK, mean_NZ = self._log_prob(micro)
        if old_NK is None:
            old_NK = log_prob_NK.detach()
        weight_N = self.weight_T[micro.step_N]
        terms = grpo(log_prob_NK, old_NK, micro.advantage_NK, weight_N, self.objective.clip_range)
        loss = terms.policy_NK.sum() / planned
        totals.loss += float(loss.detach())
        if self.objective.kl:
            with torch.no_grad(), self.policy.reference():
                reference_NZ = self._mean(micro)
            kl_N = self.kernel.divergence(mean_NZ, reference_NZ, micro.step_N)[: micro.real]
            kl = kl_N.sum() * log_prob_NK.shape[1] / planned
            loss = loss + self.objective.kl * kl
            totals.kl += float(kl.detach())
            stats.nfe += micro.real * forwards
        loss.backward()
        stats.nfe += 3 * micro.real * forwards
        real = slice(None, micro.real)
        totals.add(terms.ratio_NK[real], terms.clipped_NK[real])
        drift.add(micro.step_N[real], (old_NK - micro.behaviour_NK)[real])

    def _step(self) -> float:
        """Clip, step, zero; returns the gradient's norm before clipping."""
        parameters = list(self.policy.parameters.values())
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.settings.max_grad_norm))
        if not np.isfinite(norm):
            raise UserError("the gradient is not finite; lower learner.lr or look at the rewards of the last step")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema:
            self.ema.update()
        return norm

    def export(self) -> Weights:
        """The current weights, to be sampled from."""
        return self.policy.export(self.version)

    def evaluated(self) -> Weights:
        """The weights that evaluation and `lora/` use: the EMA where there is one."""
        arrays = self.ema.arrays() if self.ema else self.policy.arrays()
        return Weights(self.version, checksum(arrays), arrays)

    def save(self, folder: Path) -> None:
        """Write adapter, EMA and optimizer state as safetensors."""
        save_file({name: p.detach().contiguous() for name, p in self.policy.parameters.items()}, folder / ADAPTER_FILE)
        if self.ema:
            save_file(self.ema.state(), folder / EMA_FILE)
        moments = {}
        for name, parameter in self.policy.parameters.items():
            for key, value in self.optimizer.state[parameter].items():
                moments[f"{name}/{key}"] = value.contiguous()
        save_file(moments, folder / OPTIMIZER_FILE)

    def restore(self, folder: Path, version: int) -> None:
        """Load what `save` wrote; the next update continues exactly."""
        self.policy.load({name: tensor.numpy() for name, tensor in load_file(folder / ADAPTER_FILE).items()})
        if self.ema:
            self.ema.restore(load_file(folder / EMA_FILE))
        moments = load_file(folder / OPTIMIZER_FILE, device=str(self.policy.device))
        for name, parameter in self.policy.parameters.items():
            state = {key: moments[f"{name}/{key}"] for key in ("step", "exp_avg", "exp_avg_sq") if f"{name}/{key}" in moments}
            if state:
                state["step"] = state["step"].cpu()
                self.optimizer.state[parameter] = state
        self.version = version


class _Totals:
    """Sums over the real rows of an update."""

    def __init__(self) -> None:
        self.loss = self.kl = self.ratio = self.clipped = self.max_deviation = 0.0
        self.count = 0

    def add(self, ratio_NK: Tensor, clipped_NK: Tensor) -> None:
        self.ratio += float(ratio_NK.sum())
        self.clipped += float(clipped_NK.sum())
        self.max_deviation = max(self.max_deviation, float((ratio_NK - 1).abs().max()))
        self.count += ratio_NK.numel()


class _Drift:
    """|Δ log p| between rollout and learner, by sampling step."""

    def __init__(self, num_steps: int) -> None:
        self.sum_T, self.max_T = np.zeros(num_steps), np.full(num_steps, np.nan)
        self.count_T = np.zeros(num_steps, np.int64)

    def add(self, step_N: Tensor, delta_NK: Tensor) -> None:
        step_A = step_N.cpu().numpy().repeat(delta_NK.shape[1])
        delta_A = delta_NK.abs().flatten().cpu().numpy()
        np.add.at(self.sum_T, step_A, delta_A)
        np.add.at(self.count_T, step_A, 1)
        np.fmax.at(self.max_T, step_A, delta_A)

    def mean(self) -> list[float]:
        with np.errstate(invalid="ignore"):
            return (self.sum_T / self.count_T).tolist()

    def max(self) -> list[float]:
        return self.max_T.tolist()

    def check(self, bound: float) -> None:
        worst = np.nanmax(self.mean())
        if worst > bound:
            raise UserError(
                f"rollout and learner disagree: mean |Δ log p| is {worst:.2g}, above learner.max_drift = {bound:g}; "
                "use the same dtype and device for both, or raise the bound"
            )
