"""Bytes of images on their way from generation to scoring."""

from actors.rollout.plans import Plan, make_plan
from actors.rollout.sampling import image_bytes
from system.recipe.model import RunConfig


def task_image_bytes(config: RunConfig, plan: Plan) -> int:
    """Bytes of the images of one task."""
    return plan.leaves * image_bytes(config.policy)


def bytes_in_flight(config: RunConfig) -> int:
    """The bound on the bytes of images that are generated or wait for scores: two tasks for each worker by default."""
    if config.rollout.max_bytes_in_flight is not None:
        return config.rollout.max_bytes_in_flight
    plan = make_plan(config.plan, config.policy.num_steps)
    return 2 * config.rollout.most_workers * task_image_bytes(config, plan)
