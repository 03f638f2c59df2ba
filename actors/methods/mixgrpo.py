"""MixGRPO (arXiv 2507.21802): steps in a sliding window are stochastic, all others are deterministic.

12 trajectories of a prompt start from one noise. The window of 4 steps moves by one step after every 25 training steps,
and starts over at the end. Only its steps are trained. With several rewards, each is normalised separately, and the
advantages are added (reward.combine = group_norm).

Weight sets: the current weights, and an EMA if the recipe has learner.ema.
Cost of a prompt at T = 25: 289 sampling forwards while the window is at the start, and fewer as it moves (300 if each
trajectory has its own noise); 12 images; 48 rows of training.
Published on FLUX.1-dev at 720 px, T = 25, with a static shift of 3 and full fine-tuning at 1e-5. These values belong in
a recipe.

Deviations: the standard deviation is that of the population; the code uses that of the sample (4% larger at 12 images).
"""

from actors.learner.settings import AdvantageSettings, GrpoSettings
from actors.methods import Method
from actors.policy.settings import FlowSDESettings
from actors.rollout.plans.settings import WindowSettings

METHOD = Method(
    plan=WindowSettings(seeds=12, shared_noise=True, size=4, strategy="progressive", every=25),
    kernel=FlowSDESettings(noise_level=0.7),
    advantage=AdvantageSettings(group="prompt", std="group", epsilon=1e-8),
    objective=GrpoSettings(noise_weights=False, clip_range=1e-4),
)
