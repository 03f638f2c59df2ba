"""The learner: decisions and advantages in, one policy version further out. Plain PyTorch, no Ray.

One forward and one backward serve all K siblings of a decision: they share the state, hence the velocity, and
∂L/∂v is the sum over them. Shape legend: N decisions, K actions, Z latent dimensions, T steps.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from actors.learner.ema import Ema
from actors.learner.masters import Masters
from actors.learner.objective import grpo
from actors.learner.settings import LearnerSettings, ObjectiveSettings
from actors.learner.stats import Monitor, UpdateStats
from actors.policy.arrays import to_array
from actors.policy.kernels import FlowSDE, noise_weights
from actors.policy.policy import Policy
from actors.policy.settings import FlowSDESettings
from actors.policy.weights import Weights, checksum
from actors.trajectory import Decisions
from services.errors import UserError

MASTERS_FILE, EMA_FILE, OPTIMIZER_FILE = "trained.safetensors", "ema.safetensors", "optimizer.safetensors"


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
    """Owns the trained parameters, their optimizer and the policy version.

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
        self.masters = Masters(policy.parameters)
        self.optimizer = torch.optim.AdamW(
            self.masters.tensors.values(),
            lr=settings.lr,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            eps=settings.eps,
        )
        self.ema = Ema(settings.ema, self.masters.tensors) if settings.ema else None
        self.version = 0

    def update(self, batch: Sequence[tuple[Decisions, np.ndarray]]) -> UpdateStats:
        """One training step: policy version n to n + 1.

        Args:
            batch: (decisions, advantage_NK) of each task, in index order.

        Raises:
            UserError: rollout and learner disagree by more than `max_drift`, or a gradient is not finite.
        """
        started = time.perf_counter()
        monitor = Monitor(len(self.weight_T), self.policy.device)
        parts = [part for part in np.array_split(np.arange(len(batch)), self.objective.optimizer_steps) if len(part)]
        minibatches = [[micro for i in part for micro in self._micro_batches(*batch[i])] for part in parts]
        old = [self._old_log_probs(minibatch, monitor) if m else None for m, minibatch in enumerate(minibatches)]
        norms = []
        for m, minibatch in enumerate(minibatches):
            planned = sum(batch[i][1].size for i in parts[m])
            for j, micro in enumerate(minibatch):
                old_m = old[m]
                self._accumulate(micro, None if old_m is None else old_m[j], planned, monitor)
            if m == 0:
                first_deviation = float(monitor.max_deviation)
                monitor.check_drift(self.settings.max_drift)
            norms.append(self._step())
        self.version += 1
        return monitor.stats(len(parts), first_deviation, float(np.mean(norms)), time.perf_counter() - started)

    def _old_log_probs(self, minibatch: list[_MicroBatch], monitor: Monitor) -> list[Tensor]:
        """log p under the policy before the update, by the same graph that the update itself will run."""
        monitor.nfe += sum(micro.real for micro in minibatch) * self.policy.family.forwards_per_row
        return [self._log_prob(micro)[0].detach() for micro in minibatch]

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

    def _accumulate(self, micro: _MicroBatch, old_NK: Tensor | None, planned: int, monitor: Monitor) -> None:
        """Add one micro-batch's gradient; the loss is a sum over planned actions, divided by their number."""
        log_prob_NK, mean_NZ = self._log_prob(micro)
        if old_NK is None:
            old_NK = log_prob_NK.detach()
        weight_N = self.weight_T[micro.step_N]
        terms = grpo(log_prob_NK, old_NK, micro.advantage_NK, weight_N, self.objective.clip_range)
        loss = terms.policy_NK.sum() / planned
        kl = torch.zeros_like(loss)
        if self.objective.kl:
            with torch.no_grad(), self.policy.reference():
                reference_NZ = self._mean(micro)
            kl_N = self.kernel.divergence(mean_NZ, reference_NZ, micro.step_N)[: micro.real]
            kl = kl_N.sum() * log_prob_NK.shape[1] / planned
        (loss + self.objective.kl * kl).backward()
        forwards = 4 if self.objective.kl else 3
        monitor.nfe += forwards * micro.real * self.policy.family.forwards_per_row
        rows = slice(None, micro.real)
        monitor.add_loss(loss.detach(), kl.detach())
        monitor.add_ratio(terms.ratio_NK[rows], terms.clipped_NK[rows])
        monitor.add_drift(micro.step_N[rows], (old_NK - micro.behaviour_NK)[rows])

    def _step(self) -> float:
        """Clip, step, zero; returns the gradient's norm before clipping."""
        norm = float(torch.nn.utils.clip_grad_norm_(self.masters.tensors.values(), self.settings.max_grad_norm))
        if not np.isfinite(norm):
            raise UserError("the gradient is not finite; lower learner.lr or look at the rewards of the last step")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.masters.publish()
        if self.ema:
            self.ema.update()
        return norm

    def export(self) -> Weights:
        """The current weights, to be sampled from."""
        return self.policy.export(self.version)

    def evaluated(self) -> Weights:
        """The weights that evaluation and the saved model use: the EMA where there is one."""
        if self.ema is None:
            return self.export()
        live = self.policy.parameters
        arrays = {name: to_array(shadow.to(live[name].dtype)) for name, shadow in self.ema.shadow.items()}
        return Weights(self.version, checksum(arrays), arrays)

    def save(self, folder: Path) -> None:
        """Write the trained parameters in fp32, EMA and optimizer state as safetensors."""
        save_file({name: t.detach().contiguous() for name, t in self.masters.tensors.items()}, folder / MASTERS_FILE)
        if self.ema:
            save_file(self.ema.state(), folder / EMA_FILE)
        moments = {}
        for name, master in self.masters.tensors.items():
            for key, value in self.optimizer.state[master].items():
                moments[f"{name}/{key}"] = value.contiguous()
        save_file(moments, folder / OPTIMIZER_FILE)

    def restore(self, folder: Path, version: int) -> None:
        """Load what `save` wrote; the next update continues exactly."""
        self.masters.restore(load_file(folder / MASTERS_FILE))
        if self.ema:
            self.ema.restore(load_file(folder / EMA_FILE))
        moments = load_file(folder / OPTIMIZER_FILE, device=str(self.policy.device))
        for name, master in self.masters.tensors.items():
            state = {
                key: moments[f"{name}/{key}"] for key in ("step", "exp_avg", "exp_avg_sq") if f"{name}/{key}" in moments
            }
            if state:
                state["step"] = state["step"].cpu()
                self.optimizer.state[master] = state
        self.version = version
