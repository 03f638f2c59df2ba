"""What is asked, and how numbers are read from answers."""

import math

import pytest

from services.base.errors import UserError
from services.scoring.judge.endpoint import MAX_TEXT, NoScore, Reply
from services.scoring.judge.rubric import READY, Question, filled, read_rubric

NUMBER = r"(\d+(?:\.\d+)?)"
RATIONAL = """# User Request Analysis
Text Faithfulness matters here.
# Detailed Judgement
1. Text Faithfulness:
## Justification: the fox is red; 2 of 2 objects. Score: high
## Score: 3.4
2. Physical and Visual Quality:
## Justification: soft light
## Score: 2.5
3. Text Rendering:
## Justification: none asked
## Score: N/A
# Summary: good
# User Request Refinement:
## Refined Request: a sharper fox, ## Score: 9
"""


def reply(text="", first_token=(), refusal=None, cut_off=False):
    return Reply(text, refusal, cut_off, list(first_token), 0, 0)


def question(**scores):
    return Question.model_validate({"text": "{prompt}", "scores": scores})


def test_fields_are_replaced_once_and_nothing_else_is():
    row = {"text": "{count}", "count": 2, "tags": ["é", None]}
    text = '{prompt} {text} {count} {tags} {"json": 1} {0} {prompt.__class__} {count!r} {}'
    assert filled(text, "a {text}", row) == (
        'a {text} {count} 2 ["é", null] {"json": 1} {0} {prompt.__class__} {count!r} {}'
    )
    with pytest.raises(KeyError, match="missing"):
        filled("{missing}", "a", row)


def test_a_probability_sums_spellings_and_leaves_out_other_tokens():
    first = [("Yes", math.log(0.5)), (" yes", math.log(0.1)), ("No", math.log(0.2)), ("Maybe", math.log(0.1))]
    assert question(a={"read": "probability"}).read(reply(first_token=first)) == {"a": pytest.approx(0.6 / 0.8)}


@pytest.mark.parametrize(
    ("first", "why"),
    [
        ([], "no log-probabilities"),
        ([("I", math.log(0.9)), ("Yes", math.log(0.05))], "a probability of 0.05"),
        ([("Sorry", 0.0)], "a probability of 0 "),
    ],
)
def test_a_probability_of_something_else_is_no_score(first, why):
    with pytest.raises(NoScore, match=why):
        question(a={"read": "probability"}).read(reply(first_token=first))


def test_numbers_become_shares_of_their_range():
    both = question(a={"read": "json", "range": [1, 5]}, b={"read": "json", "range": [10, 0]})
    assert both.read(reply('{"b": 2.5, "a": 4, "more": []}')) == {"a": 0.75, "b": 0.75}
    last = question(a={"read": "pattern", "pattern": f"Score: {NUMBER}", "range": [0, 10]})
    assert last.read(reply("Score: 1, no, Score: 7.5")) == {"a": 0.75}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("<html>", "is not JSON"),
        ("[" * 10_000, "is not JSON"),
        ("[4]", "is not a JSON object"),
        ("{}", "no number `a`"),
        ('{"a": "4"}', "no number `a`"),
        ('{"a": true}', "no number `a`"),
        ('{"a": NaN}', "outside the range"),
        ('{"a": Infinity}', "outside the range"),
        ('{"a": 5.01}', "outside the range from 1 to 5"),
        ("", "is empty"),
        ("4" * (MAX_TEXT + 1), "characters"),
    ],
)
def test_json_without_the_number_is_no_score(text, why):
    with pytest.raises(NoScore, match=why):
        question(a={"read": "json", "range": [1, 5]}).read(reply(text))


@pytest.mark.parametrize(
    ("pattern", "text", "why"),
    [
        (f"Score: {NUMBER}", "I cannot help", "finds nothing"),
        (f"Score: {NUMBER}", "Score: 11", "11 is outside"),
        ("Score: (.*)", "Score: nan", "nan is outside"),
        ("Score: (.*)", "Score: N/A", "'N/A', which is not a number"),
        ("Score(: 3)?", "Score", "finds nothing"),
    ],
)
def test_text_without_the_number_is_no_score(pattern, text, why):
    with pytest.raises(NoScore, match=why):
        question(a={"read": "pattern", "pattern": pattern, "range": [0, 10]}).read(reply(text))


def test_a_refusal_and_half_an_answer_are_no_score():
    asked = question(a={"read": "pattern", "pattern": NUMBER, "range": [0, 10]})
    with pytest.raises(NoScore, match="refused"):
        asked.read(reply("4", refusal="I will not"))
    with pytest.raises(NoScore, match="cut off"):
        asked.read(reply("4", cut_off=True))


def test_the_published_form_of_unified_reward_is_read():
    (asked,) = read_rubric("unified_reward")
    text = "Alignment Score (1-5): 3\nCoherence Score (1-5): 4.5\nStyle Score (1-5): 1"
    assert asked.read(reply(text)) == {"alignment": 0.5, "coherence": 0.875, "style": 0.0}


def test_the_published_form_of_rational_rewards_is_read():
    (asked,) = read_rubric("rational_rewards")
    scores = asked.read(reply(RATIONAL))
    assert scores == {"text_faithfulness": pytest.approx(0.8), "visual_quality": 0.5, "text_rendering": None}
    assert asked.read(reply(RATIONAL.replace("N/A", "4")))["text_rendering"] == 1.0
    with pytest.raises(NoScore, match="finds nothing"):
        asked.read(reply(RATIONAL.replace("## Score: 2.5", "")))


def test_the_form_that_each_ready_rubric_asks_for_is_the_form_that_it_reads():
    """Its own example lines, with a number in the place of the letter or bracket."""
    (asked,) = read_rubric("rational_rewards")
    shown = asked.text.partition("Answer in this form:")[2]
    assert set(asked.read(reply(shown.replace("[number]", "2.5").replace("[number or N/A]", "2.5"))).values()) == {0.5}
    (asked,) = read_rubric("text")
    assert asked.fields == {"text"}
    assert asked.read(reply("I read OPEN.\nSpelling: 10\n**Legibility: 2.5**")) == {"spelling": 1.0, "legibility": 0.25}
    (asked,) = read_rubric("aesthetics")
    assert all(name in asked.text for name in asked.scores)
    (asked,) = read_rubric("alignment")
    assert "Yes or No" in asked.text


@pytest.mark.parametrize("name", sorted(file.stem for file in READY.glob("*.yaml")))
def test_ready_rubrics_read_their_own_scores(name):
    assert all(question.scores for question in read_rubric(name))


PATTERN = {"read": "pattern", "pattern": NUMBER, "range": [0, 1]}


@pytest.mark.parametrize(
    ("rubric", "why"),
    [
        ("beauty", "rubric is `beauty`; name one of aesthetics, alignment"),
        ("../rubrics/text", "name one of"),
        ([], "options.rubric: List should have at least 1 item"),
        ([{"text": "a", "scores": {}}], "at least 1 item"),
        ([{"text": "a", "scores": {"a": {"read": "taste"}}}], "options.rubric.0.scores.a: .*'taste'"),
        ([{"text": "a", "scores": {"a": {**PATTERN, "pattern": "("}}}], "not a regular expression"),
        ([{"text": "a", "scores": {"a": {**PATTERN, "pattern": "a"}}}], "0 groups"),
        ([{"text": "a", "scores": {"a": {**PATTERN, "range": [1, 1]}}}], "two different finite numbers"),
        ([{"text": "a", "scores": {"a": {**PATTERN, "range": [1]}}}], "range"),
        ([{"text": "a", "scores": {"a": PATTERN, "b": {"read": "probability"}}}], "read in one way"),
        ([{"text": "a", "scores": {"a": {"read": "probability"}, "b": {"read": "probability"}}}], "one probability"),
        ([{"text": "a", "scores": {"A": PATTERN}}], "is named `A`"),
        ([{"text": "a", "scores": {"score": PATTERN}}], "is named `score`"),
        ([{"text": "a", "scores": {"a": PATTERN}}, {"text": "b", "scores": {"a": PATTERN}}], "each name once"),
    ],
)
def test_a_wrong_rubric_is_refused(rubric, why):
    with pytest.raises(UserError, match=why):
        read_rubric(rubric)
