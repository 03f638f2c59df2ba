"""TempFlow-GRPO (arXiv 2508.04324): branches at every step of a deterministic trajectory, weighted by their noise.

A deterministic trunk starts from each of 4 initial noises. At each step but the last, 6 actions are drawn from the
trunk's state and completed by ODE. An action is compared with its siblings alone, so its reward is due to this action.
The loss of step i is weighted by s_i / mean(s), the noise that was injected there.

Weight sets: the current weights, and an EMA where the recipe has learner.ema.
Cost of a prompt at T = 10: 1,116 sampling forwards, 216 images, 36 rows of training. Siblings share their state, so one
forward and one backward serve all of them, where the reference scripts run one for each.
Published with β = .001 for PickScore, .004 for GenEval and FLUX.1-dev, 0 for Qwen-Image, and two optimizer steps:
values of a recipe.

Deviations: the FLUX.1-dev and Qwen-Image scripts also branch at the last step, decode and score it, and do not train
on it; here no branch is drawn there. The constants in front of the scripts' weights, which are 1 / mean(s) of one
schedule, are computed from the schedule in use. plan.branch_steps may leave out late steps.
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
