"""Counts that follow from a recipe's plan: passes of the learner, bytes of a step, steps of a budget."""

from math import lcm

from actors.policy.families.family import DTYPES
from actors.policy.families.registry import family_class
from actors.rollout.plans import Plan, make_plan
from actors.rollout.plans.plan import visits
from system.capacity.in_flight import bytes_in_flight, task_image_bytes
from system.capacity.memory import ADAM_MOMENTS, FP32_BYTES, experience_bytes, learned_policy, local_policy
from system.capacity.passes import trained_parameters
from system.recipe.model import RunConfig


def steps_within(config: RunConfig, budget: int) -> int:
    """How many training steps a budget of NFE pays for, by the plans of the steps themselves; 1 at least.

    What is not known beforehand, groups with no spread, which are not trained on, is counted as if they were.
    """
    family = family_class(config.policy)
    sampled, learned = family.forwards(config.policy), family.forwards(learned_policy(config, config.policy))
    spent, steps = 0.0, 0
    while spent < budget:
        plan = make_plan(config.plan, config.policy.num_steps, (config.seed, steps, 0))
        stale = config.learner.max_staleness > 0 and steps > 0
        spent += config.data.prompts_per_step * (sampled * plan.nfe + learned * _passes(config, plan, stale))
        steps += 1
    return max(1, steps - (spent > budget))


def _passes(config: RunConfig, plan: Plan, stale: bool) -> float:
    """Transformer passes of the learner for one task, which an older policy version generated if `stale`; a backward
    counts 2.
    """
    return config.objective.task_passes(trained_rows(config, plan), stale)


def trained_rows(config: RunConfig, plan: Plan) -> int:
    """Rows of the update for one task: its decisions, or its images at each noise level."""
    items = plan.decisions if plan.trained_steps else plan.leaves
    if config.advantage.keep and config.advantage.group == "prompt_step" and not config.objective.kl:
        kept = 2 * config.advantage.keep
        items = sum(min(plan.trunks()[i] * plan.forks[i].width, kept) for i in plan.trained_steps) // plan.siblings
    return config.objective.rows(items, config.policy.num_steps)


def live_rows(plan: Plan) -> list[int]:
    """Rows that need a velocity at each step: trunks, and the branches that are not finished."""
    rows, steps = plan.trunks(), len(plan.forks)
    for i, (trunks, fork) in enumerate(zip(plan.trunks(), plan.forks, strict=True)):
        branching = [(trunks * fork.width, stride) for stride in fork.strides] if fork.keep_trunk and fork.width else []
        for count, stride in branching:
            for at in visits(i + 1, steps, stride)[:-1]:
                rows[at] += count
        for at in plan.baseline_visits(i)[:-1]:
            rows[at] += trunks
    return rows


def step_bytes(config: RunConfig, plan: Plan) -> tuple[float, float]:
    """Bytes of one step's images, and of its states and actions (or final latents) in fp32.

    Raises:
        UserError: the shapes of the policy's model are not known.
    """
    prompts = config.data.prompts_per_step
    return prompts * task_image_bytes(config, plan), prompts * experience_bytes(config)


def store_bytes(config: RunConfig) -> float:
    """Most bytes in the object store at one time: images that wait for scores, the experience of steps in flight, and
    the weights of two policy versions, one that is sampled from and the next.

    Raises:
        UserError: the shapes of the policy's model are not known.
    """
    steps = config.learner.max_staleness + 1
    images, experience = step_bytes(config, make_plan(config.plan, config.policy.num_steps))
    return min(steps * images, bytes_in_flight(config)) + steps * experience + 2 * exported_bytes(config)


def exported_bytes(config: RunConfig) -> float:
    """Bytes of the trained weights as they travel to the rollout workers: in the compute dtype.

    Raises:
        UserError: the shapes of the policy's model are not known.
    """
    policy = local_policy(config)
    return float(DTYPES[policy.dtype].itemsize * trained_parameters(policy))


def checkpoint_share(config: RunConfig) -> float:
    """The share of the steps that have a checkpoint: every `checkpoint.every`-th one, and those that are evaluated."""
    every, evaluated = config.checkpoint.every, config.eval.every
    if not config.eval_sets:
        return 1 / every
    return 1 / every + 1 / evaluated - 1 / lcm(every, evaluated)


def checkpoint_bytes(config: RunConfig) -> float:
    """Bytes of one checkpoint: weights, Adam's two moments, weight sets and the saved model, all in fp32.

    Raises:
        UserError: the shapes of the policy's model are not known.
    """
    arrays = 2 + ADAM_MOMENTS + len(config.objective.weight_sets(config.learner.ema))
    return float(arrays * FP32_BYTES * trained_parameters(local_policy(config)))
