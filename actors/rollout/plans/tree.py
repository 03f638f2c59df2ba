"""BranchGRPO's plan."""

from actors.rollout.plans.plan import Fork, Plan
from actors.rollout.plans.settings import TreeSettings


def tree_plan(settings: TreeSettings, num_steps: int, step: int) -> Plan:
    """BranchGRPO (arXiv 2509.06040): one noise, all edges stochastic, splits at a few steps.

    A node's reward is the mean of its leaves' and is compared within its depth (advantage.group = prompt_step). Depth
    pruning leaves a sliding run of steps out of the loss; width pruning is the advantage rule's (advantage.keep).

    Deviations: the last step is never trained. The reference code scales the noise at splits by 4 and computes the
    log-prob with the unscaled std; here both have the kernel's.
    """
    trained = num_steps - 1
    pruned: set[int] = set()
    if settings.pruned_depths:
        positions = trained - settings.pruned_depths + 1
        first = positions - 1 - step % positions
        pruned = set(range(first, first + settings.pruned_depths))
    return Plan(
        1,
        tuple(
            Fork(
                settings.width if i in settings.splits else 1, keep_trunk=False, trained=i < trained and i not in pruned
            )
            for i in range(num_steps)
        ),
    )
