"""Settings of evaluation: what they inherit, which sets they make, and what they refuse."""

import json

import pytest

from actors.rollout.sampling import Sampling
from services.base.errors import UserError
from system.checks import recipe
from system.recipe.load import load_config

SET = "eval.sets.more={prompts: package:system.prompt_sets/shapes.jsonl, images_per_prompt: 3, scorers: [judge]}"


def test_held_out_images_are_sampled_as_the_policy_is_trained_unless_the_recipe_says_otherwise():
    assert load_config("shapes", ["eval.num_steps=null"]).eval_sampling == Sampling(64, 64, 6, 1.0)
    changed = load_config(
        "shapes",
        ["eval.height=32", "eval.width=48", "eval.guidance=3", "eval.num_steps=7", "eval.adapter_scale=0.5"],
    )
    assert changed.eval_sampling == Sampling(32, 48, 7, 3.0, None, 0.5)


def test_the_default_set_comes_first_and_named_sets_need_no_other():
    both = load_config("shapes", [SET]).eval_sets
    assert list(both) == ["heldout", "more"]
    assert both["heldout"].scorers is None
    assert list(load_config("shapes", [SET, "data.heldout=null"]).eval_sets) == ["more"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["eval.sets.heldout={prompts: x}"], "`heldout` cannot name a set"),
        (["eval.sets={Bad: {prompts: x}}"], "`Bad` cannot name a set"),
        (
            [SET.replace("[judge]", "[jury]")],
            r"eval\.sets\.more\.scorers: no scorer is named `jury`; there are pickscore, judge",
        ),
        (["eval.best=more/judge"], "there is no set `more`; there are heldout"),
        ([SET, "eval.best=more/pickscore"], "no scorer `pickscore` scores the set `more`"),
        (["eval.adapter_scale=0.5", "policy.lora=null"], r"eval\.adapter_scale: policy\.lora is null"),
    ],
)
def test_what_does_not_fit_together_is_refused(overrides, said):
    with pytest.raises(UserError, match=said):
        load_config("shapes", overrides)


def test_a_size_that_the_model_cannot_make_and_a_negative_prompt_without_guidance_are_refused():
    with pytest.raises(UserError, match=r"eval\.height: 65 is not a multiple"):
        list(recipe.policy(load_config("shapes", ["eval.height=65"])))
    with pytest.raises(UserError, match=r"eval\.negative_prompt: without classifier-free guidance"):
        list(recipe.policy(load_config("shapes", ["eval.negative_prompt=ugly"])))
    list(recipe.policy(load_config("shapes", ["eval.negative_prompt=ugly", "eval.guidance=2"])))


def test_a_scorer_that_compares_images_needs_several_of_a_prompt_in_one_request():
    def says(*overrides: str) -> str:
        return [found.says for found in recipe.scorers(load_config("shapes_sets", [*overrides]))][-1]

    assert says() == "diversity"
    assert "set eval.images_per_prompt" in says("eval.sets.relations.images_per_prompt=1")
    many = says("eval.sets.relations.images_per_prompt=9", "scorers.diversity.request_images=8")
    assert "compares all 9 images of a held-out prompt in one request; set" in many


def test_a_set_whose_rows_a_scorer_cannot_use_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"caption": "a cat"}))
    config = load_config("shapes", [f"eval.sets.own={{prompts: {tmp_path / 'a.jsonl'}}}"])
    found = list(recipe.prompts(config))[-1]
    assert (found.level, "set eval.sets.own.prompt_column to one of ['caption']" in found.says) == ("problem", True)
