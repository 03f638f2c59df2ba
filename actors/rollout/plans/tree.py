"""The plan of a tree."""

from actors.rollout.plans.plan import Fork, Plan
from actors.rollout.plans.settings import TreeSettings
from services.base.errors import UserError


def tree_plan(settings: TreeSettings, num_steps: int, training_step: int) -> Plan:
    """A tree that grows from one noise. All edges are stochastic, and trajectories split at a few steps.

    A node's reward is the mean of its leaves' rewards. It is compared with the nodes of the same depth
    (advantage.group = prompt_step). Depth pruning leaves a sliding range of steps out of the loss. Width pruning is
    part of the advantage rule (advantage.keep). The last step is never trained.

    Raises:
        UserError: a split is outside of the trainable steps or named twice, or every step is pruned.
    """
    trained = num_steps - 1
    if len(set(settings.splits)) < len(settings.splits):
        raise UserError(f"plan.splits: {list(settings.splits)} names a step twice; raise plan.width for more children")
    if not all(0 <= i < trained for i in settings.splits):
        raise UserError(f"plan.splits: {list(settings.splits)} must all be in steps 0 to {trained - 1}")
    if settings.pruned_depths >= trained:
        raise UserError(
            f"plan.pruned_depths: {settings.pruned_depths} leaves none of the {trained} steps to train; lower it"
        )
    pruned: set[int] = set()
    if settings.pruned_depths:
        positions = trained - settings.pruned_depths + 1
        first = positions - 1 - training_step % positions
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
