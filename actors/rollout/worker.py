"""What a rollout worker does, without Ray: embeddings, wavefront, decoding."""

import time
from collections.abc import Sequence

import numpy as np
import torch

from actors.policy.family import Conditioning
from actors.policy.kernels import FlowSDE
from actors.policy.policy import Policy
from actors.policy.settings import FlowSDESettings, PolicySettings
from actors.policy.weights import Weights
from actors.rollout.plans import Plan, ode_plan
from actors.rollout.sampler import Sampler
from actors.rollout.settings import RolloutSettings
from actors.trajectory import Cost, Decisions, Task, Tree


class Generator:
    """Generates tasks from one policy version.

    Args:
        seed: of the initial adapter; it is replaced by the learner's weights before the first task.
    """

    def __init__(self, policy: PolicySettings, kernel: FlowSDESettings, settings: RolloutSettings, seed: int) -> None:
        self.policy = Policy(policy, seed)
        self.settings = settings
        self.sampler = Sampler(
            self.policy.family, self.policy.sigmas, FlowSDE(kernel, self.policy.sigmas), settings.micro_batch
        )
        self.version: int | None = None
        self.embeddings: dict[str, Conditioning] = {}

    def load(self, weights: Weights) -> tuple[int, str]:
        """Take a policy version; returns the version and the checksum of the live parameters."""
        checksum = self.policy.load(weights.arrays)
        self.version = weights.version
        return weights.version, checksum

    def generate(self, task: Task, plan: Plan) -> tuple[Decisions, np.ndarray, Tree, Cost]:
        """One task: decisions, images (M, H, W, 3) uint8, who owns what, cost.

        Raises:
            RuntimeError: the task asks for a policy version that this worker does not hold.
        """
        if task.version != self.version:
            raise RuntimeError(f"task for policy version {task.version} on a worker that holds {self.version}")
        started = time.perf_counter()
        conditioning = self._embed([task.prompt])
        roots = [(*task.address, b) for b in range(plan.seeds)]
        front = self.sampler(plan, roots, [0] * plan.seeds, conditioning)
        images_MHWC = self._decode(front.leaf_MZ)
        arrays = {name: tensor.float().cpu().numpy() for name, tensor in conditioning.items()}
        decisions = Decisions(
            front.decisions.step_N,
            front.decisions.state_NZ,
            front.decisions.action_NKZ,
            front.decisions.log_prob_NK,
            arrays,
        )
        seconds = time.perf_counter() - started
        return decisions, images_MHWC, front.tree, front.cost + Cost(decodes=len(images_MHWC), seconds=seconds)

    def sample(
        self, prompts: Sequence[str], addresses: Sequence[tuple[int, ...]], base: bool = False
    ) -> tuple[np.ndarray, Cost]:
        """One deterministic image a prompt, (N, H, W, 3) uint8; `base` switches the adapter off."""
        started = time.perf_counter()
        conditioning = self._embed(list(prompts))
        plan = ode_plan(self.policy.settings.num_steps)
        arguments = (plan, list(addresses), list(range(len(prompts))), conditioning)
        if base:
            with self.policy.reference():
                front = self.sampler(*arguments)
        else:
            front = self.sampler(*arguments)
        images_NHWC = self._decode(front.leaf_MZ)
        return images_NHWC, front.cost + Cost(decodes=len(images_NHWC), seconds=time.perf_counter() - started)

    def _embed(self, prompts: list[str]) -> Conditioning:
        """Embeddings of each prompt, one prompt at a time so that they depend on nothing else; kept for reuse."""
        for prompt in prompts:
            if prompt not in self.embeddings:
                self.embeddings[prompt] = self.policy.family.encode([prompt])
        rows = [self.embeddings[prompt] for prompt in prompts]
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    def _decode(self, latent_MZ: torch.Tensor) -> np.ndarray:
        """Images in padded batches of one size, so that an image's bits do not depend on its neighbours."""
        size = self.settings.decode_batch
        images = []
        for start in range(0, len(latent_MZ), size):
            chunk = latent_MZ[start : start + size]
            padded = torch.cat([chunk, chunk[:1].expand(size - len(chunk), *chunk.shape[1:])])
            images.append(self.policy.family.decode(padded)[: len(chunk)])
        return torch.cat(images).numpy()
