"""The work of a rollout worker without Ray: embeddings, wavefront, decoding."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from actors.policy.arrays import to_arrays
from actors.policy.embeddings import Embeddings
from actors.policy.families.family import Family, finite_rows, to_uint8
from actors.policy.kernels import make_kernel
from actors.policy.policy import Policy
from actors.policy.settings import KernelSettings
from actors.policy.weights import Weights
from actors.rollout.plans import Plan
from actors.rollout.sampler import Sampler
from actors.rollout.sampling import Sampling
from actors.rollout.settings import RolloutSettings
from actors.trajectory import Cost, Decisions, Leaves, Outcome, Task, Tree
from services.base.devices import naming_full_memory

FULL_MEMORY = (
    "lower rollout.micro_batch or rollout.decode_batch, or set rollout.offload_text_encoders=true, and continue with "
    "--resume"
)


class Generator:
    """Generates the images of tasks with one policy version.

    Args:
        policy: a policy that was loaded with parts="all".
    """

    def __init__(self, policy: Policy, kernel: KernelSettings, settings: RolloutSettings) -> None:
        self.policy = policy
        self.settings = settings
        self.kernel = kernel
        self.sampler = self.sampler_of(policy.family)
        self.version: int | None = None
        folder = Path(settings.embedding_folder) if settings.embedding_folder else None
        self.embed = Embeddings(policy.family, settings.embedding_bytes, folder, settings.offload_text_encoders)

    def load(self, weights: Weights) -> tuple[int, str]:
        """Load a policy version. Returns the version and the checksum of the loaded parameters."""
        checksum = self.policy.load(weights.arrays)
        self.version = weights.version
        return weights.version, checksum

    @naming_full_memory(FULL_MEMORY)
    def generate(self, task: Task, plan: Plan) -> tuple[Decisions | Leaves, np.ndarray, Outcome]:
        """Run one task.

        Returns:
            The decisions, or the leaves if the plan trains no step; images (M, H, W, 3) uint8; and the tree,
            whether each image is finite and the cost, for the driver.

        Raises:
            RuntimeError: the task needs a policy version that this worker does not have.
        """
        if task.version != self.version:
            raise RuntimeError(f"a task needs policy version {task.version}, but this worker has {self.version}")
        started = time.perf_counter()
        conditioning = self.embed([task.prompt])
        roots = [(*task.address, b) for b in range(plan.seeds)]
        with self._policy():
            front = self.sampler(plan, roots, [0] * plan.seeds, conditioning)
        images_MHWC, finite_M = self.decode(front.leaf_MZ, self.policy.family)
        arrays = to_arrays(conditioning)
        trained: Decisions | Leaves = replace(front.decisions, conditioning=arrays)
        tree = front.tree
        if not plan.trained_steps:
            trained = Leaves(task.address, front.leaf_MZ.cpu().numpy(), arrays)
            tree = Tree.of_leaves(tree.num_leaves, len(plan.forks))
        seconds = time.perf_counter() - started
        cost = front.cost + Cost(decodes=len(images_MHWC), seconds=seconds)
        return trained, images_MHWC, Outcome(tree, finite_M, cost)

    @naming_full_memory(FULL_MEMORY)
    def sample(
        self, prompts: Sequence[str], addresses: Sequence[tuple[int, ...]], sampling: Sampling
    ) -> tuple[np.ndarray, np.ndarray]:
        """Generate one deterministic image per prompt.

        Returns:
            Images (N, H, W, 3) uint8, and whether each is finite (N,).

        Raises:
            RuntimeError: the base is asked for, and this policy keeps no copy of it.
        """
        family = self.policy.family.sampled_as(sampling.of(self.policy.settings), sampling.negative_prompt)
        row_of = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts))}
        conditioning = self.embed(list(row_of), family)
        sampler, rows = self.sampler_of(family), [row_of[prompt] for prompt in prompts]
        x_NZ = sampler.noise(addresses)
        switch = sampling.policy_steps
        for steps, model in (
            (range(switch), partial(self._policy, sampling.adapter_scale)),
            (range(switch, sampling.num_steps), self.policy.base),
        ):
            if steps:
                with model():
                    x_NZ = sampler.flow(x_NZ, addresses, rows, conditioning, steps)
        return self.decode(x_NZ, family)

    @contextmanager
    def _policy(self, adapter_scale: float = 1.0) -> Iterator[None]:
        """A context in which the policy samples: with its adapter merged, if the settings say so."""
        with self.policy.scaled(adapter_scale), self.policy.merged() if self.settings.merge_adapter else nullcontext():
            yield

    def sampler_of(self, family: Family) -> Sampler:
        """The wavefront sampler of a family, which may have a size, guidance and number of steps of its own."""
        sigmas = family.sigmas(family.settings.num_steps).to(self.policy.device)
        return Sampler(family, sigmas, make_kernel(self.kernel, sigmas), self.settings.micro_batch)

    def decode(self, latent_MZ: torch.Tensor, family: Family) -> tuple[np.ndarray, np.ndarray]:
        """Decode latents. Returns images (M, H, W, 3) uint8, and whether each latent and its pixels are finite, (M,).

        Batches are padded to one size, so that an image's bits do not depend on other images.
        """
        size = self.settings.decode_batch
        images, finite = [], []
        for start in range(0, len(latent_MZ), size):
            chunk = latent_MZ[start : start + size]
            padded = torch.cat([chunk, chunk[:1].expand(size - len(chunk), *chunk.shape[1:])])
            pixels_NCHW = family.decode(padded)[: len(chunk)]
            images.append(to_uint8(pixels_NCHW))
            finite.append(finite_rows(chunk) & finite_rows(pixels_NCHW))
        return torch.cat(images).numpy(), torch.cat(finite).cpu().numpy()


class SharedGenerator(Generator):
    """A generator that shares its model with a learner in the same process.

    The trained parameters exist twice: the learner's, and the broadcast ones that are sampled from (a moving average
    during evaluation). When the roles change, the two are swapped in the model, which costs nothing. The number of CPU
    threads is also switched, because it affects a role's arithmetic.
    """

    def __init__(self, policy: Policy, kernel: KernelSettings, settings: RolloutSettings) -> None:
        super().__init__(policy, kernel, settings)
        self.sampled = {name: parameter.detach().clone() for name, parameter in policy.parameters.items()}

    def load(self, weights: Weights) -> tuple[int, str]:
        with self.policy.holding(self.sampled):
            return super().load(weights)

    def generate(self, task: Task, plan: Plan) -> tuple[Decisions | Leaves, np.ndarray, Outcome]:
        torch.set_num_threads(self.settings.threads)
        with self.policy.holding(self.sampled):
            return super().generate(task, plan)

    def sample(
        self, prompts: Sequence[str], addresses: Sequence[tuple[int, ...]], sampling: Sampling
    ) -> tuple[np.ndarray, np.ndarray]:
        torch.set_num_threads(self.settings.threads)
        with self.policy.holding(self.sampled):
            return super().sample(prompts, addresses, sampling)
