"""TP-GRPO, TurningPoint-GRPO (arXiv 2602.06422): each step is rewarded for its own gain.

Trajectories are stochastic at all steps except the last. Each of their states is also completed by ODE. R_i is the
reward of the image that the state of step i leads to, and R is the reward of the final image. The action of step i gets
the gain d_i = R_{i+1} − R_i instead of the final reward. At a turning point a trend begins that lasts to the end. There
the action gets R − R_i, which includes the effect on later steps. Step i is a turning point if

- d_i has the sign of the whole change R − R_0, and d_{i−1} has the opposite sign (not required at the first step);
- the remaining change R − R_{i+1} has the sign of d_i (the consistency constraint).

Turning points are balanced: equally many upward and downward ones are kept, those with the largest |R − R_i|.
Advantages are normalised over the trajectories of a prompt at each step.

Weight sets: the current weights, and an EMA if the recipe has learner.ema.
Cost of a prompt at T = 10: 1,320 sampling forwards, of which 1,080 complete the baselines, 240 images, 216 rows of
training. The reference runs 1,536 forwards: it samples the first baseline from its noise, and for the other baselines
it evaluates each state a second time. Other values of T need plan.size = T − 1.
Published on SD3.5-M with CFG 4.5, T = 10, β = 1e-4 (4e-4 for one of the tasks) and two optimizer steps. These values
belong in a recipe.

Refuses plan.baselines = false, because gains need baselines. Refuses noise weights, because the kernel is CPS.

Sources: the paper's abstract, public reviews of its method and appendix, and its code (YunzeTong/TurningPoint-GRPO,
scripts/multi_node/common_op3.sh for SD3.5-M).

Deviations: turning points are balanced over the trajectories of a prompt, by the sign of R − R_i; the code balances
them over the images of one forward batch, by the sign of R − R_0. If an action's gain or trend needs a missing reward,
the action is a hole. The text does not say how equal rewards (d_i = 0) are treated; here, as in the code, d_i then
has neither sign.
"""

import numpy as np

from actors.learner.settings import AdvantageSettings, GrpoSettings
from actors.methods import Method
from actors.policy.settings import CPSSettings
from actors.rollout.plans.settings import WindowSettings
from actors.trajectory import Tree, gains, reads_baselines


@reads_baselines
def turning_point_rewards(tree: Tree, reward_M: np.ndarray) -> np.ndarray:
    """The reward of each action, (N, K): its gain or, at a turning point, the change from its state to the end.

    An action's first leaf is the baseline of its state, the second is the baseline of the next state (or the final
    image), and the last is the final image, which identifies the trajectory. Shape legend: A actions, L leaves,
    M images.
    """
    num_decisions, siblings, _ = tree.leaf_NKL.shape
    leaf_AL = tree.leaf_NKL.reshape(num_decisions * siblings, -1)
    final_A = np.take_along_axis(leaf_AL, (leaf_AL >= 0).sum(axis=1, keepdims=True) - 1, axis=1)[:, 0]
    order_A = np.lexsort((np.repeat(tree.step_N, siblings), final_A))  # trajectory after trajectory, step after step
    leaf_AL, final_A = leaf_AL[order_A], final_A[order_A]
    state_A, next_A, end_A = reward_M[leaf_AL[:, 0]], reward_M[leaf_AL[:, 1]], reward_M[final_A]
    gain_A, change_A = gains(tree, reward_M).ravel()[order_A], end_A - state_A
    first_A = np.append(True, final_A[1:] != final_A[:-1])
    start_A = state_A[np.maximum.accumulate(np.where(first_A, np.arange(len(first_A)), 0))]

    trend_A = np.sign(gain_A) * np.sign(end_A - start_A)
    before_A = np.append(np.nan, trend_A[:-1])
    turns_A = (trend_A > 0) & (first_A | (before_A < 0)) & (np.sign(gain_A) * np.sign(end_A - next_A) > 0)
    reward_A = np.where(_balanced(turns_A, change_A), change_A, gain_A)
    reward_A[np.isnan(trend_A) | (np.isnan(before_A) & ~first_A)] = np.nan

    by_action_A = np.empty_like(reward_A)
    by_action_A[order_A] = reward_A
    return by_action_A.reshape(num_decisions, siblings)


def _balanced(turns_A: np.ndarray, change_A: np.ndarray) -> np.ndarray:
    """Keep equally many upward and downward turning points, those with the largest changes.

    If all turning points have the same direction, all are kept.
    """
    sides = [np.flatnonzero(turns_A & (sign * change_A > 0)) for sign in (1, -1)]
    count = min(map(len, sides))
    if not count:
        return turns_A
    kept_A = np.zeros_like(turns_A)
    for side in sides:
        kept_A[side[np.argsort(-np.abs(change_A[side]), kind="stable")[:count]]] = True
    return kept_A


METHOD = Method(
    plan=WindowSettings(seeds=24, size=9, strategy="random", baselines=True),
    kernel=CPSSettings(noise_level=0.7),
    advantage=AdvantageSettings(
        group="prompt_step", std="group", epsilon=1e-4, leaves="actors.methods.tp_grpo:turning_point_rewards"
    ),
    objective=GrpoSettings(noise_weights=False, clip_range=1e-5, kl_dt=False),
)
