"""MixGRPO (arXiv 2507.21802): stochastic in a window of steps that slides, deterministic elsewhere.

12 trajectories of a prompt start from one noise. The window of 4 steps moves by one after every 25 training steps and
starts over at the end; only its steps are trained. With several rewards, each is normalised by itself and the
advantages are added: reward.combine = group_norm.

Weight sets: the current weights, and an EMA where the recipe has learner.ema.
Cost of a prompt at T = 25: 289 sampling forwards while the window is at the start, fewer as it moves (300 with noises
of their own); 12 images; 48 rows of training.
Published on FLUX.1-dev at 720 px, T = 25, with a static shift of 3 and full fine-tuning at 1e-5: values of a recipe.

Deviations: the standard deviation is the population's, where the code takes the sample's (4% at 12 images).
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
