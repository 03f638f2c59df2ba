"""Files of trained weights: what diffusers and PEFT write does the same here; the rest is refused by its header."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from actors.policy.loading import check_loads
from actors.policy.policy import Policy
from actors.policy.settings import LoraSettings
from actors.policy.trained import LORA_FILE, PEFT_CONFIG, PEFT_FILE, check_trained, read_trained
from services.base.errors import UserError
from tests.helpers.tiny import stir, tiny_settings

LORA = LoraSettings(rank=4, alpha=8)
MODULE = "transformer_blocks.0.attn.to_q"


def deltas(transformer, name: str) -> dict[str, torch.Tensor]:
    """What an adapter adds to each weight, as PEFT computes it."""
    return {
        module: layer.get_delta_weight(name)
        for module, layer in transformer.named_modules()
        if hasattr(layer, "lora_A")
    }


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, delta in expected.items():
        torch.testing.assert_close(found[name], delta, rtol=1e-6, atol=1e-7)


def loaded(model: Path, folder: Path, lora: LoraSettings = LORA) -> Policy:
    """A policy that starts from the adapter, checked first as the command line does."""
    settings = tiny_settings(model, adapter=str(folder), lora=lora)
    check_trained(settings, folder, "policy.adapter")
    return Policy(settings, seed=0)


@pytest.fixture
def exported(sd3_folder, tmp_path) -> Path:
    """The lora/ folder of a run with rank 4 and alpha 8."""
    policy = Policy(tiny_settings(sd3_folder), seed=0)
    stir(policy)
    policy.save(tmp_path / "lora")
    return tmp_path / "lora"


def rewrite(folder: Path, change, metadata: dict | None = None) -> None:
    """Change the tensors of an adapter file."""
    file = folder / LORA_FILE
    save_file(change(load_file(file)), file, metadata or {"format": "pt"})


@pytest.mark.parametrize("alpha", [8, 5])
def test_an_exported_adapter_has_one_scale_for_all_readers(sd3_folder, tmp_path, alpha):
    policy = Policy(tiny_settings(sd3_folder, lora=LoraSettings(rank=4, alpha=alpha)), seed=0)
    stir(policy)
    policy.save(tmp_path)
    expected = deltas(policy.transformer, "default")
    tensors = load_file(tmp_path / LORA_FILE)
    plain = {
        name: tensors[f"transformer.{name}.lora_B.weight"] @ tensors[f"transformer.{name}.lora_A.weight"]
        for name in expected
    }
    assert_same(plain, expected)
    pipe = StableDiffusion3Pipeline.from_pretrained(sd3_folder, text_encoder_3=None, tokenizer_3=None)
    pipe.load_lora_weights(tmp_path)
    assert_same(deltas(pipe.transformer, "default_0"), expected)
    assert_same(deltas(loaded(sd3_folder, tmp_path).transformer, "default"), expected)


def test_an_adapter_without_metadata_has_alpha_equal_to_its_rank_as_diffusers_reads_it(sd3_folder, exported):
    rewrite(exported, lambda tensors: tensors)
    with safe_open(exported / LORA_FILE, "np") as file:
        assert "lora_adapter_metadata" not in file.metadata()
    pipe = StableDiffusion3Pipeline.from_pretrained(sd3_folder, text_encoder_3=None, tokenizer_3=None)
    pipe.load_lora_weights(exported)
    expected = deltas(pipe.transformer, "default_0")
    assert_same(deltas(loaded(sd3_folder, exported).transformer, "default"), expected)


@pytest.mark.parametrize("rslora", [False, True])
def test_a_folder_of_peft_is_read(sd3_folder, tmp_path, rslora):
    """What flow_grpo saves."""
    transformer = SD3Transformer2DModel.from_pretrained(sd3_folder, subfolder="transformer")
    config = LoraConfig(r=4, lora_alpha=16, target_modules=list(LORA.targets), use_rslora=rslora)
    model = get_peft_model(transformer, config)
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path)
    assert {PEFT_FILE, PEFT_CONFIG} <= {path.name for path in tmp_path.iterdir()}
    expected = deltas(model.base_model.model, "default")
    assert_same(deltas(loaded(sd3_folder, tmp_path).transformer, "default"), expected)


def truncated(folder: Path) -> None:
    file = folder / LORA_FILE
    file.write_bytes(file.read_bytes()[:-100])


def without_a_module(folder: Path) -> None:
    rewrite(folder, lambda tensors: {name: value for name, value in tensors.items() if MODULE not in name})


def with_a_module(folder: Path) -> None:
    rewrite(folder, lambda t: t | {f"transformer.proj_out.lora_{x}.weight": torch.zeros(4, 4) for x in "AB"})


def other_shape(folder: Path) -> None:
    rewrite(folder, lambda t: t | {f"transformer.{MODULE}.lora_A.weight": torch.zeros(4, 17)})


def alpha_tensors(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors | {f"transformer.{MODULE}.alpha": torch.tensor(8.0)})


def two_ranks(folder: Path) -> None:
    rewrite(folder, lambda t: t | {f"transformer.{MODULE}.lora_A.weight": torch.zeros(2, 16)})


def metadata(text: str):
    def change(folder: Path) -> None:
        rewrite(folder, lambda tensors: tensors, {"format": "pt", "lora_adapter_metadata": text})

    return change


def pickled(folder: Path) -> None:
    (folder / LORA_FILE).unlink()
    (folder / "adapter_model.bin").write_bytes(b"pickle")


def peft_without_config(folder: Path) -> None:
    (folder / LORA_FILE).rename(folder / PEFT_FILE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shutil.rmtree, "there is no folder"),
        (truncated, "is torn or not a safetensors file"),
        (without_a_module, rf"it lacks 2 of the weights that this recipe trains, such as {MODULE}\.lora_A"),
        (with_a_module, r"it has 2 that the recipe does not train, such as proj_out\.lora_A"),
        (other_shape, rf"{MODULE}\.lora_A.* has the shape \(4, 17\), and this model needs \(4, 16\)"),
        (alpha_tensors, r"to_q\.alpha`; give an adapter that has only plain LoRA weights"),
        (two_ranks, r"have the ranks \[2, 4\]"),
        (metadata("{"), "the metadata of .* is not JSON"),
        (metadata("[]"), "is not a JSON object"),
        (metadata(json.dumps({"transformer.use_dora": True})), "uses use_dora"),
        (metadata(json.dumps({"transformer.alpha_pattern": {"x": 1}})), "uses alpha_pattern"),
        (metadata(json.dumps({"transformer.lora_alpha": 0})), "lora_alpha = 0, which is not a positive number"),
        (pickled, r"holds a pickle \(adapter_model\.bin\)"),
        (peft_without_config, "has no adapter_config.json beside it"),
    ],
)
def test_what_does_not_fit_is_refused_from_its_header(sd3_folder, exported, change, message):
    check_trained(tiny_settings(sd3_folder), exported, "policy.adapter")
    change(exported)
    with pytest.raises(UserError, match=f"^policy.adapter: .*{message}|^`.*{message}"):
        check_trained(tiny_settings(sd3_folder), exported, "policy.adapter")


def test_another_rank_is_named(sd3_folder, exported):
    with pytest.raises(UserError, match=r"has rank 4; set policy\.lora\.rank=4"):
        check_trained(tiny_settings(sd3_folder, lora=LoraSettings(rank=2, alpha=8)), exported, "policy.adapter")


def test_where_the_model_is_elsewhere_rank_and_targets_are_compared(sd3_folder, exported, tmp_path):
    far = tmp_path / "far"
    shutil.copytree(sd3_folder, far, ignore=shutil.ignore_patterns("*.safetensors"))
    check_trained(tiny_settings(far), exported, "--adapter")
    fewer = LoraSettings(rank=4, alpha=8, targets=("attn.to_q",))
    with pytest.raises(UserError, match=r"^--adapter: .*policy\.lora\.targets does not name"):
        check_trained(tiny_settings(far, lora=fewer), exported, "--adapter")


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_weight_that_is_not_finite_is_refused_when_it_is_read(exported, value):
    def poison(tensors):
        tensors[f"transformer.{MODULE}.lora_B.weight"][2, 1] = value
        return tensors

    rewrite(exported, poison)
    with pytest.raises(UserError, match=rf"policy\.adapter: .* holds NaN or infinity in transformer\.{MODULE}"):
        read_trained(exported, LORA, "policy.adapter")


def test_whole_transformers_are_checked_likewise(sd3_folder, exported, tmp_path):
    settings = tiny_settings(sd3_folder, lora=None)
    policy = Policy(settings, seed=0)
    policy.save(tmp_path / "transformer")
    check_trained(settings, tmp_path / "transformer", "policy.adapter")
    with pytest.raises(UserError, match=r"no diffusion_pytorch_model\.safetensors in"):
        check_trained(settings, exported, "policy.adapter")
    with pytest.raises(UserError, match=r"holds a whole transformer; set policy\.lora=null"):
        check_trained(tiny_settings(sd3_folder), tmp_path / "transformer", "policy.adapter")
    wider = dict(policy.arrays())
    name = next(iter(wider))
    wider[name] = np.zeros((3, *wider[name].shape), np.float32)
    policy.save(tmp_path / "wider", wider)
    with pytest.raises(UserError, match="was made for another model"):
        check_trained(settings, tmp_path / "wider", "policy.adapter")


def test_a_model_whose_download_was_interrupted_is_no_other_model(sd3_folder, exported, tmp_path):
    """One of two shards is here; the loader fetches the other."""
    part = tmp_path / "part"
    shutil.copytree(sd3_folder, part)
    file = part / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    first, second = (f"diffusion_pytorch_model-{i:05d}-of-00002.safetensors" for i in (1, 2))
    names = sorted(tensors)
    save_file({name: tensors[name] for name in names[: len(names) // 2]}, file.with_name(first), {"format": "pt"})
    index = {name: first if i < len(names) // 2 else second for i, name in enumerate(names)}
    (file.with_name(f"{file.name}.index.json")).write_text(json.dumps({"weight_map": index}))
    file.unlink()
    check_trained(tiny_settings(part), exported, "--adapter")
    check_loads(tiny_settings(part))
