"""Flow-GRPO-Fast: Flow-GRPO (arXiv 2505.05470) with a window of three stochastic steps in the first half.

The window's place is drawn anew for each training step. The kernel is CPS (arXiv 2509.05952). Use it without guidance
(policy.guidance = 1), as pickscore_sd3_fast_nocfg and geneval_sd3_fast_nocfg of flow_grpo do, both without a KL term.
Its issue 224 reports that images collapse with a guidance of 4.5.

Weight sets: the current weights, and an EMA if the recipe has learner.ema.
Cost of a prompt at T = 10: from 171 sampling forwards (the window begins at step 2) to 217 (at step 0), 24 images, 72
rows of training.

Refuses noise weights, because the gradient of CPS's surrogate is already proportional to the noise.

Deviations: all trajectories of a prompt branch from one trajectory, as in the paper. The code starts each from its own
noise (plan.shared_noise = false).
"""

from actors.learner.settings import AdvantageSettings, GrpoSettings
from actors.methods import Method
from actors.policy.settings import CPSSettings
from actors.rollout.plans.settings import WindowSettings

METHOD = Method(
    plan=WindowSettings(seeds=24, shared_noise=True, size=3, strategy="random", within=5),
    kernel=CPSSettings(noise_level=0.8),
    advantage=AdvantageSettings(group="prompt", std="batch", epsilon=1e-4),
    objective=GrpoSettings(noise_weights=False, clip_range=1e-5, kl=0.01, kl_dt=False),
)
