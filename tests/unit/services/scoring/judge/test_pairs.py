"""Win rates over real HTTP, against endpoints that see the images, favour a place, or do not answer."""

import base64
import io
import json
import math
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from services.base import patience
from services.base.errors import UserError
from services.base.patience import Away
from services.scoring.judge.asker import TOKEN_VARIABLE
from services.scoring.judge.endpoint import JudgeError, NoScore, Reply
from services.scoring.judge.pairs import READY, VlmPairs, pairs_of, read_question
from services.scoring.loaded import LoadedScorer
from services.scoring.probe import probe
from services.scoring.scorer import check_scorer
from services.scoring.settings import ScorerSettings
from tests.helpers.completions import completion

KEY = "sk-a-secret-key"
READ = {"read": "pattern", "pattern": "Image (1|2|none)", "range": [2, 1], "not_applicable": "none"}
ASK = {"text": "{prompt}", "scores": {"better": READ}}
FIRST, SECOND = completion("Image 1"), completion("Image 2")


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Pauses are short, and the environment has no key."""
    monkeypatch.setattr(patience, "POLL_S", 0.01)
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)


def greys(*values: int) -> np.ndarray:
    return np.stack([np.full((4, 6, 3), value, np.uint8) for value in values])


def shown(body: bytes) -> list[int]:
    """The grey values of the images of a request, in their order."""
    *pictures, text = json.loads(body)["messages"][-1]["content"]
    assert text["type"] == "text"
    files = [base64.b64decode(picture["image_url"]["url"].split(",")[1]) for picture in pictures]
    return [int(np.asarray(Image.open(io.BytesIO(file)))[0, 0, 0]) for file in files]


def brighter(body: bytes) -> tuple:
    """The answer of a judge that sees the images and prefers the brighter one."""
    first, second = shown(body)
    return completion(f"Image {'none' if first == second else 1 if first > second else 2}")


def compare(server, images_NHWC, prompt="a fox", **options):
    scorer = VlmPairs(f"{server.url}/v1", "tiny", **{"question": ASK, "concurrency": 1, "timeout_s": 20, **options})
    return scorer(images_NHWC, [prompt] * len(images_NHWC), [{}] * len(images_NHWC))


def test_the_score_is_the_share_of_wins_and_half_of_the_ties(serve):
    server = serve(brighter)
    said = compare(server, greys(0, 50, 50, 100, 150), concurrency=4)
    # Wins against 0, 1, 1, 3 and 4 of four others; the two equal images have a tie.
    assert said["score"].tolist() == [0, 1.5 / 4, 1.5 / 4, 3 / 4, 4 / 4]
    assert said["comparisons"].tolist() == [4] * 5
    assert said["margin"].tolist() == [-1, -0.25, -0.25, 0.5, 1]
    assert len(server.asked) == 5 * 4 / 2


@pytest.mark.parametrize("count", [2, 3, 6, 7])
def test_a_judge_that_always_prefers_the_first_image_gives_each_one_half(serve, count):
    said = compare(serve(FIRST), greys(*range(count)))
    assert said["score"].tolist() == [0.5] * count
    assert said["first_wins"].tolist() == [1] * count
    assert compare(serve(SECOND), greys(*range(count)))["first_wins"].tolist() == [0] * count


def test_the_request_has_both_images_in_order_and_the_filled_text(serve):
    server = serve(FIRST)
    compare(server, greys(1, 2, 3), prompt="a hen", max_tokens=9, extra_body={"top_k": 5})
    assert [shown(body) for _, body in server.asked] == [[1, 2], [2, 3], [3, 1]]
    body = json.loads(server.asked[0][1])
    assert body["messages"].pop()["content"][-1] == {"type": "text", "text": "a hen"}
    settings = {"temperature": 0.0, "seed": 0, "max_completion_tokens": 9, "top_k": 5}
    assert body == {"model": "tiny", "messages": [], **settings}


@pytest.mark.parametrize("count", range(2, 10))
def test_all_pairs_meet_once_and_opposite_ones_in_both_orders(count):
    pairs = pairs_of(count)
    met = Counter(map(frozenset, pairs))
    twice = {frozenset((i, i + count // 2)) for i in range(count // 2)} if count % 2 == 0 else set()
    assert met == {frozenset((i, j)): 1 + ({i, j} in twice) for i in range(count) for j in range(i)}
    assert len(set(pairs)) == len(pairs)
    for place in (0, 1):
        assert Counter(pair[place] for pair in pairs) == dict.fromkeys(range(count), count // 2)


def test_opponents_are_the_nearest_neighbours_on_both_sides():
    assert pairs_of(6, opponents=2) == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 0)]
    met = {i: sorted(sum(pair) - i for pair in pairs_of(24, opponents=8) if i in pair) for i in range(24)}
    assert met[10] == [6, 7, 8, 9, 11, 12, 13, 14]
    assert met[0] == [1, 2, 3, 4, 20, 21, 22, 23]
    assert pairs_of(5, opponents=8) == pairs_of(5)
    assert pairs_of(4, opponents=8) == pairs_of(4)


def test_siblings_meet_only_each_other():
    assert all(i // 6 == j // 6 for i, j in pairs_of(216, siblings=6))
    assert [(i, j) for i, j in pairs_of(216, siblings=6) if i >= 210] == [(210 + i, 210 + j) for i, j in pairs_of(6)]
    assert pairs_of(5, siblings=3) == [(0, 1), (1, 2), (2, 0), (3, 4), (4, 3)]
    assert pairs_of(3, siblings=8) == pairs_of(3)


def test_the_numbers_of_calls_are_those_of_the_documentation():
    assert len(pairs_of(216)) == 23_328
    assert len(pairs_of(216, siblings=6)) == 648
    assert len(pairs_of(24)) == 288
    assert len(pairs_of(24, opponents=8)) == 96


def test_an_answer_that_cannot_be_read_is_a_missing_comparison(serve, caplog):
    said = compare(serve(FIRST, completion("Both are nice"), completion(None, refusal="No")), greys(1, 2, 3))
    np.testing.assert_array_equal(said["score"], [1, 0, np.nan])
    np.testing.assert_array_equal(said["first_wins"], [1, 1, np.nan])
    assert said["comparisons"].tolist() == [1, 1, 0]
    assert [record.message.split(":")[0] for record in caplog.records] == [
        f"no score for the images {pair} of the prompt 'a fox'" for pair in ("1 and 2", "2 and 0")
    ]
    assert "the model answered 'Both are nice'" in caplog.text


def test_an_endpoint_that_stays_away_costs_one_patience_and_not_the_answers_before(serve):
    server = serve(FIRST, (503, {}, b"busy"))
    said = compare(server, greys(1, 2, 3), patience_s=0)
    np.testing.assert_array_equal(said["score"], [1, 0, np.nan])
    assert len(server.asked) == 2, "the third pair came after the patience was used up"
    with pytest.raises(Away, match="answered 503: busy"):
        compare(serve((503, {}, b"busy")), greys(1, 2, 3), patience_s=0)


def test_a_wrong_key_fails_the_request(serve, tmp_path):
    (tmp_path / "key").write_text(f"{KEY}\n")
    server = serve((401, {}, f"wrong key {KEY}".encode()))
    with pytest.raises(JudgeError, match="answered 401") as caught:
        compare(server, greys(*range(9)), token_file=str(tmp_path / "key"))
    assert KEY not in str(caught.value)
    assert len(server.asked) < 9 * 4


def test_comparisons_beyond_the_budget_are_not_made(serve):
    server = serve(FIRST)
    with pytest.raises(JudgeError, match=r"all 2 calls; raise options\.budget_calls"):
        compare(server, greys(1, 2, 3), budget_calls=2)
    assert len(server.asked) == 2


def test_each_image_of_a_comparison_has_half_of_its_cost(serve):
    usage = {"prompt_tokens": 1000, "completion_tokens": 20}
    unread = completion("Neither", usage={"prompt_tokens": 600, "completion_tokens": 10})
    server = serve(completion("Image 1", usage=usage), unread, completion("Image 2", usage=usage))
    said = compare(server, greys(1, 2, 3), price_in=3.0, price_out=15.0)
    assert said["tokens_in"].tolist() == [1000, 800, 800]
    assert said["tokens_out"].tolist() == [20, 15, 15]
    assert said["cost"].sum() == pytest.approx((2600 * 3 + 50 * 15) / 1e6)
    assert (said["seconds"] > 0).all()
    assert "cost" not in compare(serve(FIRST), greys(1, 2))


def test_a_probability_above_one_half_is_a_whole_win(serve):
    server = serve(*[completion("1", {"1": math.log(p), "2": math.log(1 - p)}) for p in (0.75, 0.51, 0.5)])
    said = compare(server, greys(1, 2, 3), question="preference")
    assert said["score"].tolist() == [(1 + 0.5) / 2, (0 + 1) / 2, (0 + 0.5) / 2]
    np.testing.assert_allclose(said["margin"], [(0.5 + 0) / 2, (-0.5 + 0.02) / 2, (-0.02 + 0) / 2])


def test_one_image_is_a_hole_and_nothing_is_asked(serve):
    server = serve(FIRST)
    said = compare(server, greys(1))
    assert np.isnan(said["score"]).all()
    assert (said["comparisons"].tolist(), said["seconds"].tolist(), server.asked) == ([0], [0], [])
    assert compare(server, greys(1)[:0])["score"].shape == (0,)


def test_a_group_is_scored_as_a_whole_with_the_columns_of_the_question(serve):
    server = serve(brighter)
    question = {**ASK, "text": "{prompt} {n}"}
    options = {"url": f"{server.url}/v1", "model": "tiny", "question": question}
    settings = ScorerSettings(name="pairs", scorer="vlm_pairs", options=options)
    check_scorer(settings)
    scorer = LoadedScorer(settings)
    assert (scorer.needs.groupwise, scorer.needs.relative, scorer.needs.columns) == (True, True, ("n",))
    scored = scorer.score(greys(3, 1, 2), ["a"] * 3, [{"n": 7}] * 3)
    assert scored.score_N.tolist() == [1, 0, 0.5]
    assert {json.loads(body)["messages"][0]["content"][-1]["text"] for _, body in server.asked} == {"a 7"}
    assert scorer.score(greys(3, 1), ["a"] * 2, [{}, {}]).errors == dict.fromkeys((0, 1), "its row has no `n`")


def test_the_doctor_asks_once_about_two_images(serve):
    def found(server):
        options = {"url": f"{server.url}/v1", "model": "tiny", "question": ASK}
        return probe(ScorerSettings(name="p", scorer="vlm_pairs", options=options), 8, 8)

    server = serve(FIRST)
    assert found(server).startswith("vlm_pairs: tiny at http://127.0.0.1")
    assert [shown(body) for _, body in server.asked] == [[128, 128]]
    with pytest.raises(UserError, match=r"finds nothing in the answer; set another options\.model or question"):
        found(serve(completion("Hello")))


def test_the_published_form_of_unified_reward_think_is_read():
    question = read_question("unified_reward_think")
    thought = "<think>Total score:\nImage 1: 9+8=17\nImage 2: 7+8=15, so Image 2 is better at nothing</think>\n"

    def read(text: str):
        return question.read(Reply(text, None, False, [], 0, 0))

    assert read(f"{thought}<answer>Image 1 is better</answer>") == {"better": 1}
    assert read(f"{thought}<answer>\nImage 2 is better\n</answer>") == {"better": 0}
    with pytest.raises(NoScore, match="finds nothing"):
        read(thought)
    assert {file.stem for file in READY.glob("*.yaml")} == {"preference", "unified_reward_think"}


GOOD = {"url": "http://127.0.0.1/v1", "model": "tiny", "question": "preference"}


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"url": "127.0.0.1"}, "scorer vlm_pairs: url is `127.0.0.1`; give an http"),
        (
            {"question": "taste"},
            "name one of preference, unified_reward_think, or give a question",
        ),
        ({"question": {"text": "a", "scores": {}}}, "vlm_pairs: options.question.scores: .*at least 1 item"),
        ({"question": {**ASK, "scores": {"a": READ, "b": READ}}}, "has the scores a, b; keep one"),
        ({"siblings": 1}, "siblings is 1, but an image needs another one"),
        ({"siblings": 2.5}, "siblings is 2.5; it must be a whole number above 0"),
        ({"opponents": 3}, "opponents is 3; it must be even"),
        ({"opponents": 0}, "opponents is 0; it must be a whole number above 0"),
        ({"budget_calls": -1}, "vlm_pairs: budget_calls is -1"),
        ({"price_in": math.nan}, "price_in is nan; it must be a number that is not negative"),
        ({"token_file": "/nowhere"}, "no token in `/nowhere`"),
    ],
)
def test_wrong_options_are_refused_in_a_sentence(wrong, why):
    VlmPairs.check(**GOOD, siblings=6, opponents=4)
    with pytest.raises(UserError, match=why):
        VlmPairs.check(**{**GOOD, **wrong})
