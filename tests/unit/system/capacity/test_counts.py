"""Counts that follow from a plan."""

import pytest

from actors.policy.policy import Policy
from actors.rollout.plans import make_plan
from actors.rollout.worker import Generator
from actors.trajectory import Task
from system.capacity.counts import checkpoint_share, live_rows, steps_within, trained_rows
from system.capacity.in_flight import bytes_in_flight, task_image_bytes
from system.capacity.memory import experience_bytes, local_policy
from system.recipe.find import recipe_names
from system.recipe.load import load_config


@pytest.mark.parametrize(
    ("staleness", "optimizer_steps", "first", "others"),
    [(0, 1, 4 * 400, 4 * 400), (1, 1, 4 * 400, 4 * 416), (0, 2, 4 * 408, 4 * 408), (4, 2, 4 * 408, 4 * 416)],
)
def test_a_budget_pays_for_the_learners_passes_too(staleness, optimizer_steps, first, others):
    """A prompt: 352 NFE of sampling, 3 passes of 16 decisions, and one to read old log-probs back where they are not
    the first optimizer step's own.
    """
    overrides = [f"learner.max_staleness={staleness}", f"objective.optimizer_steps={optimizer_steps}"]
    config = load_config("shapes", overrides)
    assert [steps_within(config, first + 9 * others - less) for less in (0, 1)] == [10, 9]


def test_guidance_counts_where_it_is_used():
    """A prompt of DGPO: 24 images in 10 guided steps, and 5 passes of 96 rows, which have no guidance by default."""
    for overrides, forwards in (([], 1), (["objective.guided=true"], 2)):
        config = load_config("sd35_dgpo", overrides)
        config = config.model_copy(update={"policy": local_policy(config)})
        budget = 3 * 24 * (24 * 10 * 2 + 96 * 5 * forwards)
        assert [steps_within(config, budget - less) for less in (0, 1)] == [3, 2]


@pytest.mark.parametrize(("every", "evaluated", "of_12"), [(4, 6, 4), (6, 3, 4), (3, 6, 4), (12, 2, 6), (5, 12, 3.2)])
def test_evaluated_steps_have_a_checkpoint_too(every, evaluated, of_12):
    config = load_config("shapes", [f"checkpoint.every={every}", f"eval.every={evaluated}"])
    steps = range(1, 61)
    assert sum(step % every == 0 or step % evaluated == 0 for step in steps) == 5 * of_12
    assert checkpoint_share(config) == pytest.approx(of_12 / 12)
    assert checkpoint_share(load_config("shapes", [f"checkpoint.every={every}", "data.heldout=null"])) == 1 / every


@pytest.mark.parametrize("recipe", recipe_names())
def test_images_in_flight_let_every_worker_work(recipe):
    config = load_config(recipe, ["rollout.max_workers=24"])
    task = task_image_bytes(config, make_plan(config.plan, config.policy.num_steps))
    assert bytes_in_flight(config) == 2 * 24 * task
    bounded = load_config(recipe, ["rollout.max_bytes_in_flight=5"])
    assert bytes_in_flight(bounded) == 5


@pytest.mark.parametrize("recipe", recipe_names())
def test_the_rows_of_all_steps_are_the_plans_forwards(recipe):
    config = load_config(recipe)
    for step in range(3):
        plan = make_plan(config.plan, config.policy.num_steps, (0, step, 0))
        assert sum(live_rows(plan)) == plan.nfe


def test_rows_of_a_trunk_and_of_images():
    config = load_config("shapes")  # 4 seeds, 6 actions at each of the first 4 of 6 steps
    assert live_rows(make_plan(config.plan, 6)) == [4, 28, 52, 76, 96, 96]
    assert trained_rows(config, make_plan(config.plan, 6)) == 16
    nft = load_config("sd35_nft")
    assert trained_rows(nft, make_plan(nft.plan, 10)) == 24 * 9


def test_the_bytes_of_a_tasks_experience_are_those_of_its_arrays():
    config = load_config("shapes", ["plan.seeds=1"])
    policy = Policy(config.policy, seed=0)
    generator = Generator(policy, config.kernel, config.rollout)
    generator.load(policy.export(0))
    plan = make_plan(config.plan, config.policy.num_steps)
    decisions, *_ = generator.generate(Task(0, "a red circle", (0, 0, 0), 0), plan)
    arrays = [decisions.state_NZ, decisions.mean_NZ, *decisions.conditioning.values()]
    assert sum(array.nbytes for array in arrays) == experience_bytes(config)
