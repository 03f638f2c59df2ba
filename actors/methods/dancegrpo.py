"""DanceGRPO (arXiv 2505.07818): stochastic trajectories from one noise, trained at a random part of their steps.

12 chains of a prompt share their initial noise. 60% of the steps enter the loss; they are drawn anew for each training
step. The kernel has a constant diffusion of .3.

Weight sets: the current weights, and an EMA if the recipe has learner.ema.
Cost of a prompt at T = 16: 181 sampling forwards (192 with different noises), 12 images, 108 rows of training.

Deviations: the code may also train the last step; here it is never trained.
"""

from actors.learner.settings import AdvantageSettings, GrpoSettings
from actors.methods import Method
from actors.policy.settings import DanceSettings
from actors.rollout.plans.settings import ChainSettings

METHOD = Method(
    plan=ChainSettings(seeds=12, shared_noise=True, trained_share=0.6),
    kernel=DanceSettings(noise_level=0.3),
    advantage=AdvantageSettings(group="prompt", std="group", epsilon=1e-8),
    objective=GrpoSettings(noise_weights=False, clip_range=1e-4),
)
