"""`tempflow serve` on a Ray of its own: both formats, limits, tokens, overload, growth, a killed replica."""

import base64
import io
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import requests
import yaml
from PIL import Image

from services.base.ports import free_port
from services.http.client import PoolError, ScoreClient
from services.http.image_structure import MAX_SCANS
from services.http.images import encode_image
from tests.helpers.command_line import environment
from tests.helpers.http_pool import TOKEN, as_json, grey, post, serving, wait_until
from tests.helpers.processes import cpu_s, family


def slow_image() -> bytes:
    """A progressive JPEG of a structure that may pass, and seconds of work."""
    buffer = io.BytesIO()
    Image.new("RGB", (4096, 4096)).save(buffer, "JPEG", progressive=True)
    whole = buffer.getvalue()
    return whole[:-2] + whole[whole.rindex(b"\xff\xda") : -2] * (MAX_SCANS - 12) + whole[-2:]


SLOW = slow_image()


def decoding_s() -> float:
    """CPU seconds that the decoders of our pools spend within a second, without those that end in it."""

    def spent() -> dict[int, float]:
        return cpu_s(family(os.getpid(), "services.serving.decoder"))

    before = spent()
    time.sleep(1)
    return sum(seconds - before.get(pid, 0) for pid, seconds in spent().items())


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pool")
    (folder / "token").write_text(TOKEN + "\n")
    scorers = [
        {"name": "size", "scorer": "jpeg_size", "num_cpus": 0.1, "request_images": 4},
        {"name": "bright", "scorer": "slow:Slow", "num_cpus": 0.1},
    ]
    limits = {"token_file": str(folder / "token"), "max_images": 16, "max_bytes": 100_000, "max_pixels": 4096}
    limits["gateways"] = 2
    with serving(folder, scorers, **limits) as url:
        yield url


def test_both_formats_give_the_scorers_own_numbers(pool):
    images = [grey(value) for value in (0, 51, 255, 102, 204)] + [grey(51, 16)]
    answer = ScoreClient(pool, TOKEN, run="mine").score(images, ["x"] * 6)
    np.testing.assert_allclose(answer.scores["bright"], [0, 0.2, 1, 0.4, 0.8, 0.2])
    assert np.isfinite(answer.scores["size"]).all(), "asked in two requests of its bound"
    said = post(pool, as_json(*[("x", encode_image(image)) for image in images]), query="?scorers=bright").json()
    assert list(said["scores"]) == ["bright"]
    np.testing.assert_allclose(said["scores"]["bright"], answer.scores["bright"])


def test_one_bad_image_fails_alone_and_a_score_that_is_none_is_null(pool):
    good = encode_image(grey(255))
    said = post(pool, as_json(("x", good), ("x", b"no image"), ("nan", good), ("x", encode_image(grey(0, 65))))).json()
    assert said["scores"]["bright"] == [1, None, None, None]
    assert [error["index"] for error in said["errors"]] == [1, 3]
    assert "none of PNG" in said["errors"][0]["reason"]
    assert "65x65 pixels" in said["errors"][1]["reason"]


def test_what_is_refused(pool):
    body = as_json(("x", encode_image(grey(0))))
    assert post(pool, body, token="wrong").status_code == 401
    assert requests.get(f"{pool}/v1/scorers", timeout=9).status_code == 401
    assert post(pool, b"{}").status_code == 400
    assert post(pool, body, kind="text/plain").status_code == 415
    assert post(pool, as_json()).status_code == 400
    assert "no images" in post(pool, as_json()).json()["detail"]
    assert post(pool, as_json(*[("x", encode_image(grey(0)))] * 17)).status_code == 413
    assert post(pool, b" " * 200_000).status_code == 413
    assert post(pool, body, query="?scorers=nobody").status_code == 404
    with pytest.raises(PoolError, match="401"):
        ScoreClient(pool, "wrong").score([grey(0)], ["x"])


def test_a_scorer_that_raises_is_named_as_a_failure_and_its_neighbours_are_scored(pool):
    body, fine = (as_json((prompt, encode_image(grey(255)))) for prompt in ("raise", "x"))
    with ThreadPoolExecutor(8) as threads:
        codes = [r.status_code for r in threads.map(lambda i: post(pool, body if i == 3 else fine), range(8))]
    assert codes == [502 if i == 3 else 200 for i in range(8)]


def test_health_and_documentation_need_no_token(pool):
    assert requests.get(f"{pool}/healthz", timeout=9).ok
    assert requests.get(f"{pool}/readyz", timeout=9).ok
    assert "/v1/score" in requests.get(f"{pool}/openapi.json", timeout=9).json()["paths"]
    page = requests.get(f"{pool}/docs", timeout=9)
    assert page.ok
    assert "POST /v1/score" in page.text
    assert ScoreClient(pool, TOKEN).scorers() == [
        {"name": "size", "scorer": "jpeg_size", "replicas": 1},
        {"name": "bright", "scorer": "slow:Slow", "replicas": 1},
    ]


def test_rows_reach_a_scorer_in_both_formats_and_sub_scores_come_back(pool):
    images, rows = [grey(value) for value in (51, 255, 102)], [{"times": 3}, {"times": 0.5, "more": ["é"]}, {}]
    answer = ScoreClient(pool, TOKEN).score(images, ["x"] * 3, ["size", "bright"], rows)
    np.testing.assert_allclose(answer.scores["bright"], [0.6, 0.5, np.nan])
    np.testing.assert_allclose(answer.scores["bright.brightness"], [0.2, 1, 0.4])
    assert np.isfinite(answer.scores["size"]).all()
    items = [{"prompt": "x", "image": base64.b64encode(encode_image(i)).decode()} for i in images]
    items = [{**item, "row": row} for item, row in zip(items, rows, strict=True)]
    items[1]["row"] = {"times": "x" * 5000}
    said = post(pool, json.dumps({"items": items}).encode(), query="?scorers=bright").json()
    assert said["scores"]["bright"] == [pytest.approx(0.6), None, None]
    assert said["errors"] == [{"index": 1, "reason": "its row has 5013 bytes; at most 4096 are allowed"}]


def test_a_killed_replica_costs_a_retry(pool, tmp_path):
    answer = ScoreClient(pool, TOKEN).score([grey(255)], [f"die {tmp_path / 'once'}"], ["bright"])
    assert answer.scores["bright"].tolist() == [1.0]
    assert (tmp_path / "once").exists()


@pytest.mark.slow
def test_overload_is_answered_429_and_the_client_comes_again(tmp_path):
    """That the gateway says so and the client waits is tested without Ray; here both meet."""
    slow = {"name": "slow", "scorer": "slow:Slow", "num_cpus": 0.1, "options": {"seconds": 0.3}}
    with serving(tmp_path, [slow], max_waiting=2, max_waiting_per_run=1) as url:
        body = as_json(("x", encode_image(grey(255))))
        with ThreadPoolExecutor(6) as threads:
            answers_ = list(threads.map(lambda _: post(url, body), range(6)))
        busy = [answer for answer in answers_ if answer.status_code == 429]
        assert busy
        assert all(int(answer.headers["Retry-After"]) >= 1 for answer in busy)
        assert {answer.status_code for answer in answers_} == {200, 429}
        with ThreadPoolExecutor(3) as threads:
            asked = [threads.submit(ScoreClient(url).score, [grey(255)], ["x"]) for _ in range(3)]
            assert [a.result().scores["slow"].tolist() for a in asked] == [[1.0]] * 3


def test_slow_images_keep_nobody_waiting_and_a_caller_who_leaves_stops_them(tmp_path):
    size = {"name": "size", "scorer": "jpeg_size", "num_cpus": 0.1}
    with serving(tmp_path, [size], decode_s=0.4, max_waiting_pixels=2**31) as url:
        good, slow = as_json(("x", encode_image(grey(51)))), as_json(*[("x", SLOW)] * 8)
        said = post(url, as_json(("x", SLOW), ("x", encode_image(grey(51))))).json()
        assert said["errors"] == [{"index": 0, "reason": "takes more than 0.4 s to decode"}]
        assert said["scores"]["size"][1] is not None
        left = []
        with ThreadPoolExecutor(8) as threads:

            def leave_after(seconds: float) -> None:
                headers = {"Content-Type": "application/json"}
                with pytest.raises(requests.ReadTimeout):
                    requests.post(f"{url}/v1/score", data=slow, headers=headers, timeout=seconds)
                left.append(time.monotonic())

            hostile = [threads.submit(leave_after, 10) for _ in range(8)]
            wait_until(lambda: decoding_s() > 0, 20)
            for path in ("healthz", "readyz"):
                started = time.monotonic()
                assert requests.get(f"{url}/{path}", timeout=9).ok
                assert time.monotonic() - started < 5
            assert post(url, good).ok
            assert not left, "they were all still there"
            for job in hostile:
                job.result()
        wait_until(lambda: decoding_s() == 0, 20)


def test_a_port_has_one_pool(pool, in_process, tmp_path):
    recipe = tmp_path / "second.yaml"
    port = int(pool.rpartition(":")[2])
    recipe.write_text(yaml.safe_dump({"scorers": [{"name": "a", "scorer": "jpeg_size"}], "serve": {"port": port}}))
    done = in_process("serve", recipe)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"tempflow: another program listens on port {port} of 127.0.0.1; ")
    assert done.stderr.count("\n") == 1


SERVE_WITHOUT_HTTP = """
from system.launch.environment import listen_on_loopback
listen_on_loopback()
import ray
from ray import serve
ray.init()
serve.start(proxy_location="Disabled")
"""


def test_a_pool_on_a_cluster_listens_where_it_says_or_not_at_all(ray_head, tempflow, tmp_path):
    """Serve keeps the settings that it was started with: here without HTTP, as training starts it."""
    env = environment(ray_head.address)
    subprocess.run([sys.executable, "-c", SERVE_WITHOUT_HTTP], env=env, check=True, timeout=120)
    recipe = tmp_path / "pool.yaml"
    recipe.write_text(
        yaml.safe_dump({"scorers": [{"name": "a", "scorer": "jpeg_size"}], "serve": {"port": free_port()}})
    )
    done = tempflow("serve", recipe, address=ray_head.address)
    assert done.returncode == 2
    assert "tempflow: Serve runs on this Ray cluster without HTTP" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_it_grows_under_a_burst_and_shrinks_when_quiet_and_loses_nothing(tmp_path):
    bounds = {"min": 1, "max": 3, "target": 1, "grow_after_s": 1, "shrink_after_s": 5}
    slow = {"name": "slow", "scorer": "slow:Slow", "num_cpus": 0.1, "options": {"seconds": 0.2}, "replicas": bounds}
    with serving(tmp_path, [slow]) as url:
        client = ScoreClient(url, attempts=10)

        def replicas() -> int:
            return client.scorers()[0]["replicas"]

        assert replicas() == 1
        seen = []

        def ask(i: int) -> float:
            score = ScoreClient(url, attempts=10).score([grey(i % 256)], ["x"]).scores["slow"][0]
            seen.append(replicas())
            return score

        with ThreadPoolExecutor(12) as threads:
            scores = list(threads.map(ask, range(300)))
            assert max(seen) == 3
        np.testing.assert_allclose(scores, [i % 256 / 255 for i in range(300)])

        def small_again() -> bool:
            np.testing.assert_allclose(client.score([grey(51)], ["x"]).scores["slow"], [0.2])
            return replicas() == 1

        wait_until(small_again, 90, every_s=1)
