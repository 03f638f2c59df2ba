"""Recipes from configurations of flow_grpo: the same as those written by hand, and a list of what is missing."""

from math import ceil
from pathlib import Path

import pytest
import yaml

from services.base.errors import UserError
from system.flow_grpo.convert import convert, convert_file
from system.flow_grpo.read import read_function
from system.recipe.load import load_config
from tests.helpers.command_line import Cli
from tests.helpers.flow_grpo import CONFIG

BY_HAND = {
    "general_ocr_sd3": """
        extends: sd35_flow_grpo
        hardware: 8gpu
        seed: 42
        policy: {max_sequence_length: 128}
        objective: {kl: 0.04}
        rollout: {workers: 31, micro_batch: 18}
        learner: {ranks: 31, micro_batch: 9}
        scorers: [{name: ocr, scorer: ocr}]
        data: {train: dataset/ocr/train.txt, heldout: dataset/ocr/test.txt, prompts_per_step: 48}
        eval: {every: 60, batch: 16}
        checkpoint: {every: 60, keep: 5}
    """,
    "pickscore_flux_fast": """
        model: flux_dev
        method: flow_grpo_fast
        rewards: pickscore
        hardware: 8gpu
        steps: 1200
        seed: 42
        policy:
          num_steps: 6
          max_sequence_length: 128
          gradient_checkpointing: false
          lora: {rank: 64, alpha: 128}
        kernel: {noise_level: 0.8}
        plan: {size: 3, within: 3, shared_noise: false}
        advantage: {std: group}
        objective: {kl: 0}
        rollout: {workers: 31, micro_batch: 3}
        learner: {ranks: 31, micro_batch: 3, ema: {decay: 0.9, every: 8}}
        data: {train: dataset/pickscore/train.txt, heldout: dataset/pickscore/test.txt, prompts_per_step: 48}
        eval: {every: 30, batch: 16, num_steps: 28}
        checkpoint: {every: 30, keep: 5}
    """,
}


@pytest.fixture
def config(tmp_path) -> Path:
    path = tmp_path / "grpo.py"
    path.write_text(CONFIG)
    return path


def with_function(config: Path, *lines: str) -> Path:
    """The file with a function `mine` that changes a copy of the OCR configuration."""
    body = "".join(f"    {line}\n" for line in ("config = general_ocr_sd3()", *lines, "return config"))
    config.write_text(f"{CONFIG}\n\ndef mine():\n{body}")
    return config


@pytest.mark.parametrize("name", BY_HAND)
def test_a_converted_recipe_is_the_one_written_by_hand(name, config, tmp_path):
    converted, by_hand = tmp_path / "converted.yaml", tmp_path / "by_hand.yaml"
    converted.write_text(convert_file(config, name))
    by_hand.write_text(BY_HAND[name])
    result, wanted = (load_config(str(path), ["name=same"]).model_dump() for path in (converted, by_hand))
    assert {key: result[key] for key in wanted} == wanted


def test_a_recipe_says_only_what_differs_from_its_layers(config):
    recipe, _ = convert(read_function(config, "pickscore_flux_fast"), config)
    assert "kernel" not in recipe  # of flow_grpo_fast, all of it
    assert {"height", "width", "dtype", "guidance"}.isdisjoint(recipe["policy"])
    assert list(recipe)[:4] == ["model", "method", "rewards", "hardware"]


def test_the_command_prints_a_recipe_that_loads(config, in_process: Cli, tmp_path):
    printed = in_process("from-flow-grpo", f"{config}:general_ocr_sd3")
    (tmp_path / "mine.yaml").write_text(printed.stdout)
    resolved = in_process("config", "mine.yaml")
    assert (printed.returncode, resolved.returncode) == (0, 0)
    assert "tempflow doctor mine.yaml" in printed.stderr
    assert yaml.safe_load(resolved.stdout)["plan"]["seeds"] == 24


def test_what_has_no_counterpart_is_listed_with_its_line(config):
    text = convert_file(
        with_function(config, "config.train.use_8bit_adam = True", "config.invented = 7", "config.train.cfg = True"),
        "mine",
    )
    first = CONFIG.count("\n") + 5
    assert f"#   line {first}: train.use_8bit_adam = True: AdamW is in fp32; learner.optimizer=" in text
    assert f"#   line {first + 1}: invented = 7: no script of flow_grpo that tempflow knows reads it\n" in text
    assert "train.cfg" not in text


@pytest.mark.parametrize(
    ("line", "guidance"),
    [
        ("config.sample.guidance_scale = 1", None),
        ("config.sample.eval_guidance_scale = 4.5", None),
        ("config.sample.eval_guidance_scale = 1", 1.0),
        ("config.sample.eval_guidance_scale = 0", 0.0),
    ],
)
def test_held_out_images_keep_a_guidance_of_their_own(line, guidance, config, tmp_path):
    """general_ocr_sd3 samples with 4.5. flow_grpo's base.py sets one for evaluation, too; only the file counts."""
    text = convert_file(with_function(config, line), "mine")
    assert "eval_guidance_scale" not in text, "it has a counterpart"
    (tmp_path / "mine.yaml").write_text(text)
    assert load_config(str(tmp_path / "mine.yaml"), ["name=same"]).eval.guidance == guidance


def test_half_precision_is_a_difference(config):
    assert "mixed_precision = 'fp16': bf16 is used" in convert_file(config, "general_ocr_sd3")
    assert "mixed_precision" not in convert_file(config, "pickscore_flux_fast")


def test_a_statement_that_was_not_understood_leaves_the_layer_s_value(config):
    recipe, notes = convert(
        read_function(with_function(config, "config.train.beta = float(os.environ['BETA'])"), "mine"), config
    )
    assert "kl" not in recipe.get("objective", {})
    assert [text for _, text in notes.unread] == ["config.train.beta = float(os.environ['BETA'])"]


@pytest.mark.parametrize(
    ("gpus", "batch", "prompts", "workers", "ranks"),
    [(32, 9, 48, 31, 31), (4, 6, 4, 3, 3), (8, 3, 4, None, 4)],
)
def test_gpus_times_batches_over_the_group_are_the_prompts_of_a_step(gpus, batch, prompts, workers, ranks, config):
    lines = [f"gpu_number = {gpus}", f"config.sample.train_batch_size = {batch}"]
    recipe, _ = convert(read_function(with_function(config, *lines), "mine"), config)
    assert prompts == gpus * batch * 4 // 24
    assert recipe["data"]["prompts_per_step"] == prompts
    assert recipe["rollout"].get("workers") == workers  # the layer 8gpu has 7
    assert recipe["learner"]["ranks"] == ranks  # a rank has a prompt at least


def test_on_one_gpu_the_scorers_share_a_quarter(config):
    lines = ["gpu_number = 1", 'config.reward_fn = {"pickscore": 0.5, "ocr": 0.5}']
    recipe, _ = convert(read_function(with_function(config, *lines), "mine"), config)
    pickscore, ocr = recipe["scorers"]
    assert recipe["hardware"] == "1gpu"
    assert (pickscore["num_gpus"], pickscore["replicas"], pickscore["weight"]) == (0.25, 1, 0.5)
    assert ocr == {"name": "ocr", "scorer": "ocr", "weight": 0.5}


@pytest.mark.parametrize(
    ("fraction", "trained"),
    [(1.0, None), (0.99, None), (0.9, None), (0.5, 5), (0.3, 3), (0.05, 1)],
)
def test_a_share_of_the_steps_keeps_their_number(fraction, trained, config):
    lines = [f"config.train.timestep_fraction = {fraction}"]
    recipe, _ = convert(read_function(with_function(config, *lines), "mine"), config)
    share = recipe.get("plan", {}).get("trained_share")
    assert (share and ceil(share * 9)) == trained  # of the nine steps that can be trained


def test_geneval_is_read_from_metadata(config):
    lines = [
        'config.prompt_fn = "geneval"',
        'config.reward_fn = {"geneval": 1.0}',
        'config.dataset = "dataset/geneval"',
    ]
    recipe, _ = convert(read_function(with_function(config, *lines), "mine"), config)
    assert recipe["rewards"] == "geneval"
    assert recipe["data"]["train"] == "dataset/geneval/train_metadata.jsonl"
    assert recipe["data"]["category_column"] == "tag"


def test_the_older_fast_script_has_a_window_that_begins_in_the_first_half(config):
    lines = ["config.sample.train_num_steps = 2", "config.sample.mini_num_image_per_prompt = 9"]
    lines += ["config.sample.train_batch_size = 1"]
    recipe, _ = convert(read_function(with_function(config, *lines), "mine"), config)
    assert recipe["method"] == "flow_grpo_fast"
    assert (recipe["plan"]["size"], recipe["plan"]["within"]) == (2, 7)
    assert recipe["data"]["prompts_per_step"] == 48


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("config.train.algorithm = 'dpo'", "trains with dpo, and only GRPO is converted; choose a method"),
        ("config.pretrained.model = 'Qwen/Qwen-Image-Edit'", "make an image from a text"),
        ("config.pretrained.model = secret()", "`pretrained.model` is missing or was not understood"),
        ("config.reward_fn = {'unifiedreward': 1.0}", "no scorer for unifiedreward"),
        ("config.reward_fn = {}", "`reward_fn` is missing"),
        ("config.train.learning_rate = -1", "`learner.lr` = -1: input should be greater than 0"),
        ("config.seed = 'x'", "`seed` = 'x'"),
    ],
)
def test_what_cannot_be_converted_is_one_sentence(line, said, config):
    with pytest.raises(UserError, match=said.replace("(", r"\(")):
        convert_file(with_function(config, line), "mine")


@pytest.mark.parametrize("given", ["grpo.py", "grpo.py:", ":mine", "grpo.py:a b", "missing.py:mine", ".:mine"])
def test_a_wrong_argument_is_one_sentence(given, in_process: Cli):
    result = in_process("from-flow-grpo", given)
    assert result.returncode == 2
    assert result.stderr.startswith("tempflow: `")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("odd", ["[]", "{}", "'x'", "-1", "0", "10**9", "None", "True", "{'../x': [1]}", "[[0], 'y']"])
def test_odd_values_are_converted_or_refused_in_a_sentence(odd, config):
    keys = [line.split(" = ")[0].strip() for line in CONFIG.splitlines() if line.startswith("    config.")]
    assert len(set(keys)) > 20
    for key in sorted({key for key in keys if key.count("=") == 0}):
        try:
            said = convert_file(with_function(config, f"{key} = {odd}"), "mine")
        except UserError as refused:
            said = f"steps: {refused}"
        assert "steps:" in said
        assert "Traceback" not in said


def test_a_model_that_no_layer_knows_keeps_its_name(config):
    recipe, notes = convert(
        read_function(with_function(config, "config.pretrained.model = '/models/ours'"), "mine"), config
    )
    assert recipe["policy"]["model"] == "/models/ours"
    assert "model" not in recipe
    assert any("choose one with `model:`" in text for _, text in notes.differs)
