"""G²RPO, Granular-GRPO (arXiv 2510.01982): branches of a deterministic trunk, completed at several granularities.

At each of the first 8 of 16 steps, 12 actions are drawn from the single trunk. Each action is completed by ODE in steps
of 1, 2 and 3 grid steps (the granularities). The leaves of one granularity are compared with each other, and the
advantages of an action are added.

Weight sets: the current weights, and an EMA if the recipe has learner.ema.
Cost of a prompt at T = 16 and granularities 1 and 2: 1,688 sampling forwards, 192 images, 8 rows of training.
Published on FLUX.1-dev at 720 px with a static shift of 3 and full fine-tuning at 2e-6. These values belong in a
recipe.

Refuses advantage.leaves = each if an action has only one leaf.

Deviations: the granularities are {1, 2, 3} as in the paper; the code has {1, 2}. Coarse steps begin at the branch; the
code first takes a fine step. All steps share one optimizer step; the code takes an optimizer step for each.
"""

from actors.learner.settings import AdvantageSettings, GrpoSettings
from actors.methods import Method
from actors.policy.settings import FlowSDESettings
from actors.rollout.plans.settings import TrunkSettings

METHOD = Method(
    plan=TrunkSettings(seeds=1, explorations=12, branch_steps=8, strides=(1.0, 2.0, 3.0)),
    kernel=FlowSDESettings(noise_level=0.7),
    advantage=AdvantageSettings(group="seed", leaves="each", epsilon=1e-8),
    objective=GrpoSettings(noise_weights=False, clip_range=1e-4),
)
