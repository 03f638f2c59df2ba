"""What a loaded scorer makes of its class's answer: holes, rows, sub-scores, and the score that a recipe chooses."""

import numpy as np
import pytest

from services.base.errors import UserError
from services.scoring.loaded import LoadedScorer, Scored
from services.scoring.scorer import images_at_once, needs_of
from services.scoring.settings import ScorerSettings

IMAGES = np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1) * np.ones((3, 2, 2, 3), np.uint8)
"""Images of the brightness 0, 1 and 2."""
PROMPTS = ["a", "b", "c"]


class Brightness:
    def __call__(self, images_NHWC, prompts):
        score = images_NHWC.mean(axis=(1, 2, 3))
        return np.array(
            [np.inf if prompt == "infinite" else value for prompt, value in zip(prompts, score, strict=True)]
        )


class Times:
    """The brightness times the column `factor`, which must be a number."""

    columns = ("factor",)

    @staticmethod
    def check_row(row):
        if isinstance(row["factor"], str):
            raise ValueError("has a factor in words")

    def __call__(self, images_NHWC, prompts, rows):
        assert len(images_NHWC) == len(prompts) == len(rows) > 0
        return images_NHWC.mean(axis=(1, 2, 3)) * [row["factor"] for row in rows]


class Colours:
    def __init__(self, **named: list) -> None:
        self.named = named

    def __call__(self, images_NHWC, prompts):
        return self.named


class Rank:
    groupwise = True

    def __call__(self, images_NHWC, prompts):
        return np.argsort(np.argsort(images_NHWC.mean(axis=(1, 2, 3))))


class Short:
    def __call__(self, images_NHWC, prompts):
        return np.zeros(2)


class Words:
    def __call__(self, images_NHWC, prompts):
        return ["good"] * len(prompts)


class FlowGrpo:
    """Answers as flow_grpo's reward functions do."""

    def __call__(self, images_NHWC, prompts):
        return np.zeros(len(prompts)), {}


def loaded(kind: type, reward=None, **options) -> LoadedScorer:
    settings = {"name": "mine", "scorer": f"{__name__}:{kind.__name__}", "reward": reward, "options": options}
    return LoadedScorer(ScorerSettings(**settings))


def test_two_arguments_keep_working_and_what_is_not_finite_is_a_hole():
    scored = loaded(Brightness).score(IMAGES, ["infinite", "b", "c"], [{"x": 1}] * 3)
    np.testing.assert_array_equal(scored.score_N, [np.nan, 1.0, 2.0])
    assert (scored.score_N.dtype, scored.sub_scores, scored.errors) == (np.float64, {}, {})


def test_a_scorer_gets_the_rows_and_a_row_that_it_cannot_use_is_a_hole_with_the_reason():
    scorer = loaded(Times)
    assert scorer.score(IMAGES, PROMPTS, [{"factor": 2}, {"factor": 3}, {"factor": 4}]).score_N.tolist() == [0, 3, 8]
    scored = scorer.score(IMAGES, PROMPTS, [{"other": 1}, {"factor": "two"}, {"factor": 4}])
    np.testing.assert_array_equal(scored.score_N, [np.nan, np.nan, 8.0])
    assert scored.errors == {0: "its row has no `factor`", 1: "its row has a factor in words"}


def test_without_rows_every_image_is_a_hole():
    scored = loaded(Times).score(IMAGES, PROMPTS)
    assert np.isnan(scored.score_N).all()
    assert scored.errors == dict.fromkeys(range(3), "its row has no `factor`")


@pytest.mark.parametrize(
    ("reward", "expected"),
    [
        (None, [7.0, 8.0, 9.0]),
        ("hue", [1.0, np.nan, 3.0]),
        ({"hue": 0.5, "score": 2.0}, [0.5 * 1 + 2 * 7, np.nan, 0.5 * 3 + 2 * 9]),
    ],
)
def test_one_sub_score_or_a_weighted_sum_is_the_score_and_a_hole_in_a_needed_one_is_a_hole(reward, expected):
    scored = loaded(Colours, reward, hue=[1, None, 3], score=[7, 8, 9]).score(IMAGES, PROMPTS)
    np.testing.assert_array_equal(scored.score_N, expected)
    np.testing.assert_array_equal(scored.sub_scores["hue"], [1, np.nan, 3])
    np.testing.assert_array_equal(scored.sub_scores["score"], [7, 8, 9])


def test_a_sub_score_that_the_reward_needs_but_is_missing_is_a_hole_of_the_reward_only():
    scored = loaded(Colours, "tint", hue=[1, 2, 3]).score(IMAGES, PROMPTS)
    assert np.isnan(scored.score_N).all()
    assert scored.sub_scores["hue"].tolist() == [1, 2, 3]
    why = "the scorer returned no sub-score `tint`, which its setting reward needs: it returned hue"
    assert scored.errors == dict.fromkeys(range(3), why)
    scored = loaded(Colours, hue=[1, 2, 3]).score(IMAGES, PROMPTS)
    assert scored.errors[2] == "the scorer returned no sub-score `score`; set its reward to others: it returned hue"


@pytest.mark.parametrize(
    ("scorer", "message"),
    [
        (loaded(Short), r"scorer `mine` returned scores of shape \(2,\) for 3 images; .* as an array of shape \(3,\)"),
        (
            loaded(Words),
            r"scorer `mine` returned list that NumPy cannot read as numbers \(could not.*\); return a list",
        ),
        (loaded(FlowGrpo), r"scorer `mine` returned tuple that NumPy cannot read as numbers"),
        (loaded(Brightness, "hue"), "returns no sub-scores; leave out its setting reward"),
        (loaded(Colours, score=[1, 2]), r"shape \(2,\)"),
        (loaded(Colours, **{"Hue": [1, 2, 3]}), "sub-score 'Hue'; name it in lower case"),
        (loaded(Colours, **{"a.b": [1, 2, 3]}), "sub-score 'a.b'"),
    ],
)
def test_an_answer_of_another_form_is_an_error(scorer, message):
    with pytest.raises(UserError, match=message):
        scorer.score(IMAGES, PROMPTS)


def test_a_part_of_an_answer_has_its_own_errors():
    whole = Scored(np.arange(4.0), {"hue": np.arange(4.0) * 2}, {1: "one", 3: "three"})
    part = whole[1:3]
    assert (part.score_N.tolist(), part.sub_scores["hue"].tolist(), part.errors) == ([1, 2], [2, 4], {0: "one"})


def test_a_groupwise_scorer_gets_all_images_of_a_task_in_one_request():
    settings = [
        ScorerSettings(name="a", scorer=f"{__name__}:{kind.__name__}", request_images=2) for kind in (Rank, Short)
    ]
    assert [needs_of(one).groupwise for one in settings] == [True, False]
    assert [images_at_once(one, 5) for one in settings] == [5, 2]


class RankByRow(Times):
    groupwise = True


def test_a_group_with_a_row_that_cannot_be_used_is_not_compared_in_part():
    scored = loaded(RankByRow).score(IMAGES, PROMPTS, [{"factor": 1}, {}, {"factor": 2}])
    assert np.isnan(scored.score_N).all()
    others = "its group has an image that cannot be scored"
    assert scored.errors == {1: "its row has no `factor`", 0: others, 2: others}
    assert next(iter(scored.errors)) == 1, "the cause comes first: it is the one that a run reports"


class Text:
    columns = "answer"

    def __call__(self, images_NHWC, prompts, rows): ...


class Unused:
    columns = ("answer",)

    def __call__(self, images_NHWC, prompts): ...


@pytest.mark.parametrize("kind", [Text, Unused])
def test_a_wrong_declaration_of_columns_is_refused(kind):
    with pytest.raises(UserError, match="`columns` must be a tuple of names, in a class whose call has the parameter"):
        loaded(kind)


class Metadata:
    def __call__(self, images, prompts, metadata): ...


class ImagesOnly:
    def __call__(self, images_NHWC): ...


class Unfixed:
    def __call__(self, images_NHWC, prompts, *, temperature=1.0, **others):
        return np.zeros(len(prompts))


@pytest.mark.parametrize("kind", [Metadata, ImagesOnly])
def test_a_call_that_takes_other_arguments_is_refused_before_it_is_called(kind):
    with pytest.raises(
        UserError, match=r"its call is `__call__\(self, images.*\)`; make it `__call__\(self, images_NHWC"
    ):
        loaded(kind)
    assert loaded(Unfixed).score(IMAGES, PROMPTS).score_N.tolist() == [0, 0, 0]
