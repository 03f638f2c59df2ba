"""The detector in the scorer's own process: plumbing with tiny random models, and its arithmetic by hand."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel, Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.mask2former.image_processing_pil_mask2former import Mask2FormerImageProcessorPil

from services.base.errors import UserError
from services.scoring.geneval.colours import Colours, cut_out
from services.scoring.geneval.mask2former import CLASSES, Mask2Former, box_of
from services.scoring.geneval.rule import COLOURS
from services.scoring.geneval.scorer import GenEval
from services.scoring.loaded import LoadedScorer
from services.scoring.scorer import check_scorer
from services.scoring.settings import ScorerSettings
from system.bench.gpu.tiny.parts import clip_tokenizer

ROW = {"tag": "colors", "include": [{"class": "cup", "count": 1, "color": "red"}]}


def save_detector(folder, labels=80):
    torch.manual_seed(0)
    swin = SwinConfig(
        image_size=32, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = Mask2FormerConfig(
        backbone_config=swin, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=16,
        dim_feedforward=16, encoder_layers=1, decoder_layers=2, num_attention_heads=2, num_queries=10,
        num_labels=labels,
    )  # fmt: skip
    Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    Mask2FormerImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 128}).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    clip = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = tower | {"vocab_size": 514, "max_position_embeddings": 40, "bos_token_id": 512, "eos_token_id": 513}
    vision = tower | {"image_size": 32, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(clip)
    clip_tokenizer().save_pretrained(clip)
    crop = {"height": 32, "width": 32}
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=crop).save_pretrained(clip)
    return {"detector": save_detector(tmp_path_factory.mktemp("mask2former")), "clip": str(clip)}


@pytest.fixture(scope="module")
def detector(folders):
    return Mask2Former(folders["detector"], Colours(folders["clip"], "cpu"), 2, "cpu")


def images(count):
    return np.random.default_rng(0).integers(0, 256, (count, 48, 64, 3), np.uint8)


def test_a_tiny_random_model_runs_through_the_scorer(folders):
    options = {**folders, "batch_size": 2, "device": "cpu"}
    settings = ScorerSettings(name="geneval", scorer="geneval", options=options)
    check_scorer(settings)
    scorer = LoadedScorer(settings)
    unknown = {"tag": "single_object", "include": [{"class": "unicorn", "count": 1}]}
    scored = scorer.score(images(4), ["x"] * 4, [ROW, {}, unknown, ROW])
    assert np.isfinite(scored.score_N).tolist() == [True, False, False, True]
    assert scored.errors == {1: "its row has no `tag`"}
    assert "objects in a grey image" in scorer.scorer.probe()


def test_an_unknown_class_is_named(folders, caplog):
    scorer = GenEval(**folders, device="cpu")
    unknown = {"tag": "t", "include": [{"class": "cup", "count": 1}], "exclude": [{"class": "unicorn", "count": 1}]}
    scored = scorer(images(2), ["x"] * 2, [unknown] * 2)
    assert all(np.isnan(scored[name]).all() for name in ("score", "official"))
    assert [record.message for record in caplog.records] == [
        "geneval: the detector has no class `unicorn`; such prompts have no score"
    ]


def fixed_outputs(monkeypatch, detector, logits_BQC, masks_BQHW):
    """Let the model answer with these logits. The place of an image in its batch chooses the row."""
    output = type("Output", (), {"class_queries_logits": logits_BQC, "masks_queries_logits": masks_BQHW})()
    monkeypatch.setattr(detector.model, "forward", lambda pixel_values: output)


def outputs_of_two_cups_and_a_faint_dog():
    """Three queries: probabilities 0.8, 0.5 and 0.2; masks are halves of 12 x 16 with logits ±2."""
    logits_1QC = torch.full((1, 3, 81), -30.0)
    for query, (name, probability) in enumerate([("cup", 0.8), ("cup", 0.5), ("dog", 0.2)]):
        logits_1QC[0, query, CLASSES.index(name)] = float(np.log(probability))
        logits_1QC[0, query, 80] = float(np.log(1 - probability))
    masks_1QHW = torch.full((1, 3, 16, 24), -2.0)
    masks_1QHW[0, 0, :, :12] = 2
    masks_1QHW[0, 1, 8:] = 2
    masks_1QHW[0, 2] = 2
    return logits_1QC.repeat(2, 1, 1), masks_1QHW.repeat(2, 1, 1, 1)


def test_scores_and_boxes_by_hand(monkeypatch, detector):
    fixed_outputs(monkeypatch, detector, *outputs_of_two_cups_and_a_faint_dog())
    (found,) = detector(images(1), [{"tag": "t", "include": [], "exclude": []}])
    left, lower = found
    assert [seen["class"] for seen in found] == ["cup", "cup"], "the dog is below the threshold"
    assert left["box"] == [0, 0, 32, 48]
    assert lower["box"] == [0, 24, 64, 48]
    full = 1 / (1 + np.exp(-2))
    assert 0.8 * (full - 0.05) < left["score"] < 0.8 * full, "the probability times that of the mask, less at its edge"
    assert 0.5 * (full - 0.05) < lower["score"] < 0.5 * full


def test_the_score_is_the_mean_over_the_mask_at_the_image_size(monkeypatch, detector):
    logits_2QC, masks_2QHW = outputs_of_two_cups_and_a_faint_dog()
    fixed_outputs(monkeypatch, detector, logits_2QC, masks_2QHW)
    (found,) = detector(images(1), [{"tag": "t", "include": [], "exclude": []}])
    columns = np.linspace(0.5, 63.5, 64) * 96 / 64 - 0.5  # of the model's input, 64 x 96
    inner = np.interp(np.arange(96), (np.arange(24) + 0.5) * 4 - 0.5, np.where(np.arange(24) < 12, 2.0, -2.0))
    logit_W = np.interp(columns, np.arange(96), inner)
    expected = 0.8 * (1 / (1 + np.exp(-logit_W[logit_W > 0]))).mean()
    assert found[0]["score"] == pytest.approx(expected, abs=1e-5)


def test_colours_are_asked_for_where_the_row_requests_one(monkeypatch, detector):
    fixed_outputs(monkeypatch, detector, *outputs_of_two_cups_and_a_faint_dog())
    asked = []
    monkeypatch.setattr(detector, "colours", lambda pictures, names: asked.append((pictures, names)) or ["red", "blue"])
    pictures = images(2)
    none = {"tag": "t", "include": [{"class": "cup", "count": 1}], "exclude": []}
    found = detector(pictures, [none, {**ROW, "exclude": []}])
    assert [[seen.get("color") for seen in of_image] for of_image in found] == [[None, None], ["red", "blue"]]
    assert not any("mask" in seen for of_image in found for seen in of_image)
    ((crops, names),) = asked
    assert names == ["cup", "cup"]
    assert [crop.size for crop in crops] == [(32, 48), (64, 24)]
    np.testing.assert_array_equal(np.array(crops[0]), pictures[1, :, :32])


def test_neighbours_do_not_change_what_is_found(folders):
    scorer = Mask2Former(folders["detector"], Colours(folders["clip"], "cpu"), 4, "cpu")
    scorer.model.class_predictor.bias.data[CLASSES.index("cup")] += 6
    pictures, want = images(3), {**ROW, "exclude": []}
    together = scorer(pictures, [want] * 3)
    assert sum(map(len, together)) > 0
    assert [scorer(pictures[i : i + 1], [want])[0] for i in range(3)] == together


def test_what_is_outside_the_mask_is_grey():
    image, mask = images(1)[0], np.zeros((48, 64), bool)
    mask[10:20, 30:40] = True
    mask[10, 30] = False
    box = box_of(mask)
    assert box == [30, 10, 40, 20]
    crop = np.array(cut_out(image, mask, box))
    assert crop.shape == (10, 10, 3)
    assert crop[0, 0].tolist() == [0x99] * 3
    np.testing.assert_array_equal(crop[1:], image[11:20, 30:40])


@torch.no_grad()
def test_the_colour_is_that_of_the_nearest_mean_text(folders):
    """Against the classifier of transformers' CLIPModel, text by text and image by image."""
    colours = Colours(folders["clip"], "cpu")
    pictures = [Image.fromarray(image) for image in images(5)]
    vectors = []
    for colour in COLOURS:
        texts = (f"a photo of a {colour} dog", f"a photo of a {colour}-colored dog", f"a photo of a {colour} object")
        units = []
        for text in texts:
            ids = colours.tokenizer(text, truncation=True, max_length=40, return_tensors="pt")
            hidden = colours.model.text_model(**ids).pooler_output
            units.append(torch.nn.functional.normalize(colours.model.text_projection(hidden), dim=-1)[0])
        vectors.append(torch.stack(units).mean(0))
    vectors = torch.nn.functional.normalize(torch.stack(vectors), dim=-1)
    expected = []
    for picture in pictures:
        pixels = colours.image_processor([picture], return_tensors="pt")["pixel_values"]
        image = colours.model.visual_projection(colours.model.vision_model(pixels).pooler_output)[0]
        expected.append(COLOURS[int((vectors @ image).argmax())])
    assert colours(pictures, ["dog"] * 5) == expected
    assert colours([], []) == []


def test_a_detector_of_other_classes_is_refused(tmp_path, folders):
    with pytest.raises(UserError, match="has 7 classes; give a Mask2Former for the 80 classes"):
        Mask2Former(save_detector(tmp_path, labels=7), Colours(folders["clip"], "cpu"), 2, "cpu")
