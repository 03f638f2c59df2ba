"""DenseGRPO (arXiv 2601.20218): each step is rewarded for its own gain.

Trajectories are stochastic at all steps except the last. Each of their states is also completed by ODE. R_i is the
reward of the image that the state of step i leads to. The action of step i gets the gain R_{i+1} − R_i instead of the
reward of the final image, so the gains of a trajectory add up to what it gained in all. Advantages are normalised
over the trajectories of a prompt at each step. It is TP-GRPO without turning points.

Weight sets: the current weights, and an EMA if the recipe has learner.ema.
Cost of a prompt at T = 10: 1,320 sampling forwards, of which 1,080 complete the baselines, 240 images, 216 rows of
training. Other values of T need plan.size = T − 1. With a larger plan.baseline_stride, baselines take fewer steps.

Refuses plan.baselines = false, because gains need baselines.

Source: the paper's abstract and public summaries of it. The rest of its text was not available, and no code was found.
So these are not known: the number of ODE steps that complete a baseline (here all remaining steps), whether and how
advantages are divided by a standard deviation, and the published values of a, β and the clip range (here a and the clip
range of Flow-GRPO, and no KL term).

Deviations: the noise is not calibrated. The paper finds that one noise level for all steps does not suit the dense
rewards: some steps explore too much or too little. It adjusts the noise that the SDE sampler injects at each step to
the rewards of that step. The rule was not found, and the kernels here have one level for all steps.
"""

from actors.learner.settings import AdvantageSettings, GrpoSettings
from actors.methods import Method
from actors.policy.settings import FlowSDESettings
from actors.rollout.plans.settings import WindowSettings

METHOD = Method(
    plan=WindowSettings(seeds=24, size=9, strategy="random", baselines=True),
    kernel=FlowSDESettings(),  # Its noise level depends on the model.
    advantage=AdvantageSettings(group="prompt_step", std="group", epsilon=1e-4, leaves="actors.trajectory:gains"),
    objective=GrpoSettings(noise_weights=False, clip_range=1e-4, kl_dt=False),
)
