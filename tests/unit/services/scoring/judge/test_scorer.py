"""A judge over real HTTP, against an endpoint that answers well, badly, late or never."""

import base64
import gzip
import io
import json
import logging
import math
import socket
import threading

import numpy as np
import pytest
from PIL import Image

from services.base import patience
from services.base.errors import UserError
from services.base.patience import Away
from services.scoring.judge import endpoint
from services.scoring.judge.asker import TOKEN_VARIABLE
from services.scoring.judge.endpoint import JudgeError
from services.scoring.judge.scorer import VlmJudge
from services.scoring.loaded import LoadedScorer
from services.scoring.probe import probe
from services.scoring.settings import ScorerSettings
from tests.helpers.completions import completion
from tests.helpers.loopback import HANG, Clock

KEY = "sk-a-secret-key"
SIGN = [{"text": "{prompt} {n}", "scores": {"sign": {"read": "pattern", "pattern": r"Score: (\S+)", "range": [0, 10]}}}]
PLAIN = [{"text": "{prompt}", "scores": {"sign": {"read": "pattern", "pattern": r"Score: (\S+)", "range": [0, 10]}}}]
IMAGE = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(1, 2, 4, 3)
FIVE = completion("Score: 5")
HTML = (200, {"Content-Type": "text/html"}, b"<html><body>Welcome</body></html>")


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Pauses are short, each is logged, and the environment has no key."""
    monkeypatch.setattr(patience, "POLL_S", 0.01)
    monkeypatch.setattr(patience, "TELL_AFTER_S", 0.0)
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)


def judge(server, rubric=PLAIN, **options):
    return VlmJudge(f"{server.url}/v1", "tiny", rubric, **{"concurrency": 1, "timeout_s": 20, **options})


def ask(server, rubric=PLAIN, prompt="a fox", row=None, **options):
    """The sub-scores of one image, as numbers."""
    said = judge(server, rubric, **options)(IMAGE, [prompt], [row or {}])
    return {name: float(values[0]) for name, values in said.items()}


def test_the_request_has_the_image_the_filled_text_and_one_seed_for_each_sample(serve):
    server = serve(completion("Score: 4"), completion("Score: 8"))
    rubric = [{**SIGN[0], "system": "You know {prompt}."}]
    said = ask(server, rubric, row={"n": 3}, samples=2, temperature=0.7, max_tokens=9, extra_body={"top_k": 5})
    assert said["sign"] == said["score"] == pytest.approx(0.6)
    assert [path for path, _ in server.asked] == ["/v1/chat/completions"] * 2
    bodies = [json.loads(body) for _, body in server.asked]
    assert [body["seed"] for body in bodies] == [0, 1]
    picture, text = bodies[0]["messages"][1]["content"]
    assert bodies[0]["messages"][0] == {"role": "system", "content": "You know a fox."}
    assert text == {"type": "text", "text": "a fox 3"}
    head, data = picture["image_url"]["url"].split(",")
    assert head == "data:image/png;base64"
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))), IMAGE[0])
    others = {name: value for name, value in bodies[0].items() if name not in ("messages", "seed")}
    assert others == {"model": "tiny", "temperature": 0.7, "max_completion_tokens": 9, "top_k": 5}


def test_a_probability_asks_for_one_token_with_its_log_probabilities(serve):
    server = serve(completion("Yes", {"Yes": math.log(0.6), "No": math.log(0.2)}))
    assert ask(server, "alignment")["score"] == pytest.approx(0.75)
    body = json.loads(server.asked[0][1])
    assert (body["logprobs"], body["top_logprobs"], body["max_completion_tokens"]) == (True, 20, 1)


def test_numbers_in_json_ask_for_a_schema(serve):
    server = serve(completion('{"composition": 10, "colour": 1, "light": 5.5, "detail": 10}'))
    said = ask(server, "aesthetics")
    assert (said["composition"], said["colour"], said["light"]) == (1.0, 0.0, 0.5)
    assert said["score"] == pytest.approx((1 + 0 + 0.5 + 1) / 4)
    form = json.loads(server.asked[0][1])["response_format"]["json_schema"]
    assert form["strict"]
    assert form["schema"]["required"] == ["composition", "colour", "light", "detail"]
    assert form["schema"]["properties"]["light"] == {"type": "number", "minimum": 1, "maximum": 10}


def test_each_image_is_judged_by_its_own_prompt_and_row_in_order(serve):
    server = serve(*[completion(f"Score: {n}") for n in (1, 2, 3)])
    said = judge(server, SIGN)(np.repeat(IMAGE, 3, axis=0), ["a", "b", "c"], [{"n": 1}, {"n": 2}, {"n": 3}])
    np.testing.assert_allclose(said["score"], [0.1, 0.2, 0.3])
    texts = [json.loads(body)["messages"][0]["content"][1]["text"] for _, body in server.asked]
    assert texts == ["a 1", "b 2", "c 3"]


def test_tokens_and_cost_are_those_of_all_answers_about_the_image(serve):
    usage = {"prompt_tokens": 1000, "completion_tokens": 20}
    server = serve(completion("Score: 5", usage=usage), completion("no", usage=usage))
    said = ask(server, samples=2, temperature=1.0, price_in=3.0, price_out=15.0)
    assert (said["score"], said["tokens_in"], said["tokens_out"]) == (0.5, 2000, 40)
    assert said["cost"] == pytest.approx((2000 * 3 + 40 * 15) / 1e6)
    assert said["seconds"] > 0


def test_a_hole_in_one_question_is_a_hole_of_the_score_only(serve):
    scores = {"a": {"read": "pattern", "pattern": "A(.)", "range": [0, 4]}}
    rubric = [{"text": "1", "scores": scores}, {"text": "2", "scores": {"b": scores["a"]}}]
    said = ask(serve(completion("A2"), completion("?")), rubric)
    assert said["a"] == 0.5
    assert math.isnan(said["b"])
    assert math.isnan(said["score"])


def test_what_does_not_apply_is_left_out_of_the_mean(serve):
    text = "Text Faithfulness: ## Score: 4 Physical and Visual Quality: ## Score: 1 Text Rendering: ## Score: N/A"
    said = ask(serve(completion(text)), "rational_rewards")
    assert said["score"] == 0.5
    assert math.isnan(said["text_rendering"])


def test_the_recipe_chooses_among_sub_scores(serve):
    text = "Alignment Score (1-5): 5\nCoherence Score (1-5): 3\nStyle Score (1-5): 1"
    options = {"url": f"{serve(completion(text)).url}/v1", "model": "tiny", "rubric": "unified_reward"}
    reward = {"alignment": 0.5, "coherence": 0.5}
    scorer = LoadedScorer(ScorerSettings(name="judge", scorer="vlm_judge", options=options, reward=reward))
    assert scorer.score(IMAGE, ["a"]).score_N.tolist() == [0.75]


def test_the_columns_of_the_rubric_are_asked_of_each_row(serve):
    options = {"url": f"{serve(completion('Score: 5')).url}/v1", "model": "tiny", "rubric": SIGN}
    scorer = LoadedScorer(ScorerSettings(name="judge", scorer="vlm_judge", options=options))
    assert scorer.needs.columns == ("n",)
    scored = scorer.score(np.repeat(IMAGE, 2, axis=0), ["a", "b"], [{}, {"n": 1}])
    np.testing.assert_array_equal(scored.score_N, [np.nan, 0.5])
    assert scored.errors == {0: "its row has no `n`"}


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (
            completion("I cannot judge people"),
            "finds nothing in the answer; the model answered 'I cannot judge people'",
        ),
        (completion(None, refusal="Not that one"), "the model refused; the model answered 'Not that one'"),
        (completion("Score: 11"), "11 is outside the range from 0 to 10; the model answered 'Score: 11'"),
        (completion("Score: 5", finish="length"), "cut off; raise options.max_tokens; the model answered 'Score: 5'"),
        (completion("Score: 5", choices=0), "answered with 0 choices"),
        (completion("Score: 5", choices=2), "answered with 2 choices"),
        (HTML, "answered without a completion: <html>"),
        ((200, {"Content-Type": "application/json"}, b'{"choices": "Score: 5"}'), "without a completion"),
        ((200, {"Content-Type": "application/json"}, FIVE[2][:60]), "without a completion"),
        ((200, {"Content-Type": "application/json"}, b"[" * 100_000), "without a completion"),
        ((200, {}, b"Score: 5" * 200_000), "more than 1048576 bytes"),
        ((500, {}, b"x" * 2_000_000), "more than 1048576 bytes"),
        ((200, {"Content-Encoding": "gzip"}, gzip.compress(b"0" * 10**7)), "is compressed"),
        ((500, {}, b"CUDA out of memory"), "answered 500: CUDA out of memory"),
        ((400, {}, b'{"error": "at most 0 images"}'), 'answered 400: {"error": "at most 0 images"}'),
        ((302, {"Location": "http://127.0.0.1:9/"}, b""), "answered 302"),
    ],
)
def test_an_answer_without_a_score_is_a_hole_with_the_answer_in_the_log(serve, caplog, answer, why):
    server = serve(answer, FIVE)
    with caplog.at_level(logging.WARNING, "services"):
        said = judge(server)(np.repeat(IMAGE, 2, axis=0), ["a fox", "a hen"], [{}, {}])
    np.testing.assert_array_equal(said["score"], [np.nan, 0.5])
    (line,) = [record.message for record in caplog.records]
    assert line.startswith("no score for an image of the prompt 'a fox'")
    assert why in line
    assert len(line) < 1500
    assert len(server.asked) == 2


@pytest.mark.parametrize(
    "answer",
    [
        (401, {}, f'{{"error": "wrong key {KEY}"}}'.encode()),
        (404, {}, b'{"error": "no model tiny"}'),
        (429, {}, b'{"error": {"code": "insufficient_quota"}}'),
    ],
)
def test_what_all_requests_would_get_stops_the_request_at_once(serve, tmp_path, answer):
    (tmp_path / "key").write_text(f"{KEY}\n")
    server = serve(answer)
    with pytest.raises(JudgeError, match=f"answered {answer[0]}") as caught:
        judge(server, token_file=str(tmp_path / "key"))(np.repeat(IMAGE, 9, axis=0), ["a"] * 9, [{}] * 9)
    assert KEY not in str(caught.value)
    assert len(server.asked) < 9


@pytest.mark.parametrize(("variable", "sent"), [(TOKEN_VARIABLE, "none"), ("MY_KEY", KEY)])
def test_the_key_is_that_of_the_named_variable_and_nothing_else_of_the_environment_is_sent(
    monkeypatch, serve, variable, sent
):
    import httpx2

    requests = []

    def answer(request):
        requests.append(request)
        return httpx2.Response(200, content=FIVE[2], headers=FIVE[1])

    monkeypatch.setattr(endpoint, "bounded_transport", lambda timeout_s: httpx2.MockTransport(answer))
    for name in ("API_KEY", "ADMIN_KEY", "ORG_ID", "PROJECT_ID"):
        monkeypatch.setenv(f"OPENAI_{name}", "of-another-service")
    monkeypatch.setenv("MY_KEY", KEY)
    assert ask(serve(FIVE), token_variable=variable)["score"] == 0.5
    (request,) = requests
    assert request.headers["Authorization"] == f"Bearer {sent}"
    assert request.headers["Accept-Encoding"] == "identity"
    assert not [name for name, value in request.headers.items() if "of-another-service" in value]


def test_a_busy_endpoint_is_asked_again_after_the_seconds_that_it_names(serve, monkeypatch):
    monkeypatch.setattr(patience, "time", clock := Clock())
    server = serve((429, {"Retry-After": "7"}, b""), (503, {"Retry-After": "soon"}, b""), FIVE)
    assert ask(server)["score"] == 0.5
    assert len(server.asked) == 3
    assert clock.pauses[0] == 7.0
    assert clock.pauses[1] < 1


def test_nothing_but_patience_repeats_a_request(serve):
    server = serve((503, {}, b"starting"))
    with pytest.raises(Away, match="answered 503: starting"):
        ask(server, patience_s=0)
    assert len(server.asked) == 1


def test_an_endpoint_that_hangs_or_is_not_there_is_away(serve):
    with pytest.raises(Away, match=r"no answer from .*ReadTimeout"):
        ask(serve(HANG), patience_s=0, timeout_s=0.2)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        server = type("Nobody", (), {"url": f"http://127.0.0.1:{sock.getsockname()[1]}"})
        with pytest.raises(Away, match=r"no answer from .*ConnectError"):
            ask(server, patience_s=0)


def test_an_endpoint_that_sends_a_byte_now_and_then_is_away(serve):
    """The client's timeout is for one read, which never takes long here."""
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip():
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
                while not over.wait(0.02):
                    try:
                        connection.sendall(b" ")
                    except OSError:
                        return

        threading.Thread(target=drip, daemon=True).start()
        server = type("Slow", (), {"url": f"http://127.0.0.1:{listener.getsockname()[1]}"})
        try:
            with pytest.raises(Away, match="ReadTimeout"):
                ask(server, patience_s=0, timeout_s=0.5)
        finally:
            over.set()


def test_a_connection_that_ends_early_is_away(serve):
    status, headers, body = FIVE
    server = serve((status, {**headers, "Content-Length": str(len(body) + 100)}, body))
    with pytest.raises(Away, match="no answer"):
        ask(server, patience_s=0, timeout_s=0.5)


def test_an_image_whose_answer_never_comes_does_not_cost_the_others_their_scores(serve, caplog):
    server = serve(FIVE, (503, {}, b"busy"), FIVE)
    said = judge(server, patience_s=0)(np.repeat(IMAGE, 3, axis=0), ["a", "b", "c"], [{}] * 3)
    np.testing.assert_array_equal(said["score"], [0.5, np.nan, np.nan])
    assert np.isnan(said["tokens_in"]).tolist() == [False, True, True]
    assert len(server.asked) == 2, "the third image came after the patience was used up"
    assert "no score for an image of the prompt 'b': " in caplog.text


def test_a_request_that_succeeds_leaves_no_line_in_the_log(serve, caplog):
    with caplog.at_level(logging.INFO):
        ask(serve(FIVE))
    assert caplog.text == ""


def test_no_images_have_no_scores(serve):
    assert judge(serve(FIVE))(IMAGE[:0], [], []) == {}


def test_calls_beyond_the_budget_are_not_made(serve):
    server = serve(FIVE)
    made = judge(server, budget_calls=3)
    made(np.repeat(IMAGE, 3, axis=0), ["a"] * 3, [{}] * 3)
    with pytest.raises(JudgeError, match=r"all 3 calls; raise options\.budget_calls"):
        made(IMAGE, ["a"], [{}])
    assert len(server.asked) == 3


def test_repeated_requests_count_as_calls(serve):
    server = serve((503, {}, b""))
    with pytest.raises(JudgeError, match="all 2 calls"):
        ask(server, budget_calls=2)
    assert len(server.asked) == 2


def test_tokens_beyond_the_budget_are_not_spent(serve):
    server = serve(completion("Score: 5", usage={"prompt_tokens": 60, "completion_tokens": 40}))
    with pytest.raises(JudgeError, match=r"has used 200 tokens; raise options\.budget_tokens"):
        judge(server, budget_tokens=150)(np.repeat(IMAGE, 3, axis=0), ["a"] * 3, [{}] * 3)
    assert len(server.asked) == 2


def test_as_many_images_as_allowed_are_judged_at_once(serve, monkeypatch):
    """Each call waits until four are inside, or fails."""
    gate = threading.Barrier(4, timeout=20)
    inside, most, lock = 0, 0, threading.Lock()
    ask_once = endpoint.Endpoint.ask

    def counted(*args, **fields):
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        gate.wait()
        try:
            return ask_once(*args, **fields)
        finally:
            with lock:
                inside -= 1

    monkeypatch.setattr(endpoint.Endpoint, "ask", counted)
    said = judge(serve(FIVE), concurrency=4)(np.repeat(IMAGE, 8, axis=0), ["a"] * 8, [{}] * 8)
    assert said["score"].tolist() == [0.5] * 8
    assert most == 4


def test_the_doctor_asks_each_question_once(serve):
    options = {"model": "tiny", "rubric": SIGN}

    def found(*answers):
        url = f"{serve(*answers).url}/v1"
        return probe(ScorerSettings(name="j", scorer="vlm_judge", options={"url": url, **options}), 8, 8)

    assert found(FIVE).startswith("vlm_judge: tiny at http://127.0.0.1")
    with pytest.raises(UserError, match=r"finds nothing in the answer; set another options\.model"):
        found(completion("Hello"))
    with pytest.raises(UserError, match=r"answered 401: ; start the endpoint, or set options\.url"):
        found((401, {}, b""))


GOOD = {"url": "http://127.0.0.1/v1", "model": "tiny", "rubric": "alignment"}


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"url": "127.0.0.1"}, "give an http:// or https:// address"),
        ({"rubric": "taste"}, "rubric is `taste`"),
        ({"samples": 3}, "samples is 3, but with temperature 0"),
        ({"samples": 0}, "samples is 0; it must be a whole number above 0"),
        ({"concurrency": 2.5}, "concurrency is 2.5"),
        ({"budget_calls": -1}, "budget_calls is -1"),
        ({"price_out": -1.0}, "price_out is -1.0; it must be a number that is not negative"),
        ({"patience_s": math.inf}, "patience_s is inf"),
        ({"timeout_s": "60"}, "timeout_s is 60; it must be a number"),
        ({"token_file": "/nowhere"}, "no token in `/nowhere`"),
    ],
)
def test_wrong_options_are_refused_in_a_sentence(wrong, why):
    VlmJudge.check(**GOOD)
    with pytest.raises(UserError, match=why):
        VlmJudge.check(**{**GOOD, **wrong})


def test_without_the_client_the_sentence_says_what_to_install(monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"run `pip install 'tempflow\[judge\]'`"):
        VlmJudge.check(**GOOD)
