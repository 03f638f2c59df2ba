"""Methods: what each says of itself, against its paper's figures, and how a recipe lies over it."""

import subprocess
import sys

import pytest

from actors.learner.settings import EmaSettings
from actors.methods import METHODS, find_method, method_names
from actors.methods.dpo import DpoSettings
from actors.methods.sft import SftSettings
from actors.rollout.plans import make_plan
from services.base.errors import UserError
from system.recipe.load import load_config
from system.recipe.model import RunConfig
from tests.helpers.paths import ROOT
from tests.helpers.recipes import write_minimal

PARTS = ("plan", "kernel", "advantage", "objective")


@pytest.fixture
def recipe(tmp_path):
    """Write a recipe that has a moving average, with changes to its keys; returns its path."""
    return lambda **changes: write_minimal(tmp_path, **{"learner": {"ema": {}}} | changes)


def parts(config: RunConfig) -> dict:
    return {key: getattr(config, key) for key in PARTS}


def test_every_file_of_the_folder_is_a_method():
    files = {path.stem for path in (ROOT / "actors" / "methods").glob("*.py")} - {"__init__"}
    assert set(method_names()) == files
    assert {"tempflow", "flow_grpo", "awm", "nft"} <= files


@pytest.mark.parametrize("name", METHODS)
def test_a_recipe_that_only_names_a_method_is_that_method(recipe, name):
    method = find_method(name)
    config = load_config(recipe(method=name))
    assert parts(config) == {key: getattr(method, key) for key in PARTS}
    assert config.method == name
    assert load_config(recipe(method=name), []) == RunConfig.model_validate(config.model_dump(mode="json"))


def test_a_recipe_without_a_method_is_tempflow_with_its_own_keys_over_it(recipe):
    assert parts(load_config(recipe())) == {key: getattr(find_method("tempflow"), key) for key in PARTS}
    config = load_config(recipe(plan={"name": "chain"}, advantage={"group": "prompt"}, objective={"kl": 0.1}))
    assert (config.plan.name, config.plan.seeds, config.advantage.std) == ("chain", 24, "group")
    assert (config.objective.kl, config.objective.noise_weights) == (0.1, True)


def test_a_recipes_keys_lie_over_the_methods_and_another_name_replaces_its_mapping(recipe):
    own = {"method": "mixgrpo", "plan": {"seeds": 6}, "kernel": {"name": "cps"}, "objective": {"clip_range": 0.5}}
    config = load_config(recipe(**own))
    assert (config.plan.seeds, config.plan.size, config.plan.shared_noise) == (6, 4, True)
    assert (config.kernel.name, config.kernel.noise_level) == ("cps", 0.8)
    assert (config.objective.clip_range, config.objective.noise_weights) == (0.5, False)
    assert config.advantage == find_method("mixgrpo").advantage
    replaced = load_config(recipe(**own), ["plan.name=chain"])
    assert (replaced.plan.seeds, replaced.plan.name) == (24, "chain")


def test_an_override_chooses_a_method(recipe):
    assert parts(load_config(recipe(), ["method=nft"])) == {key: getattr(find_method("nft"), key) for key in PARTS}


@pytest.mark.parametrize(
    ("name", "says"),
    [("flowgrpo", "no method `flowgrpo`; did you mean `flow_grpo`?"), ("zzz", "no method `zzz`; there are ['awm',")],
)
def test_an_unknown_method_is_named_with_the_nearest(recipe, name, says):
    with pytest.raises(UserError) as refused:
        load_config(recipe(method=name))
    assert says in str(refused.value)
    with pytest.raises(UserError, match="`method` = 3"):
        load_config(recipe(method=3))


@pytest.mark.parametrize(
    ("name", "num_steps", "nfe", "leaves", "rows"),
    [
        ("tempflow", 10, 1116, 216, 36),
        ("tempflow_budget", 10, 63, 54, 9),
        ("flow_grpo", 10, 240, 24, 216),
        ("grpo_guard", 10, 240, 24, 216),
        ("flow_dppo", 10, 160, 16, 144),
        ("flow_grpo_fast", 10, 1 + 24 * 9, 24, 72),
        ("mixgrpo", 25, 1 + 12 * 24, 12, 48),
        ("mixgrpo_flash", 25, 1 + 12 * (3 + 9), 12, 48),
        ("g2rpo", 16, 8 + 12 * sum(15 - i + -(-(15 - i) // 2) + -(-(15 - i) // 3) for i in range(8)), 288, 8),
        ("branchgrpo", 20, 203, 16, 202 - 2 * 16),
        ("dancegrpo", 16, 1 + 12 * 15, 12, 9 * 12),
        ("awm", 14, 336, 24, 24 * 6),
        ("nft", 10, 240, 24, 24 * 9),
        ("dpo", 40, 960, 24, 2 * 39),
        ("sft", 40, 960, 24, 39),
        ("dgpo", 10, 240, 24, 24 * 4),
    ],
)
def test_a_prompt_costs_what_the_method_says(name, num_steps, nfe, leaves, rows):
    """The published figures (`docs/methods.md` has what differs), for the plan of the first training step."""
    method = find_method(name)
    plan = make_plan(method.plan, num_steps)
    items = plan.decisions if plan.trained_steps else plan.leaves
    assert (plan.nfe, plan.leaves) == (nfe, leaves)
    assert method.objective.rows(items, num_steps) == rows


@pytest.mark.parametrize("name", METHODS)
def test_the_passes_of_a_row_are_those_of_its_weight_sets(name):
    """A forward and a backward, and one for each weight set that the loss compares with; the base is one where β is on.

    Old values are read back for all minibatches but the first, unless the loss compares with none.
    """
    objective = find_method(name).objective
    compared = [one for one in objective.weight_sets(EmaSettings()) if "loss" in one.uses]
    assert objective.passes == 3 + len(compared) + bool(objective.kl)
    split = objective.model_copy(update={"optimizer_steps": 4})
    read_back = 0 if name in ("nft", "dpo", "sft", "dgpo") else 1
    assert split.task_passes(8, stale=False) == 8 * (objective.passes + read_back * 3 / 4)
    assert split.task_passes(8, stale=True) == 8 * (objective.passes + read_back)
    again = split.model_copy(update={"epochs": 3})
    assert again.task_passes(8, stale=False) == 8 * (3 * objective.passes + read_back * 3 / 4)


@pytest.mark.parametrize("name", METHODS)
def test_each_use_has_one_weight_set_at_most(name):
    for ema in (None, EmaSettings()):
        uses = [use for one in find_method(name).objective.weight_sets(ema) for use in sorted(one.uses)]
        assert len(uses) == len(set(uses))


def test_the_weight_sets_of_the_methods():
    def declared(name, ema):
        return {one.name: (one.follows, *sorted(one.uses)) for one in find_method(name).objective.weight_sets(ema)}

    ema, old = ("optimizer_step", "evaluation"), ("training_step", "loss", "sampling")
    assert declared("tempflow", None) == {}
    assert declared("tempflow", EmaSettings()) == {"ema": ema}
    assert declared("awm", EmaSettings()) == {"ema": ("optimizer_step", "evaluation", "loss")}
    assert declared("nft", None) == {"old": old}
    assert declared("nft", EmaSettings()) == {"ema": ema, "old": old}
    assert declared("dpo", EmaSettings()) == {"ema": ema, "copy": ("optimizer_step", "loss", "sampling")}
    assert declared("sft", EmaSettings()) == {"ema": ema, "copy": ("optimizer_step", "sampling")}
    assert declared("dgpo", EmaSettings()) == {"ema": ema, "old": ("optimizer_step", "loss")}


def test_dpo_and_sft_without_a_copy_sample_from_the_current_weights():
    """DPO then compares with the base, which costs as much as the copy did."""
    dpo, sft = DpoSettings(copy_every=None), SftSettings(copy_every=None)
    assert dpo.weight_sets(None) == sft.weight_sets(None) == ()
    assert (dpo.passes, dpo.compares_with_reference) == (4, True)
    assert (sft.passes, sft.compares_with_reference) == (3, False)
    assert (DpoSettings().passes, DpoSettings().compares_with_reference) == (4, False)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"learner": {"micro_batch": 5}},
            "learner.micro_batch: 5 rows would part images that dpo compares with each other; set a multiple of 2",
        ),
        ({"objective": {"kl": 0.1}}, "objective.kl: DPO already holds the policy close"),
        ({"advantage": {"group": "seed"}}, "set advantage.group to prompt"),
        ({"plan": {"name": "trunk"}}, "set plan.name to samples"),
        ({"plan": {"seeds": 1}}, "plan.seeds"),
    ],
)
def test_what_dpo_cannot_train_on_is_refused(recipe, changes, says):
    with pytest.raises(UserError) as refused:
        load_config(recipe(method="dpo", **changes))
    assert says in str(refused.value)


def test_dgpo_needs_all_images_of_a_prompt_in_a_micro_batch(recipe):
    whole = {"plan": {"seeds": 6}, "learner": {"micro_batch": 12}}
    assert load_config(recipe(method="dgpo", **whole)).objective.compared_images(6) == 6
    with pytest.raises(UserError, match=r"9 rows would part images that dgpo compares.*set a multiple of 6"):
        load_config(recipe(method="dgpo", plan={"seeds": 6}, learner={"micro_batch": 9}))


def test_methods_need_no_torch():
    """`tempflow config` answers in a second because it does not import Torch."""
    code = "import sys, system.recipe.load; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, timeout=60).returncode == 0
