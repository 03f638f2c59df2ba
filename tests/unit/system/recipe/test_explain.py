"""What is wrong with a recipe or an override, in one sentence with the file, the key, the value and the nearest key."""

import pytest

from services.base.errors import UserError
from system.recipe.load import load_config


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
            r"prompt_step would compare only 1 branch",
        ),
        (
            {"objective": {"optimizer_steps": 3}, "data": {"train": "a.txt", "prompts_per_step": 2}},
            r"objective\.optimizer_steps: 2 prompts a step cannot be split into 3",
        ),
        ({"objective": {"reference": "lora"}}, r"objective\.reference: .*set objective\.kl above 0"),
        (
            {"objective": {"reference": "lora", "kl": 0.1}, "policy": {"model": "m", "lora": None}},
            r"objective\.reference: only an adapter .*set policy\.lora",
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
        (
            {"rollout": {"merge_adapter": True}, "policy": {"model": "m", "lora": None}},
            r"rollout\.merge_adapter: policy\.lora is null",
        ),
        ({"plan": {"name": "trunk", "explorations": 1}}, r"at least 2"),
        ({"plan": {"name": "chain"}}, r"advantage\.group = seed .*to prompt$"),
        ({"scorers": []}, r"`scorers`"),
        ({"scorers": [{"name": "a", "scorer": "jpeg_size", "weight": 0}]}, r"none has a weight"),
        ({"scorers": [{"name": "a", "scorer": "jpeg_size"}] * 2}, r"two are named a"),
        (
            {"scorers": [{"name": "a", "scorer": "jpeg_size", "gate": {"score": "b.c", "min": 0}}]},
            r"the gate of `a` names `b.c`, and there is no scorer `b`; add it, or name one of a",
        ),
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
    with pytest.raises(UserError, match=f"`{key}`: the URL contains credentials") as refused:
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


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["lr=5e-4"], "an override: unknown key `lr`; did you mean `learner.lr`?"),
        (["noise_level=0.7"], "did you mean `kernel.noise_level`?"),
        (["leaner.lr=1"], "an override: unknown key `leaner`"),
        (["leaner.lr=1"], "did you mean `learner`?"),
        (["learner.lr=0"], "learner.lr=0: `learner.lr` = 0: input should be greater than 0"),
        (["plan=chain"], "plan=chain: `plan` = 'chain': it must be a mapping; choose by name with plan.name=…"),
        (["kernel.name=ode"], "kernel.name=ode: `kernel.name` = 'ode': it must be one of 'flow_sde', 'cps', 'dance'"),
    ],
)
def test_a_wrong_override_is_named_with_the_right_one(overrides, says):
    with pytest.raises(UserError) as refused:
        load_config("shapes", overrides)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        ("learner: {rank: 4}", "mine.layer.yaml: unknown key `learner.rank`; did you mean `ranks`?"),
        ("learner: {ranks: 0}", "mine.layer.yaml: `learner.ranks` = 0: "),
        ("scorers: {judge: {wait: 1}}", "mine.layer.yaml: unknown key `scorers.1.wait`; did you mean `weight`?"),
        (
            "plan: {name: chain, exploration: 6}",
            "mine.layer.yaml: unknown key `plan.exploration`; the known keys are name, seeds",
        ),
    ],
)
def test_a_wrong_value_of_a_layer_is_said_of_the_layer(tmp_path, layer, says):
    (tmp_path / "mine.layer.yaml").write_text(layer)
    (tmp_path / "mine.yaml").write_text("{extends: shapes, hardware: mine.layer.yaml}")
    with pytest.raises(UserError) as refused:
        load_config(str(tmp_path / "mine.yaml"))
    assert says in str(refused.value)


@pytest.mark.parametrize(("key", "right"), [("hardwear", "hardware"), ("modle", "model"), ("methods", "method")])
def test_a_misspelt_kind_of_layer_is_named_with_the_right_one(recipe, key, right):
    with pytest.raises(UserError, match=f"unknown key `{key}`; did you mean `{right}`"):
        load_config(recipe(**{key: "8gpu"}))
