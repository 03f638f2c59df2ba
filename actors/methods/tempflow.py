"""TempFlow-GRPO (arXiv 2508.04324): branches at every step of a deterministic trajectory, weighted by their noise.

A deterministic trunk starts from each of 4 initial noises. At each step except the last, 6 actions are drawn from the
trunk's state and completed by ODE. An action is compared only with its siblings, so differences in reward are due to
the action. The loss of step i is weighted by s_i / mean(s), where s_i is the noise injected at the step.

Weight sets: the current weights, and an EMA if the recipe has learner.ema.
Cost of a prompt at T = 10: 1,116 sampling forwards, 216 images, 36 rows of training. Siblings share their state, so one
forward and one backward serve all of them. The reference scripts run one for each sibling.
Published with β = .001 for PickScore, .004 for GenEval and FLUX.1-dev, 0 for Qwen-Image, and two optimizer steps. These
values belong in a recipe.

Deviations: the FLUX.1-dev and Qwen-Image scripts also branch at the last step, and decode and score these branches, but
do not train on them; here no branch is drawn there. The scripts' weights have a constant factor, which is 1 / mean(s)
of one schedule; here it is computed from the schedule in use. plan.branch_steps can leave out late steps.
"""

from actors.learner.settings import AdvantageSettings, GrpoSettings
from actors.methods import Method
from actors.policy.settings import FlowSDESettings
from actors.rollout.plans.settings import TrunkSettings

METHOD = Method(
    plan=TrunkSettings(seeds=4, explorations=6),
    kernel=FlowSDESettings(),  # Its noise level depends on the model.
    advantage=AdvantageSettings(group="seed", std="group"),
    objective=GrpoSettings(noise_weights=True, clip_range=1e-4),
)
