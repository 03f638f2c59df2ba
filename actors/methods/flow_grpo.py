"""Flow-GRPO (arXiv 2505.05470): stochastic trajectories, and the reward of the final image for every step.

24 chains of a prompt start from different noises. All steps except the last are trained. The rewards are centred within
the prompt and divided by the standard deviation of the whole batch. The "Prompt" variant divides by the prompt's own
standard deviation (advantage.std = group).

Weight sets: the current weights, and an EMA if the recipe has learner.ema.
Cost of a prompt at T = 10: 240 sampling forwards, 24 images, 216 rows of training.
Published with β = .04 for GenEval and OCR, β = .01 for PickScore, and two optimizer steps. These values belong in a
recipe. The variance in the KL term does not include |dt|.

Deviations: groups with equal rewards are not dropped; they count with advantage 0.
"""

from actors.learner.settings import AdvantageSettings, GrpoSettings
from actors.methods import Method
from actors.policy.settings import FlowSDESettings
from actors.rollout.plans.settings import ChainSettings

METHOD = Method(
    plan=ChainSettings(seeds=24),
    kernel=FlowSDESettings(),  # Its noise level depends on the model.
    advantage=AdvantageSettings(group="prompt", std="batch", epsilon=1e-4),
    objective=GrpoSettings(noise_weights=False, clip_range=1e-4, kl=0.01, kl_dt=False),
)
