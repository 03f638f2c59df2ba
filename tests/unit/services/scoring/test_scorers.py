"""Scorers against plain transformers, and how a scorer is found."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont
from transformers import AutoTokenizer, CLIPConfig, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from services.base.errors import UserError
from services.scoring.clipscore import ClipScore
from services.scoring.jpeg_size import JpegSize
from services.scoring.loaded import LoadedScorer
from services.scoring.ocr import Ocr, quoted, text_reward
from services.scoring.pickscore import PickScore
from services.scoring.scorer import check_scorer, own_folders
from services.scoring.settings import ScorerSettings
from system.bench.gpu.tiny.parts import clip_tokenizer


class Brightness:
    """A user's scorer."""

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def __call__(self, images_NHWC, prompts):
        return self.scale * images_NHWC.mean(axis=(1, 2, 3)) / 255


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = tower | {"vocab_size": 514, "max_position_embeddings": 16, "bos_token_id": 512, "eos_token_id": 513}
    config = CLIPConfig(text_config=text, vision_config=tower | {"image_size": 32, "patch_size": 8}, projection_dim=16)
    CLIPModel(config).save_pretrained(folder)
    clip_tokenizer().save_pretrained(folder)
    size = {"height": 32, "width": 32}
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size).save_pretrained(folder)
    return folder


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 24, 24, 3), np.uint8)


@torch.no_grad()
@pytest.mark.parametrize(("kind", "scale"), [(PickScore, 26), (ClipScore, 100)])
def test_clip_scorers_equal_plain_transformers(clip_folder, kind, scale):
    scorer = kind(str(clip_folder), batch_size=4, device="cpu")
    pictures, prompts = images(7), [f"prompt {i}" for i in range(7)]
    model = CLIPModel.from_pretrained(clip_folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(clip_folder)
    processor = CLIPImageProcessorPil.from_pretrained(clip_folder)
    expected = []
    for image, prompt in zip(pictures, prompts, strict=True):
        inputs = processor([Image.fromarray(image)], return_tensors="pt") | tokenizer(prompt, return_tensors="pt")
        expected.append(float(model(**inputs).logits_per_image) / scale)
    np.testing.assert_allclose(scorer(pictures, prompts), expected, atol=1e-6)


def test_a_score_does_not_depend_on_its_neighbours(clip_folder):
    scorer = PickScore(str(clip_folder), batch_size=4, device="cpu")
    pictures = images(6)
    together = scorer(pictures, ["x"] * 6)
    alone = [scorer(pictures[i : i + 1], ["x"])[0] for i in range(6)]
    assert together.tolist() == alone
    assert scorer(pictures[:0], []).shape == (0,)


def test_jpeg_size_rewards_detail_or_its_absence():
    flat, noisy = np.full((1, 64, 64, 3), 128, np.uint8), np.repeat(np.repeat(images(1), 2, 1), 2, 2)
    both = np.concatenate([flat, noisy[:, :48, :48][:, :1].repeat(64, 1)[:, :, :1].repeat(64, 2)])
    assert JpegSize()(both, ["", ""]).shape == (2,)
    assert JpegSize()(noisy, [""])[0] > JpegSize()(flat, [""])[0] > 0
    assert JpegSize(sign=-1)(flat, [""])[0] == -JpegSize()(flat, [""])[0]


def test_ocr_reads_what_is_written():
    picture = Image.new("RGB", (512, 512), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(64)
    draw.text((40, 100), "Hello World", fill="black", font=font)
    written, empty = np.array(picture), np.full((512, 512, 3), 255, np.uint8)
    prompts = ['a sign that says "hello world"', 'a sign that says "Hallo World"', "a sign", '"hello world"']
    score = Ocr()(np.stack([written, written, written, empty]), prompts, [{"text": None}, *[{}] * 3])
    assert score[:2].tolist() == [1.0, pytest.approx(0.9)]
    assert np.isnan(score[2])
    assert score[3] == 0.0
    assert Ocr()(written[None], ['a sign that says "nothing"'], [{"text": "Hello World"}]).tolist() == [1.0]


def test_ocr_refuses_a_text_that_is_none():
    Ocr.check_row({})
    for row, error in (({"text": 42}, TypeError), ({"text": " "}, ValueError)):
        with pytest.raises(error, match="`text`"):
            Ocr.check_row(row)


def test_ocr_reward_by_hand():
    assert text_reward("Open Now!", "open now") == 1
    assert text_reward("OPFN", "open") == pytest.approx(1 - 1 / 4)
    assert text_reward("", "open") == 0
    assert text_reward("something else entirely", "open") == 0


@pytest.mark.parametrize(
    ("prompt", "target"),
    [
        ('a "b c" d "e"', "b c"),
        ("it’s a sign: “don’t”", "don’t"),
        ("ein Schild „JAZZ“ hier", "JAZZ"),
        ("«JAZZ» ici", "JAZZ"),
        ("»JAZZ« hier", "JAZZ"),
        ("‹JAZZ›", "JAZZ"),
        ("看板「ジャズ」", "ジャズ"),
        ("『ジャズ』", "ジャズ"),
        ("＂JAZZ＂", "JAZZ"),
        ("”JAZZ” här", "JAZZ"),
        ('a 12" record that says "JAZZ"', "JAZZ"),
        ('a 12" x 10" sign with “JAZZ”', "JAZZ"),
        ("15” laptop showing “HELLO”", "HELLO"),
        ("12” x “JAZZ”", "JAZZ"),
        ('"OPEN" on a 12" screen', "OPEN"),
        ('the 7" single "Say 9"', "Say 9"),
        ('"Route 66" at dusk', "Route 66"),
        ('says “a "b" c”', 'a "b" c'),
        ("a sign", None),
        ('an " alone', None),
        ('a 12" x 10" sign', None),
        ('"12" VINYL"', None),
        ("a “JAZZ", None),
        ("says 'JAZZ'", None),
        ('a " " sign', None),
    ],
)
def test_what_ocr_looks_for(prompt, target):
    assert quoted(prompt) == target


def test_a_prompt_without_quotes_is_named_once(caplog):
    scorer = Ocr()
    assert np.isnan(scorer(images(2), ["a 'sign'", "another"], [{}, {}])).all()
    assert [record.message.rpartition(": ")[2] for record in caplog.records] == ["a 'sign'"]


def test_a_users_scorer_by_import_path():
    settings = ScorerSettings(name="bright", scorer=f"{__name__}:Brightness", options={"scale": 2})
    check_scorer(settings)
    assert LoadedScorer(settings).score(np.full((1, 2, 2, 3), 255, np.uint8), ["x"]).score_N.tolist() == [2.0]


@pytest.mark.parametrize(
    ("scorer", "options", "message"),
    [
        ("pickscor", {}, "neither built in"),
        ("no.such.module:Scorer", {}, "check the import path"),
        (f"{__name__}:Nothing", {}, "check the import path"),
        (f"{__name__}:Brightness", {"speed": 1}, "speed"),
        ("json:dumps", {}, "is not a class with a method `__call__"),
        ("pathlib:Path", {}, "is not a class with a method `__call__"),
        ("pickscore", {"model": "./nowhere/at/all"}, "there is no folder"),
        ("pickscore", {"model": "package:nowhere/x"}, "no package"),
        ("clipscore", {"model": "/nowhere"}, "scorer clipscore: there is no folder"),
    ],
)
def test_mistakes_are_named_before_anything_is_built(scorer, options, message):
    with pytest.raises(UserError, match=message):
        check_scorer(ScorerSettings(name="x", scorer=scorer, options=options))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("class X(:", r"cannot be imported: SyntaxError: invalid syntax \(broken.py, line 1\); correct it"),
        ("import os\nos.environ['NO_SUCH_KEY']", r"cannot be imported: KeyError: .*NO_SUCH_KEY"),
        ("{}['a']", r"cannot be imported: KeyError: 'a' \(.*broken.py, line 1\); correct it"),
        ("import no_such_module", "No module named 'no_such_module'; check the import path"),
    ],
)
def test_a_module_that_cannot_be_imported_is_named_with_the_line(content, message, tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken", raising=False)
    with pytest.raises(UserError, match=message):
        check_scorer(ScorerSettings(name="x", scorer="broken:X"))


def test_a_folder_whose_name_is_no_unicode_is_not_recorded(tmp_path, monkeypatch):
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    odd.mkdir()
    monkeypatch.setattr(sys, "path", [*sys.path, str(odd), str(tmp_path)])
    assert str(tmp_path) in own_folders()
    assert not [folder for folder in own_folders() if "caf" in folder]
