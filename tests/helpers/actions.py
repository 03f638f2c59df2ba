"""The actions of decisions, in NumPy: the mean plus the noise of each address, at the step's noise level."""

import numpy as np

from actors.policy.kernels import Kernel
from actors.policy.noise import noise
from actors.trajectory import Decisions


def actions_of(decisions: Decisions, kernel: Kernel) -> np.ndarray:
    """(N, K, Z) fp32."""
    latent = decisions.state_NZ.shape[1:]
    noise_NKZ = np.stack([noise(addresses, latent).numpy() for addresses in decisions.noise_NK])
    std_N = kernel.std_T.float().cpu().numpy()[decisions.step_N]
    return decisions.mean_NZ[:, None] + std_N.reshape(-1, *[1] * (1 + len(latent))) * noise_NKZ
