"""BranchGRPO (arXiv 2509.06040): a tree that grows from one noise, with stochastic edges only.

Every trajectory splits in two at steps 0, 3, 6 and 9. A node's reward is the mean of its leaves' rewards, and nodes are
compared within their depth. Two kinds of pruning save training time: depth pruning leaves a sliding range of 2 steps
out of the loss, and width pruning keeps the 4 best and the 4 worst nodes of each depth.

Weight sets: the current weights, and an EMA if the recipe has learner.ema.
Cost of a prompt at T = 20: 203 sampling forwards, 16 images, 202 rows of training before pruning.

Refuses any group except prompt_step, because nodes of different depths have different numbers of leaves.

Deviations: the last step is never trained. The code scales the noise at splits by 4 and computes the log-prob with the
unscaled std; here both use the kernel's std. In the code the pruned depths slide every 30 training steps and stop at
the last split; here they slide after each training step, through all trained steps, and then start over.
"""

from actors.learner.settings import AdvantageSettings, GrpoSettings
from actors.methods import Method
from actors.policy.settings import DanceSettings
from actors.rollout.plans.settings import TreeSettings

METHOD = Method(
    plan=TreeSettings(splits=(0, 3, 6, 9), width=2, pruned_depths=2),
    kernel=DanceSettings(noise_level=0.3),
    advantage=AdvantageSettings(group="prompt_step", keep=4),
    objective=GrpoSettings(noise_weights=False, clip_range=1e-3),
)
