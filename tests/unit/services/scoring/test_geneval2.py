"""GenEval 2's scorer on a tiny random Qwen3-VL, against generation of one token, as its repository does."""

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import Qwen2TokenizerFast, Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from services.scoring.geneval2 import IMAGE_TOKEN, GenEval2, geometric_mean, spellings
from services.scoring.loaded import LoadedScorer
from services.scoring.scorer import check_scorer
from services.scoring.settings import ScorerSettings

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", IMAGE_TOKEN]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PAIRS = [["How many dogs are in the image?", "two"], ["Are the dogs red?", "Yes"]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen3vl")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = Qwen2TokenizerFast(tokenizer_object=tokenizer, pad_token=SPECIALS[0], eos_token="<|im_end|>")
    fast.add_special_tokens({"additional_special_tokens": SPECIALS[1:]})
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    start, end, image = fast.convert_tokens_to_ids(SPECIALS[3:])
    Qwen2VLImageProcessorPil(
        patch_size=16,
        size={"shortest_edge": 64 * 64, "longest_edge": 64 * 64},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(fast) + 4, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "initializer_range": 0.4,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]},
        },
        vision_config={
            "depth": 3, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 16,
            "out_hidden_size": 32, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1, 2],
            "initializer_range": 0.4,
        },
        image_token_id=image, video_token_id=len(fast) + 1, vision_start_token_id=start, vision_end_token_id=end,
    )  # fmt: skip
    Qwen3VLForConditionalGeneration(config).save_pretrained(folder)
    return str(folder)


def images(count):
    return np.random.default_rng(0).integers(0, 256, (count, 64, 96, 3), np.uint8)


@torch.no_grad()
def generated(scorer, image, question, answer):
    """The probabilities of the first generated token, without padding."""
    seen = scorer.image_processor([Image.fromarray(image)], return_tensors="pt")
    ids = torch.tensor([scorer.tokens(question, int(seen["image_grid_thw"].prod()))])
    said = scorer.model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=(ids == scorer.image_id).int(), **seen,
        max_new_tokens=1, do_sample=False, output_scores=True, return_dict_in_generate=True,
    )  # fmt: skip
    chances = said.scores[0].softmax(-1)[0]
    return sum(float(chances[scorer.tokenizer.encode(text)[0]]) for text in spellings(question, answer))


def test_scores_equal_one_generated_token(folder):
    settings = ScorerSettings(
        name="geneval2", scorer="geneval2", options={"model": folder, "dtype": "fp32", "device": "cpu"}
    )
    check_scorer(settings)
    scorer, pictures = LoadedScorer(settings), images(3)
    scored = scorer.score(pictures, ["two red dogs"] * 3, [{"vqa_list": PAIRS}, {}, {"vqa_list": PAIRS[1:]}])
    expected = np.array([[generated(scorer.scorer, picture, *pair) for pair in PAIRS] for picture in pictures])
    assert np.ptp(expected) > 1e-6
    means = [np.sqrt(expected[0].prod()), np.nan, expected[2, 1]]
    np.testing.assert_allclose(scored.score_N, means, rtol=1e-4)
    np.testing.assert_allclose(scored.sub_scores["atoms"], [expected[0].mean(), np.nan, expected[2, 1]], rtol=1e-4)
    assert scored.errors == {1: "its row has no `vqa_list`"}


def test_spellings_are_those_of_the_repository():
    numbers = ["three", "Three", " three", " Three", "3", " 3"]
    assert spellings("How many cows are in the image?", "three") == numbers
    assert spellings("How many cows are in the image?", "eleven")[4:] == ["other", " other"]
    assert spellings("Are the cows plastic?", "Yes") == ["Yes", "yes", " yes", " Yes"]


def test_means():
    assert geometric_mean(np.array([0.25, 1.0])) == pytest.approx(0.5)
    assert geometric_mean(np.array([0.0, 1.0])) == 0


@pytest.mark.parametrize(
    ("row", "error", "message"),
    [
        ({"vqa_list": []}, TypeError, "not a list of questions"),
        ({"vqa_list": "Is it red?"}, TypeError, "not a list of questions"),
        ({"vqa_list": [["Is it red?"]]}, ValueError, "not a question and its answer"),
        ({"vqa_list": [["How many?", 2]]}, ValueError, "not a question and its answer"),
    ],
)
def test_a_row_without_questions_is_refused(row, error, message):
    with pytest.raises(error, match=message):
        GenEval2.check_row(row)
