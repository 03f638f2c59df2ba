"""Composing: layers below recipes, recipes over recipes, overrides over all, and scorers by name."""

import pytest
import yaml

from actors.methods import find_method, method_names
from services.base.errors import UserError
from system.recipe.load import load_config, load_pool

PUBLISHED = ("sd35_pickscore", "flux_hpsv3", "qwen_pickscore")


def test_a_recipe_extends_another_key_by_key(recipe, tmp_path):
    recipe(learner={"lr": 1e-5, "micro_batch": 4})
    child = tmp_path / "child.yaml"
    child.write_text(
        yaml.safe_dump(
            {
                "extends": str(tmp_path / "mine.yaml"),
                "learner": {"lr": 1e-6},
                "scorers": [{"name": "other", "scorer": "jpeg_size"}],
            }
        )
    )
    config = load_config(str(child))
    assert (config.name, config.learner.lr, config.learner.micro_batch, config.steps) == ("child", 1e-6, 4, 2)
    assert [scorer.name for scorer in config.scorers] == ["other"]
    recipe(extends=str(child))
    with pytest.raises(UserError, match="leads back"):
        load_config(str(child))
    recipe(extends="nowhere")
    with pytest.raises(UserError, match="no recipe `nowhere`"):
        load_config(str(child))


def test_a_name_that_is_the_default_keeps_the_parents_settings(tmp_path):
    child = tmp_path / "child.yaml"
    text = {"extends": "sd35_pickscore", "objective": {"name": "grpo", "kl": 0.5}, "kernel": {"name": "cps"}}
    child.write_text(yaml.safe_dump(text | {"plan": {"name": "chain"}, "advantage": {"group": "prompt"}}))
    with pytest.raises(UserError, match="noise_weights"):
        load_config(str(child))
    config = load_config(str(child), ["objective.noise_weights=false"])
    assert (config.objective.kl, config.objective.optimizer_steps) == (0.5, 2)
    assert (config.kernel.noise_level, config.plan.seeds) == (0.8, 24)


@pytest.mark.parametrize("overrides", [["plan.name=chain", "plan.seeds=8"], ["plan.seeds=8", "plan.name=chain"]])
def test_another_plan_shares_no_keys_with_the_one_it_replaces(overrides):
    config = load_config("shapes", [*overrides, "advantage.group=prompt"])
    assert (config.plan.name, config.plan.seeds) == ("chain", 8)
    same = load_config("shapes", ["plan.name=trunk"])
    assert same.plan.branch_steps == 4


@pytest.fixture
def written(tmp_path):
    """Write files by name; returns the path of the last one."""

    def write(**files):
        for name, content in files.items():
            path = tmp_path / f"{name}.yaml"
            path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return str(path)

    return write


def test_a_higher_layer_beats_a_lower_one_and_the_recipe_beats_them_all(written, recipe):
    kinds = ("model", "method", "rewards", "hardware")
    files = {
        "model": {"learner": {"ranks": 2, "micro_batch": 2, "threads": 2, "max_staleness": 2, "num_cpus": 2}},
        "method": {"learner": {"ranks": 3, "micro_batch": 3, "threads": 3, "max_staleness": 3}},
        "rewards": {"learner": {"ranks": 4, "micro_batch": 4, "threads": 4}},
        "hardware": {"learner": {"ranks": 5, "micro_batch": 5}},
    }
    written(**files)
    path = recipe(learner={"ranks": 6}, **{kind: f"./{kind}.yaml" for kind in reversed(kinds)})
    found = load_config(path).learner
    assert (found.num_cpus, found.max_staleness, found.threads, found.micro_batch, found.ranks) == (2, 3, 4, 5, 6)
    assert load_config(path, ["learner.ranks=7"]).learner.ranks == 7


def test_an_override_replaces_a_layer(written):
    config = load_config("sd35_pickscore", ["method=mixgrpo", "hardware=8gpu", "plan.seeds=6"])
    assert (config.plan.name, config.plan.size, config.plan.seeds) == ("window", 4, 6)
    assert (config.placement, config.rollout.workers, config.learner.ranks) == ("colocated", 7, 7)
    assert (config.advantage.group, config.advantage.epsilon) == ("prompt", 1e-8)
    assert (config.policy, config.scorers) == ((base := load_config("sd35_pickscore")).policy, base.scorers)
    assert (config.learner.ema, config.objective.optimizer_steps) == (base.learner.ema, 2)


@pytest.mark.parametrize("method", method_names())
@pytest.mark.parametrize("name", PUBLISHED)
def test_every_method_goes_with_every_published_recipe(name, method):
    """The miniature of the method, where there is one, has the same plan and objective. A recipe's own micro-batch lies
    over that of a method that needs a certain one, which then has to be named, too."""
    needed = find_method(method).micro_batch
    config = load_config(name, [f"method={method}", *([f"learner.micro_batch={needed}"] if needed else [])])
    small = load_config({"tempflow": "shapes"}.get(method, f"shapes_{method}"))
    assert (config.plan.name, config.objective.name) == (small.plan.name, small.objective.name)
    assert config.advantage.group == small.advantage.group


def test_another_method_ends_what_was_said_of_the_one_before(written, tmp_path):
    changes = {"objective": {"kl": 0.5}, "plan": {"seeds": 3}, "advantage": {"clip": 1}, "learner": {"lr": 1e-5}}
    child = {"extends": "parent.yaml", "method": "mixgrpo"}
    mixed = load_config(written(parent={"extends": "sd35_pickscore"} | changes, child=child))
    published = load_config("sd35_pickscore", ["method=mixgrpo"])
    assert mixed.plan == published.plan
    assert mixed.objective == published.objective
    assert mixed.advantage == published.advantage
    assert mixed.learner.lr == 1e-5
    kept = load_config(str(tmp_path / "parent.yaml"), ["method=tempflow"])
    assert (kept.objective.kl, kept.plan.seeds, kept.advantage.clip, kept.learner.lr) == (0.5, 3, 1, 1e-5)


def test_a_method_replaces_the_plan_of_a_recipe_without_layers(recipe):
    path = recipe(plan={"name": "trunk", "seeds": 2}, objective={"kl": 0.5})
    config = load_config(path, ["method=flow_grpo"])
    assert (config.plan.name, config.plan.seeds, config.objective.kl) == ("chain", 24, 0.01)


def test_other_rewards_end_the_changes_of_the_scorers_before(written):
    parent = {"extends": "sd35_pickscore", "scorers": {"pickscore": {"weight": 3}}, "reward": {"combine": "group_norm"}}
    path = written(parent=parent, child={"extends": "parent.yaml", "rewards": "hpsv3"})
    config = load_config(path)
    assert {scorer.name: scorer.weight for scorer in config.scorers} == {"hpsv3": 1, "pickscore": 0}
    assert config.reward.combine != "group_norm"


def test_a_layer_of_ones_own_is_found_beside_the_recipe_that_names_it(written, tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    path = written(
        mine="rollout: {workers: 3}",
        ours={"extends": "8gpu", "learner": {"ranks": 2}, "rollout": {"workers": 2}},
        recipe={"extends": "sd35_pickscore", "hardware": "./mine.yaml"},
        child={"extends": "./recipe.yaml", "hardware": "ours.yaml"},
    )
    config = load_config(str(tmp_path / "recipe.yaml"))
    assert (config.rollout.workers, config.learner.ranks, config.learner.num_gpus) == (3, 1, 0)
    config = load_config(path)
    assert (config.placement, config.rollout.workers, config.rollout.num_gpus) == ("colocated", 2, 1)
    monkeypatch.chdir(tmp_path)
    assert load_config("sd35_pickscore", ["hardware=mine.yaml"]).rollout.workers == 3


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"mine": "extends: mine.yaml"}, "mine.yaml: `extends` leads back to this file"),
        ({"mine": "extends: ../{folder}/mine.yaml"}, "mine.yaml: `extends` leads back to this file"),
        (
            {"mine": "method: awm"},
            "mine.yaml: a hardware layer cannot choose layers, but this one has the key `method`",
        ),
        ({"mine": "extends: sd35_pickscore"}, "no hardware layer `sd35_pickscore`"),
        ({"mine": "- 1"}, "mine.yaml: a hardware layer must be a mapping"),
    ],
)
def test_a_wrong_layer_is_refused(written, tmp_path, files, says):
    files = {name: text.replace("{folder}", tmp_path.name) for name, text in files.items()}
    path = written(**files, recipe={"extends": "shapes", "hardware": "mine.yaml"})
    with pytest.raises(UserError) as refused:
        load_config(path)
    assert says in str(refused.value)


def test_a_layer_is_a_name(written):
    with pytest.raises(UserError, match=r"recipe\.yaml: `hardware` = 8: it must be the name of a layer or a path"):
        load_config(written(recipe="{extends: shapes, hardware: 8}"))
    with pytest.raises(UserError, match="the command line: `hardware` = None"):
        load_config("shapes", ["hardware="])


def scorers(*arguments):
    return {scorer.name: scorer.weight for scorer in load_config(*arguments).scorers}


def test_scorers_are_changed_added_and_removed_by_name(written):
    added = {"size": {"scorer": "jpeg_size", "weight": 0.25}}
    changes = {"pickscore": {"weight": 2, "options": {"batch_size": 3}}, "judge": None} | added
    path = written(recipe={"extends": "shapes", "scorers": changes})
    assert scorers(path) == {"pickscore": 2, "size": 0.25}
    options = load_config(path).scorers[0].options
    assert options == load_config("shapes").scorers[0].options | {"batch_size": 3}
    assert [scorer.name for scorer in load_pool(path).scorers] == ["pickscore", "size"]
    child = written(child={"extends": "recipe.yaml", "scorers": {"size": {"weight": 1}}})
    assert scorers(child) == {"pickscore": 2, "size": 1}


def test_scorers_by_name_are_a_list_where_there_is_none(written):
    alone = {
        "steps": 1,
        "policy": {"model": "m"},
        "data": {"train": "p.txt"},
        "scorers": {"size": {"scorer": "jpeg_size"}},
    }
    assert scorers(written(alone=alone)) == {"size": 1}


@pytest.mark.parametrize(
    ("overrides", "found"),
    [
        (["scorers.pickscore.weight=2"], {"pickscore": 2, "judge": 0}),
        (["scorers.0.weight=2", "scorers.judge.weight=0.5"], {"pickscore": 2, "judge": 0.5}),
        (["scorers.judge=null", "scorers.0.weight=2"], {"pickscore": 2}),
        (["scorers.pickscore={weight: 2}"], {"pickscore": 2, "judge": 0}),
        (["scorers={judge: null, pickscore: {weight: 2}}"], {"pickscore": 2}),
        (["scorers.size={scorer: jpeg_size}", "scorers.size.weight=3"], {"pickscore": 1, "judge": 0, "size": 3}),
        (["scorers=[{name: size, scorer: jpeg_size}]"], {"size": 1}),
    ],
)
def test_overrides_name_scorers(overrides, found):
    assert scorers("shapes", overrides) == found


@pytest.mark.parametrize(
    ("override", "says"),
    [
        (
            "scorers.picscore.weight=2",
            "`scorers.picscore.weight=2`: there is no scorer `picscore`; the scorers are pickscore, judge; to add one, "
            'write scorers.picscore="{scorer: …}"',
        ),
        ("scorers.size=null", "there is no scorer `size`; the scorers are pickscore, judge"),
        (
            "scorers.size={weight: 1}",
            "there is no scorer `size`; the scorers are pickscore, judge; to add one, give its key `scorer`",
        ),
        ("scorers.judge=3", "`scorers.judge` must be a mapping of keys to values, or null to remove the scorer"),
        ("scorers.2.weight=1", "`scorers` has no `2`"),
    ],
)
def test_a_scorer_that_is_not_listed_is_named_with_those_that_are(override, says):
    with pytest.raises(UserError) as refused:
        load_config("shapes", [override])
    assert says in str(refused.value)


def test_a_recipe_names_its_own_scorers_too(written):
    path = written(recipe={"extends": "shapes", "scorers": {"pikscore": {"weight": 2}}})
    says = r"recipe\.yaml: there is no scorer `pikscore`; the scorers are pickscore, judge"
    with pytest.raises(UserError, match=says):
        load_config(path)
