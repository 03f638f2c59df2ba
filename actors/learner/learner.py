"""The learner: turns experience and advantages into the next policy version. Plain PyTorch, without Ray."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actors.learner.averages import Average
from actors.learner.masters import Masters
from actors.learner.monitor import Monitor
from actors.learner.objectives import make_objective
from actors.learner.optimizers import MOMENTS, STEP, OffloadedAdamW, make_optimizer, on_cpu
from actors.learner.parts import packed, unpacked
from actors.learner.ranks import ALONE, Ranks
from actors.learner.settings import LearnerSettings, ObjectiveSettings
from actors.learner.stats import UpdateStats
from actors.learner.weight_sets import StepKind, Use, used_for
from actors.policy.arrays import to_array
from actors.policy.kernels import make_kernel
from actors.policy.policy import NO_ROOM, Policy
from actors.policy.settings import KernelSettings
from actors.policy.sharding import full, is_sharded
from actors.policy.trained import TRAINED_SET, saved_from
from actors.policy.weights import Weights, checksum
from actors.trajectory import Decisions, Leaves
from services.base.devices import naming_full_memory
from services.base.errors import UserError
from services.base.storage import Folder

Scored = tuple[Decisions | Leaves, np.ndarray]
"""The experience of a task, and the advantages (N, K) of its actions."""
Batch = Sequence[tuple[Decisions | Leaves | None, np.ndarray]]
"""The same for all tasks of a training step. The experience is None if another rank has the task."""
Old = list[Tensor | None]
"""The values of the old policy on each micro-batch of a minibatch, in order."""

MASTERS, OPTIMIZER, PAST = TRAINED_SET, "optimizer", "version_"


class Learner:
    """Owns the trained parameters, their optimizer and the policy version.

    Args:
        policy: loaded with parts="transformer".
        trainable: the sampling steps the plan may train; the noise weights average 1 over them.
        ranks: the place of this process among the ranks of the learner. Each rank has all of the above. It computes the
            gradient of its share of the tasks, and takes the same optimizer steps on the sum of all gradients.
    """

    @naming_full_memory(NO_ROOM)
    def __init__(
        self,
        policy: Policy,
        kernel: KernelSettings,
        objective: ObjectiveSettings,
        settings: LearnerSettings,
        trainable: list[int],
        ranks: Ranks = ALONE,
    ) -> None:
        self.policy = policy
        self.settings = settings
        self.ranks = ranks
        self.kernel = make_kernel(kernel, policy.sigmas)
        self.masters = Masters(policy.parameters)
        if policy.started_from:  # the file's fp32 values, which the live parameters round
            self.masters.restore(policy.started_from)
        self.optimizer = make_optimizer(settings, self.masters.tensors.values())
        self.optimizer_steps, self.epochs = objective.optimizer_steps, objective.epochs
        weight_sets = objective.weight_sets(settings.ema)
        self.averages = {one.name: Average(one, self.masters.tensors) for one in weight_sets}
        self.objective = make_objective(
            objective, policy, list(self.averages.values()), self.kernel, settings.micro_batch, trainable
        )
        self.version = 0
        self.past: dict[int, dict[str, Tensor]] = {}
        """The weights that were sampled from in the last `max_staleness` versions before this one, by version."""

    def describe(self) -> dict[str, list[float]]:
        """The noise level (s_i) of each sampling step, and its loss weight (w_i) where the objective has one."""
        described = {"noise_level": self.kernel.std_T.tolist()}
        if self.objective.weight_T is not None:
            described["weight"] = self.objective.weight_T.tolist()
        return described

    @naming_full_memory(
        "lower learner.micro_batch or set policy.gradient_checkpointing=true, and continue with --resume"
    )
    def update(self, batch: Batch, behaviour: int | None = None) -> UpdateStats:
        """One training step: policy version n to n + 1.

        Args:
            batch: in the order of the tasks' index.
            behaviour: the version that generated the experience. If not given, it is the current one.

        Raises:
            UserError: rollout and learner disagree by more than `max_drift`, or a gradient is not finite.
        """
        started = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.rate(self.version)
        monitor = Monitor(len(self.kernel.std_T), self.policy.device)
        minibatches, spare = self._minibatches(batch), self._spare(batch)
        planned_M = self._planned(minibatches)
        with self._as_of(self.version if behaviour is None else behaviour) as stale:
            old_M = [
                self._old(minibatch, spare, monitor) if m or stale else None for m, minibatch in enumerate(minibatches)
            ]
        self._keep_version()
        norms: list[float] = []
        for epoch in range(self.epochs):
            for m, (minibatch, planned) in enumerate(zip(minibatches, planned_M, strict=True)):
                again = epoch + 1 < self.epochs
                old_M[m] = self._differentiate(minibatch, spare, old_M[m], planned, monitor, again)
                if not norms:
                    first = monitor.shared(self.ranks)
                    first.check_drift(self.settings.max_drift)
                norms.append(self.optimizer_step())
        self._follow("training_step")
        self.version += 1
        norm, seconds = float(np.mean(norms)), time.perf_counter() - started
        rms = float(np.mean(np.minimum(norms, self.settings.max_grad_norm))) / self.masters.count**0.5
        return monitor.shared(self.ranks).stats(len(norms), float(first.maxima.deviation), norm, rms, seconds)

    def _minibatches(self, batch: Batch) -> list[list[Scored]]:
        """This rank's tasks of each optimizer step. The tasks of all ranks are split evenly."""
        parts = [part for part in np.array_split(np.arange(len(batch)), self.optimizer_steps) if len(part)]
        return [
            [(item, advantage_NK) for item, advantage_NK in (batch[i] for i in part) if item is not None]
            for part in parts
        ]

    def _planned(self, minibatches: list[list[Scored]]) -> list[float]:
        """The number of planned actions of each minibatch, of all ranks together: the denominators of the loss."""
        planned_M = torch.tensor(
            [sum(self.objective.planned(item) for item, _ in minibatch) for minibatch in minibatches],
            dtype=torch.float64,
            device=self.policy.device,
        )
        self.ranks.sum(planned_M)
        return planned_M.tolist()

    def _spare(self, batch: Batch) -> Any:
        """A micro-batch of padding for `_micro_batches`; None if the base is not sharded."""
        if not self.policy.sharded:
            return None
        return next(self.objective.idle(item) for item, _ in batch if item is not None)

    def _keep_version(self) -> None:
        """Keep the weights that are sampled from for the last `max_staleness` versions, and drop those before."""
        if self.settings.max_staleness:
            live = self.policy.parameters
            self.past[self.version] = {
                name: value.detach().to(live[name].dtype, copy=True) for name, value in self._sampled().items()
            }
            self.past.pop(self.version - self.settings.max_staleness, None)

    def _micro_batches(self, minibatch: list[Scored], spare: Any) -> Iterator[Any]:
        """The micro-batches of this rank. If the base is sharded, every rank must take part in every forward and
        backward, so `spare` micro-batches follow until no rank has any left."""
        mine = chain.from_iterable(self.objective.micro_batches(*scored) for scored in minibatch)
        if not self.policy.sharded:
            yield from mine
            return
        while True:
            micro = next(mine, None)
            if not self.ranks.any(micro is not None, self.policy.device):
                return
            yield spare if micro is None else micro

    @contextmanager
    def _as_of(self, version: int) -> Iterator[bool]:
        """Within this context, the policy has the weights of `version`. Gives whether that is not the current
        version."""
        if version == self.version:
            yield False
            return
        with self.policy.holding(self._past(version)):
            yield True

    def _past(self, version: int) -> dict[str, Tensor]:
        """The weights that were sampled from in an earlier version.

        Raises:
            RuntimeError: the version is not kept.
        """
        if version not in self.past:
            raise RuntimeError(f"asked for policy version {version}, holding {sorted([*self.past, self.version])}")
        return self.past[version]

    def _old(self, minibatch: list[Scored], spare: Any, monitor: Monitor) -> Old:
        """The values of the old policy on each micro-batch. The model has its weights now."""
        old: Old = []
        for micro in self._micro_batches(minibatch, spare):
            old.append(self.objective.old(micro))
            if old[-1] is not None:
                monitor.add_nfe(micro.real * self.objective.family.forwards_per_row)
        return old

    def _with_old(self, minibatch: list[Scored], spare: Any, old: Old | None) -> Iterator[tuple[Any, Tensor | None]]:
        """Each micro-batch with the old policy's values. `old` is None if the weights still are the old ones.

        Raises:
            ValueError: there is not one value for each micro-batch.
        """
        micros = self._micro_batches(minibatch, spare)
        if old is None:
            yield from ((micro, None) for micro in micros)
        else:
            yield from zip(micros, old, strict=True)

    def _differentiate(
        self, minibatch: list[Scored], spare: Any, old: Old | None, planned: float, monitor: Monitor, again: bool
    ) -> Old:
        """Add the gradient of a minibatch. Gives the old policy's values if the minibatch is used `again`."""
        kept: Old = []
        for micro, old_values in self._with_old(minibatch, spare, old):
            compared_with = self._accumulate(micro, old_values, planned, monitor)
            if again:
                kept.append(compared_with)
        return kept

    def _accumulate(self, micro: Any, old: Tensor | None, planned: float, monitor: Monitor) -> Tensor | None:
        """Add one micro-batch's gradient; the loss is a sum over planned actions, divided by their number.

        Returns:
            The old policy's values that the loss compared with.
        """
        loss = self.objective.loss(micro, old)
        (loss.total / planned).backward()
        if not micro.real:
            return loss.old
        monitor.add_nfe(self.objective.settings.passes * micro.real * self.objective.family.forwards_per_row)
        monitor.add_loss(loss.policy / planned, loss.kl / planned)
        monitor.add_ratio(loss.ratio_NK, loss.clipped_NK)
        if loss.drift:
            monitor.add_drift(*loss.drift)
        return loss.old

    def optimizer_step(self) -> float:
        """One optimizer step on the clipped sum of all ranks' gradients. Returns the norm before clipping.

        Raises:
            UserError: a gradient is not finite.
        """
        masters = list(self.masters.tensors.values())
        self.ranks.sum_gradients([master for master in masters if not is_sharded(master)])
        norm = float(full(torch.nn.utils.clip_grad_norm_(masters, self.settings.max_grad_norm)))
        if not np.isfinite(norm):
            raise UserError("the gradient is not finite; lower learner.lr or look at the rewards of the last step")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.masters.publish()
        self._follow("optimizer_step")
        return norm

    def _follow(self, kind: StepKind) -> None:
        """Update the weight sets that follow this kind of step."""
        for average in self.averages.values():
            if average.weight_set.follows == kind:
                average.follow()

    def export(self, version: int | None = None) -> Weights:
        """The weights to sample from: the current ones, or those of an earlier version that is kept."""
        if version is None or version == self.version:
            return self._weights(self.version, self._sampled(), self.policy.family.dtype)
        return self._weights(version, self._past(version), self.policy.family.dtype)

    def evaluated(self) -> Weights:
        """The weights that evaluation uses."""
        return self._weights(self.version, self._used_for("evaluation"), self.policy.family.dtype)

    def _sampled(self) -> Mapping[str, Tensor]:
        return self._used_for("sampling")

    def _used_for(self, use: Use) -> Mapping[str, Tensor]:
        """The weight set that the objective declares for this use, or else the current weights, in fp32."""
        weight_set = used_for(use, (average.weight_set for average in self.averages.values()))
        return self.averages[weight_set.name].shadow if weight_set else self.masters.tensors

    def _weights(self, version: int, values: Mapping[str, Tensor], dtype: torch.dtype) -> Weights:
        """Weights with their checksum, as arrays in `dtype`. Only the first rank has the arrays.

        Raises:
            UserError: a weight is not finite. Every rank raises it, after the collectives.
        """
        arrays, broken = {}, []
        for name, value in values.items():
            whole = full(value)
            if not bool(whole.isfinite().all()):
                broken.append(name)
            if not self.ranks.rank:
                arrays[name] = to_array(whole.to(dtype))
        if broken:
            raise UserError(
                f"policy version {version} has weights that are not finite ({len(broken)} tensors, such as "
                f"{broken[0]}); lower learner.lr"
            )
        return Weights(version, checksum(arrays), arrays)

    def files(self) -> dict[str, bytes]:
        """This rank's files of a checkpoint, in safetensors: everything that the next update needs, as it is now.

        These are the trained parameters in fp32, the averages, the state of the optimizer, and the earlier versions
        that are kept.
        """
        moments = {
            f"{name}/{key}": value
            for name, master in self.masters.tensors.items()
            for key, value in self.optimizer.state[master].items()
        }
        kinds = {MASTERS: self.masters.tensors, OPTIMIZER: moments}
        kinds |= {name: average.state() for name, average in self.averages.items()}
        kinds |= {f"{PAST}{version}": past for version, past in self.past.items()}
        return {
            file: content
            for name, tensors in kinds.items()
            for file, content in packed(name, tensors, self.ranks).items()
        }

    @naming_full_memory(NO_ROOM)
    def restore(self, folder: Folder, version: int) -> None:
        """Load the files of a checkpoint, which any number of ranks may have written. The next update continues
        exactly."""
        masters = self.masters.tensors
        self.masters.restore(dict(unpacked(MASTERS, masters, folder)))
        for name, average in self.averages.items():
            average.restore(dict(unpacked(name, average.state(), folder)))
        like = {f"{name}/{key}": master for name, master in masters.items() for key in MOMENTS}
        like |= {f"{name}/{STEP}": torch.tensor(0.0) for name in masters}
        offloaded = isinstance(self.optimizer, OffloadedAdamW)
        for path, value in unpacked(OPTIMIZER, like, folder):
            name, key = path.rsplit("/", 1)
            self.optimizer.state[masters[name]][key] = on_cpu(value) if offloaded else value
        self.version = version
        sampled = self._sampled()
        self.past = {
            past: dict(unpacked(f"{PAST}{past}", sampled, folder))
            for past in range(max(0, version - self.settings.max_staleness), version)
        }

    def save_model(self, folder: Path) -> None:
        """Write the weights that evaluation uses in diffusers' layout; an adapter in fp32. The header says the step."""
        weights = self._weights(self.version, self._used_for("evaluation"), self.policy.saved_dtype)
        weight_set = used_for("evaluation", (average.weight_set for average in self.averages.values()))
        if not self.ranks.rank:
            about = saved_from(self.version, weight_set.name if weight_set else TRAINED_SET)
            self.policy.save(folder, weights.arrays, about)
