"""The scorer against a detector on loopback, its options and its rows."""

import base64
import io
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from services.base.errors import UserError
from services.scoring.geneval.rule import wanted_of
from services.scoring.loaded import LoadedScorer
from services.scoring.scorer import check_scorer, uses_gpu
from services.scoring.settings import ScorerSettings
from system.loop.prompts import check_rows, read_prompts

BOX = (0, 40, 20, 60)


class Detector(BaseHTTPRequestHandler):
    """Sees a cup in every image, as red as its first pixel says; busy on the first call."""

    calls = 0

    def do_POST(self):
        Detector.calls += 1
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if Detector.calls == 1:
            self.send_response(503)
            self.send_header("Retry-After", "0")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        images = [Image.open(io.BytesIO(base64.b64decode(text))) for text in body["images"]]
        colors = ["red" if image.getpixel((0, 0))[0] else "blue" for image in images]
        cups = [[{"class": "cup", "score": 0.9, "box": BOX, "color": color}] for color in colors]
        answer = json.dumps({"detections": cups}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format, *args):
        """Silent."""


RED_CUP = {"tag": "colors", "include": [{"class": "cup", "count": 1, "color": "red"}]}
OPTIONS = {"url": "http://127.0.0.1:1"}
SETTINGS = ScorerSettings(name="geneval", scorer="geneval", options=OPTIONS)


def test_the_scorer_asks_its_detector_again_when_busy_and_leaves_rows_without_a_request_out():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Detector)
    Thread(target=server.serve_forever, daemon=True).start()
    options = {"url": f"http://127.0.0.1:{server.server_port}/detect", "batch_size": 2}
    scorer = LoadedScorer(ScorerSettings(name="geneval", scorer="geneval", options=options))
    images = np.zeros((4, 8, 8, 3), np.uint8)
    images[0] = 255
    scored = scorer.score(images, ["a red cup", "a red cup", "what is this", "a cup"], [RED_CUP, RED_CUP, {}, RED_CUP])
    server.shutdown()
    np.testing.assert_array_equal(scored.score_N, [1, 0.5, np.nan, 0.5])
    np.testing.assert_array_equal(scored.sub_scores["official"], [1, 0, np.nan, 0])
    assert scored.errors == {2: "its row has no `tag`"}
    assert Detector.calls == 3, "one refused, then two batches"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rule": "official"}, "remove options.rule; .*`reward: official`"),
        ({"max_overlap": 0}, "above 0 and at most 1"),
        ({"url": None, "detector": "/nowhere"}, "scorer geneval: there is no folder `/nowhere`"),
        ({"url": "localhost:80"}, "http://"),
        ({"metadata": "metadata.jsonl"}, r"remove options\.metadata; .* data\.train and data\.heldout"),
        ({"token_file": "/nowhere"}, "no token"),
    ],
)
def test_mistakes(change, message):
    with pytest.raises(UserError, match=message):
        check_scorer(ScorerSettings(name="geneval", scorer="geneval", options=OPTIONS | change))


NEEDED = '{"prompt": "x", "tag": "t", "include": %s}'


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"prompt": "x", "tag": "t"}', r"reads the column `include`, which `\S+` does not have"),
        (NEEDED % '[{"class": "cup"}]', "line 2: the row has no 'count'"),
        (NEEDED % '[{"class": "cup", "count": 0}]', "line 2: .*not a whole number above 0"),
        (NEEDED % '[{"class": "cup", "count": "2"}]', "line 2: .*not a whole number above 0"),
        (NEEDED % '[{"class": "cup", "count": 1, "color": "grey"}]', "line 2: .*colour is not one of red, orange"),
        (NEEDED % '"cup"', "line 2: .*has cup, which is not a list of objects"),
        (NEEDED % '[{"class": "cup", "count": 1, "position": ["left of", 0]}]', "line 2: .*an earlier object"),
        (NEEDED % "[" + "", "line 2: not JSON"),
    ],
)
def test_a_row_that_is_not_genevals_is_named(tmp_path, row, message):
    file = tmp_path / "metadata.jsonl"
    file.write_text("\n" + row + "\n")
    with pytest.raises(UserError, match=message):
        check_rows(str(file), read_prompts(str(file)), [SETTINGS])


def test_a_row_is_the_same_from_json_and_parquet(tmp_path):
    """With a byte order mark and odd separators too."""
    row = {"prompt": "a\u2028cup", "tag": "single_object", "include": [{"class": "cup", "count": 1}]}
    wanted = {"tag": "single_object", "include": row["include"], "exclude": []}
    (tmp_path / "m.jsonl").write_text("\ufeff" + json.dumps(row, ensure_ascii=False) + "\n", "utf-8")
    objects = pa.list_(pa.struct([("class", pa.string()), ("count", pa.int64()), ("color", pa.string())]))
    schema = pa.schema([("prompt", pa.string()), ("tag", pa.string()), ("include", objects), ("exclude", objects)])
    pq.write_table(pa.Table.from_pylist([row], schema), tmp_path / "m.parquet")
    for name in ("m.jsonl", "m.parquet"):
        prompts = read_prompts(str(tmp_path / name))
        check_rows(name, prompts, [SETTINGS])
        assert (prompts[0], wanted_of(prompts.row(0))) == ("a\u2028cup", wanted)


def test_a_gpu_is_of_use_where_the_detector_is_not_a_service():
    assert not uses_gpu(SETTINGS)
    assert uses_gpu(ScorerSettings(name="geneval", scorer="geneval"))
