"""Reading recipes: files, overrides, and the YAML that they are written in."""

import pytest

from services.base.errors import UserError
from services.base.yaml_text import load_yaml
from services.scoring.scorer import needs_of
from system.recipe.dump import dump_config
from system.recipe.find import SHIPPED, recipe_names
from system.recipe.load import load_config, load_pool, parse_config
from system.recipe.model import RunConfig


def test_overrides_reach_into_groups_and_lists(recipe):
    config = load_config(recipe(), ["learner.lr=1e-5", "scorers.0.weight=2", "plan.explorations=8", "name=other"])
    assert (config.learner.lr, config.scorers[0].weight, config.plan.explorations) == (1e-5, 2, 8)
    assert config.name == "other"


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_are_valid(name):
    assert load_config(name).name == name


@pytest.mark.parametrize("layer", sorted(path.stem for path in (SHIPPED / "rewards").iterdir()))
def test_the_scorers_of_every_rewards_layer_exist_and_accept_their_options(layer):
    config = load_config("sd35_pickscore", [f"rewards={layer}"])
    for scorer in config.scorers:
        assert needs_of(scorer)
    assert len(config.reward_scorers) == 1


def test_what_is_evaluated_is_what_is_saved():
    """Workers that sample from another copy of the policy get the saved weights for an evaluation."""
    kept = {name: load_config(name).evaluates_an_average for name in ("shapes", "shapes_nft", "shapes_awm", "sd35_nft")}
    assert kept == {"shapes": False, "shapes_nft": True, "shapes_awm": True, "sd35_nft": True}


def test_numbers_are_those_of_yaml_1_2_wherever_they_stand(recipe, tmp_path):
    path = tmp_path / "numbers.yaml"
    options = "options: {scale: 1e-2, count: 010, ratio: 1:30, on: yes}"
    path.write_text(f"extends: {recipe()}\nscorers: [{{name: a, scorer: jpeg_size, {options}}}]\n", "utf-8-sig")
    config = load_config(str(path), ["scorers.0.options.more=1E3"])
    assert config.scorers[0].options == {"scale": 0.01, "count": 10, "ratio": "1:30", "on": "yes", "more": 1000.0}
    assert parse_config(RunConfig, load_yaml(dump_config(config), "printed"), "printed") == config


def test_a_pool_needs_scorers_only_and_a_training_recipe_has_them(recipe, tmp_path):
    assert load_pool(recipe()).scorers[0].scorer == "jpeg_size"
    path = tmp_path / "pool.yaml"
    path.write_text("scorers: [{name: size, scorer: jpeg_size, replicas: {min: 1, max: 4}}]\nserve: {port: 9000}\n")
    pool = load_pool(str(path), ["serve.max_images=3"])
    assert (pool.name, pool.serve.port, pool.serve.max_images, pool.scorers[0].replicas.max) == ("pool", 9000, 3, 4)
    with pytest.raises(UserError, match=r"unknown key `serve.prot`.*did you mean `port`"):
        load_pool(str(path), ["serve.prot=1"])
    with pytest.raises(UserError, match=r"max is 1, which is less than min, 2"):
        load_pool(str(path), ["scorers.0.replicas.max=1", "scorers.0.replicas.min=2"])


def test_broken_files_are_named(tmp_path):
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1")
    with pytest.raises(UserError, match="not YAML"):
        load_config(str(broken))
    broken.write_text("- 1")
    with pytest.raises(UserError, match="mapping"):
        load_config(str(broken))
    broken.write_text("steps: 1\nseed: 2\nsteps: 3\n")
    with pytest.raises(UserError, match="the key `steps` of line 3 is already in line 1"):
        load_config(str(broken))
    broken.write_bytes("steps: 1\nname: café".encode("latin-1"))
    with pytest.raises(UserError, match=r"broken\.yaml` is not UTF-8 \(line 2\); save it as UTF-8"):
        load_config(str(broken))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=18446744073709551616", "`seed` = 18446744073709551616: input should be less than 9223372036854775808"),
        ("rollout.num_gpus=1.5", "`rollout.num_gpus` = 1.5: .*a fraction of one GPU or whole ones"),
        ("scorers.0.num_gpus=2.5", "a fraction of one GPU or whole ones"),
        ("learner.betas=[2, 3]", r"`learner.betas.0` = 2: input should be less than 1"),
        ("steps=true", "`steps` = True: input should be a valid integer"),
        ('steps="3"', "`steps` = '3': input should be a valid integer"),
        ("policy.compile=1", "`policy.compile` = 1: input should be a valid boolean"),
        ("scorers.²=3", "`scorers` has no `²` to set"),
        ("name=" + "x" * 300, "at most 100 characters"),
    ],
)
def test_numbers_have_their_kind_and_bounds(override, message):
    with pytest.raises(UserError, match=message):
        load_config("shapes", [override])


def test_whole_and_fractional_gpus_are_taken():
    config = load_config("shapes", ["rollout.num_gpus=2", "learner.num_gpus=0.25"])
    assert (config.rollout.num_gpus, config.learner.num_gpus) == (2, 0.25)
