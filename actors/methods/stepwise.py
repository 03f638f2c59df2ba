"""Stepwise-Flow-GRPO (arXiv 2603.28718): each step is rewarded for the gain of a one-jump preview.

Trajectories are stochastic at all steps except the last. Tweedie's formula gives a preview of the image from each
state, x̂₀ = x_i − σ_i·v(x_i, σ_i), which is one Euler step from σ_i to 0. R_i is the reward of the preview of step i.
The action of step i gets the gain R_{i+1} − R_i. The preview of the last state is the final image. Advantages are
normalised over the trajectories of a prompt at each step. It is DenseGRPO with a plan.baseline_stride of at least T.
The velocity is that of the trajectory, so previews cost images and scores but no forward.

Weight sets: the current weights, and an EMA if the recipe has learner.ema.
Cost of a prompt at T = 10: 240 sampling forwards, 240 images, 216 rows of training. Other values of T need
plan.size = T − 1.

Refuses plan.baselines = false, because gains need baselines. Refuses noise weights, because the kernel is CPS.

Source: the paper's abstract and first page, and public summaries of it. Its full text was not available and no code was
found, so these are not known: how advantages are divided by a standard deviation, whether later gains count too, and
the published noise level, β and clip range.

Deviations: the paper samples with an SDE of its own, inspired by DDIM, whose formula was not found. Here the kernel is
CPS, which also steps from x̂₀ and the noise that is left. Its noise level and clip range are those of Flow-GRPO-Fast.
"""

from actors.learner.settings import AdvantageSettings, GrpoSettings
from actors.methods import Method
from actors.policy.settings import CPSSettings
from actors.rollout.plans.settings import WindowSettings

METHOD = Method(
    plan=WindowSettings(seeds=24, size=9, strategy="random", baselines=True, baseline_stride=100),
    kernel=CPSSettings(noise_level=0.8),
    advantage=AdvantageSettings(group="prompt_step", std="group", epsilon=1e-4, leaves="actors.trajectory:gains"),
    objective=GrpoSettings(noise_weights=False, clip_range=1e-5, kl_dt=False),
)
