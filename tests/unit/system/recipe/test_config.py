"""Recipes: defaults, overrides, and errors that name file, key, value and the nearest key."""

import pytest
import yaml

from services.base.errors import UserError
from services.base.yaml_text import load_yaml
from system.recipe.find import recipe_names
from system.recipe.load import dump_config, load_config, load_pool, parse_config
from system.recipe.model import RunConfig
from tests.helpers.recipes import MINIMAL


@pytest.fixture
def recipe(tmp_path):
    def write(**changes):
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump(MINIMAL | changes))
        return str(path)

    return write


def test_every_default_is_printed_and_reads_back_equal(recipe):
    config = load_config(recipe())
    assert config.name == "mine"
    assert config.learner.lr == 3e-4
    assert parse_config(RunConfig, load_yaml(dump_config(config), "printed"), "printed") == config


def test_overrides_reach_into_groups_and_lists(recipe):
    config = load_config(recipe(), ["learner.lr=1e-5", "scorers.0.weight=2", "plan.explorations=8", "name=other"])
    assert (config.learner.lr, config.scorers[0].weight, config.plan.explorations) == (1e-5, 2, 8)
    assert config.name == "other"


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_are_valid(name):
    assert load_config(name).name == name


def test_what_is_evaluated_is_what_is_saved():
    """Workers that sample from another copy of the policy get the saved weights for an evaluation."""
    kept = {name: load_config(name).evaluates_an_average for name in ("shapes", "shapes_nft", "shapes_awm", "sd35_nft")}
    assert kept == {"shapes": False, "shapes_nft": True, "shapes_awm": True, "sd35_nft": True}


def test_a_name_that_is_the_default_keeps_the_parents_settings(tmp_path):
    child = tmp_path / "child.yaml"
    text = {"extends": "sd35_pickscore", "objective": {"name": "grpo", "kl": 0.5}, "kernel": {"name": "cps"}}
    child.write_text(yaml.safe_dump(text | {"plan": {"name": "chain"}, "advantage": {"group": "prompt"}}))
    with pytest.raises(UserError, match="noise_weights"):
        load_config(str(child))
    config = load_config(str(child), ["objective.noise_weights=false"])
    assert (config.objective.kl, config.objective.optimizer_steps) == (0.5, 2)
    assert (config.kernel.noise_level, config.plan.seeds) == (0.8, 24)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learnr": {"lr": 1}}, r"mine\.yaml: unknown key `learnr`; did you mean `learner`"),
        ({"learner": {"lrr": 0.5}}, r"mine\.yaml: unknown key `learner\.lrr`; did you mean `lr`"),
        ({"learner": {"lr": "fast"}}, r"mine\.yaml: `learner\.lr` = 'fast'"),
        ({"learner": {"lr": -1}}, r"`learner\.lr` = -1: .*greater than 0"),
        ({"plan": {"name": "trunk", "exploration": 6}}, r"`plan\.exploration`; did you mean `explorations`"),
        ({"plan": {"name": "bush"}}, r"`plan\.name`"),
        ({"plan": {"name": "tree"}}, r"advantage\.group = seed .*to prompt_step"),
        ({"plan": {"name": "tree"}, "advantage": {"group": "prompt"}}, r"nodes of all depths .*to prompt_step"),
        (
            {"plan": {"name": "trunk", "seeds": 1, "explorations": 1}, "advantage": {"group": "prompt_step"}},
            r"prompt_step compares 1 branch with itself",
        ),
        (
            {"objective": {"optimizer_steps": 3}, "data": {"train": "a.txt", "prompts_per_step": 2}},
            r"objective\.optimizer_steps: 2 prompts a step cannot be split into 3",
        ),
        ({"plan": {"name": "trunk", "strata": 0}}, r"`plan\.strata` = 0"),
        ({"kernel": {"name": "cps"}}, r"objective\.noise_weights: .*to false"),
        ({"kernel": {"name": "cps"}, "objective": {"name": "grpo_guard"}}, r"objective\.name: grpo_guard .*flow_sde"),
        ({"kernel": {"name": "cps", "noise_level": 1.5}}, r"`kernel\.noise_level` = 1\.5"),
        ({"objective": {"name": "awm"}}, r"objective\.name: awm trains on images"),
        ({"plan": {"name": "samples"}, "advantage": {"group": "prompt"}}, r"grpo trains on decisions"),
        (
            {"plan": {"name": "samples"}, "advantage": {"group": "prompt"}, "objective": {"name": "awm"}},
            r"objective\.ema_weight: there is no moving average",
        ),
        ({"advantage": {"leaves": "each"}}, r"advantage\.leaves: .*plan\.strides"),
        (
            {"learner": {"ranks": 3}, "data": {"train": "a.txt", "prompts_per_step": 2}},
            r"learner\.ranks: 2 prompts a step",
        ),
        ({"learner": {"ranks": 2}, "placement": "colocated"}, r"learner\.ranks: 2 colocated ranks .*there are 1"),
        ({"learner": {"shard": True}}, r"learner\.shard: .*at least 2 ranks"),
        (
            {"learner": {"shard": True, "ranks": 2}, "policy": {"model": "m", "compile": True}},
            r"policy\.compile to false",
        ),
        ({"rollout": {"workers": 3, "max_workers": 2}}, r"rollout\.max_workers: 2 is less"),
        ({"plan": {"name": "trunk", "explorations": 1}}, r"at least 2"),
        ({"plan": {"name": "chain"}}, r"advantage\.group = seed .*to prompt$"),
        ({"scorers": []}, r"`scorers`"),
        ({"scorers": [{"name": "a", "scorer": "jpeg_size", "weight": 0}]}, r"none has a weight"),
        ({"scorers": [{"name": "a", "scorer": "jpeg_size"}] * 2}, r"two are named a"),
        ({"scorers": [{"name": "a", "scorer": "jpeg_size", "wait": 1}]}, r"`scorers\.0\.wait`; did you mean `weight`"),
        ({"steps": None}, r"`steps`"),
        ({"policy": {}}, r"`policy\.model` is missing"),
    ],
)
def test_a_wrong_recipe_is_explained(recipe, changes, message):
    with pytest.raises(UserError, match=message):
        load_config(recipe(**changes))


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"checkpoint": {"folder": "s3://me:hush@bucket/runs"}}, "checkpoint.folder"),
        (
            {"scorers": [{"name": "a", "scorer": "remote", "options": {"url": "http://hush@pool:8000"}}]},
            "scorers.0.options",
        ),
        ({"output": "s3://me:hush@bucket"}, "output"),
    ],
)
def test_a_url_with_credentials_is_refused_and_not_repeated(recipe, changes, key):
    with pytest.raises(UserError, match=f"`{key}`: a URL holds credentials") as refused:
        load_config(recipe(**changes))
    assert "hush" not in str(refused.value)
    assert "hush" not in str(refused.value.__cause__)
    assert load_config(recipe(checkpoint={"folder": "s3://bucket/a@b"})).checkpoint.folder == "s3://bucket/a@b"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("learner.lr", "key=value"),
        ("plan={name:", "the value is not YAML"),
        ("learner.lrr=3", r"an override: unknown key `learner\.lrr`; did you mean `lr`"),
        ("steps=many", r"steps=many: `steps` = 'many'"),
        ("steps.more=1", "`steps` has no `more`"),
        ("scorers.7.weight=1", "`scorers` has no `7`"),
    ],
)
def test_a_wrong_override_is_named(recipe, override, message):
    with pytest.raises(UserError, match=message):
        load_config(recipe(), [override])


def test_unknown_recipes_and_broken_files(tmp_path):
    with pytest.raises(UserError, match="did you mean `shapes`"):
        load_config("shape")
    with pytest.raises(UserError, match="no recipe at"):
        load_config(str(tmp_path / "gone.yaml"))
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1")
    with pytest.raises(UserError, match="not YAML"):
        load_config(str(broken))
    broken.write_text("- 1")
    with pytest.raises(UserError, match="mapping"):
        load_config(str(broken))
    broken.write_text("steps: 1\nseed: 2\nsteps: 3\n")
    with pytest.raises(UserError, match="the key `steps` of line 3 is in line 1 already"):
        load_config(str(broken))
    broken.write_bytes("steps: 1\nname: café".encode("latin-1"))
    with pytest.raises(UserError, match=r"broken\.yaml` is not UTF-8 \(line 2\); save it as UTF-8"):
        load_config(str(broken))


def test_numbers_are_those_of_yaml_1_2_wherever_they_stand(recipe, tmp_path):
    path = tmp_path / "numbers.yaml"
    options = "options: {scale: 1e-2, count: 010, ratio: 1:30, on: yes}"
    path.write_text(f"extends: {recipe()}\nscorers: [{{name: a, scorer: jpeg_size, {options}}}]\n", "utf-8-sig")
    config = load_config(str(path), ["scorers.0.options.more=1E3"])
    assert config.scorers[0].options == {"scale": 0.01, "count": 10, "ratio": "1:30", "on": "yes", "more": 1000.0}
    assert parse_config(RunConfig, load_yaml(dump_config(config), "printed"), "printed") == config


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


def test_a_pool_needs_scorers_only_and_a_training_recipe_has_them(recipe, tmp_path):
    assert load_pool(recipe()).scorers[0].scorer == "jpeg_size"
    path = tmp_path / "pool.yaml"
    path.write_text("scorers: [{name: size, scorer: jpeg_size, replicas: {min: 1, max: 4}}]\nserve: {port: 9000}\n")
    pool = load_pool(str(path), ["serve.max_images=3"])
    assert (pool.name, pool.serve.port, pool.serve.max_images, pool.scorers[0].replicas.max) == ("pool", 9000, 3, 4)
    with pytest.raises(UserError, match=r"unknown key `serve.prot`.*did you mean `port`"):
        load_pool(str(path), ["serve.prot=1"])
    with pytest.raises(UserError, match=r"max is 1, below min, 2"):
        load_pool(str(path), ["scorers.0.replicas.max=1", "scorers.0.replicas.min=2"])


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["lr=5e-4"], "an override: unknown key `lr`; did you mean `learner.lr`?"),
        (["noise_level=0.7"], "did you mean `kernel.noise_level`?"),
        (["leaner.lr=1"], "an override: unknown key `leaner`"),
        (["leaner.lr=1"], "did you mean `learner`?"),
        (["learner.lr=0"], "learner.lr=0: `learner.lr` = 0: input should be greater than 0"),
        (["plan=chain"], "plan=chain: `plan` = 'chain': it is a mapping; choose by name, with plan.name=…"),
        (["kernel.name=ode"], "kernel.name=ode: `kernel.name` = 'ode': it is one of 'flow_sde', 'cps', 'dance'"),
    ],
)
def test_a_wrong_override_is_named_with_the_right_one(overrides, says):
    with pytest.raises(UserError) as refused:
        load_config("shapes", overrides)
    assert says in str(refused.value)


@pytest.mark.parametrize("overrides", [["plan.name=chain", "plan.seeds=8"], ["plan.seeds=8", "plan.name=chain"]])
def test_another_plan_shares_no_keys_with_the_one_it_replaces(overrides):
    config = load_config("shapes", [*overrides, "advantage.group=prompt"])
    assert (config.plan.name, config.plan.seeds) == ("chain", 8)
    same = load_config("shapes", ["plan.name=trunk"])
    assert same.plan.branch_steps == 4
