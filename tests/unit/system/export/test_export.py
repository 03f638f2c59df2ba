"""An export: the right weights, a card of the run's own numbers, and a folder that is whole or absent."""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers import SD3Transformer2DModel
from safetensors import safe_open
from safetensors.torch import load_file

from actors.policy.policy import Policy
from actors.policy.trained import LORA_FILE, read_trained
from services.base.errors import UserError
from system.export import export as module
from system.export.card import md
from system.export.choices import Chosen, Layout
from system.export.export import export
from system.export.license import license_of
from system.recipe.load import load_config
from system.report.data import read_run, scores
from tests.helpers.recipes import tiny_recipe
from tests.helpers.tiny import tiny_settings
from tests.helpers.training import trained_locally


@pytest.fixture(scope="module")
def run(sd3_folder, tmp_path_factory) -> Path:
    """A run of four steps with a moving average, evaluated at 0, 2 and 4."""
    folder = tmp_path_factory.mktemp("adapter")
    return trained_locally(load_config(str(tiny_recipe(sd3_folder, folder)), ["name=mine"]))


@pytest.fixture(scope="module")
def whole(sd3_folder, tmp_path_factory) -> Path:
    """A run that trains every weight, in bf16."""
    folder = tmp_path_factory.mktemp("whole")
    settings = ["policy.lora=null", "policy.dtype=bf16", "learner.lr=1e-4", "learner.max_drift=1", "steps=2"]
    return trained_locally(load_config(str(tiny_recipe(sd3_folder, folder)), ["name=full", *settings]))


def head(folder: Path) -> dict:
    """The head of a card."""
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


def about(file: Path) -> dict[str, str]:
    with safe_open(file, "pt") as opened:
        return opened.metadata()


def test_the_run_folder_has_the_last_and_the_best_adapter_and_both_say_their_step(run):
    states = [json.loads(file.read_text()) for file in sorted(run.glob("checkpoints/step_*/state.json"))]
    best = max((state for state in states if state["heldout"] is not None), key=lambda state: state["heldout"])
    for folder, step in (("lora", 4), ("best", best["step"])):
        found = about(run / folder / LORA_FILE)
        assert (found["tempflow_step"], found["tempflow_weights"]) == (str(step), "ema")


@pytest.mark.parametrize(("step", "average"), [(Chosen.LAST, True), (2, True), (4, False)])
def test_the_exported_adapter_is_that_of_the_checkpoint(run, tmp_path, step, average):
    done = export(run, tmp_path / "out", step, average=average)
    number = 4 if step is Chosen.LAST else step
    name = "ema" if average else "trained"
    assert (done.step, done.weight_set) == (number, name)
    kept = load_file(run / "checkpoints" / f"step_{number:06d}" / f"{name}.safetensors")
    lora = load_config(str(run), []).policy.lora
    read = read_trained(tmp_path / "out", lora, "--adapter")
    assert read.keys() == kept.keys() - {"steps"}
    for key, array in read.items():
        np.testing.assert_array_equal(array, kept[key].numpy())
    assert about(tmp_path / "out" / LORA_FILE)["tempflow_step"] == str(number)


def test_the_last_one_is_the_file_that_the_run_has_saved(run, tmp_path):
    export(run, tmp_path / "out", Chosen.LAST)
    assert (tmp_path / "out" / LORA_FILE).read_bytes() == (run / "lora" / LORA_FILE).read_bytes()
    export(run, tmp_path / "best")
    assert (tmp_path / "best" / LORA_FILE).read_bytes() == (run / "best" / LORA_FILE).read_bytes()


def test_the_card_has_the_numbers_of_the_exported_step(run, tmp_path):
    export(run, tmp_path / "out", 2, license="apache-2.0", base="some/base")
    card = (tmp_path / "out" / "README.md").read_text()
    before, after = (scores(read_run(run).evals[step], "size") for step in (0, 2))
    row = next(line for line in card.splitlines() if line.startswith("| size |")).replace("−", "-")
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    difference = after - before
    half = 2.570582 * difference.std(ddof=1) / np.sqrt(6)  # Student's t of 5 degrees of freedom
    low, high = map(float, cells[6].split(" to "))
    np.testing.assert_allclose(
        [float(cell) for cell in cells[3:6]], [before.mean(), after.mean(), difference.mean()], atol=1e-3
    )
    np.testing.assert_allclose([low, high], [difference.mean() - half, difference.mean() + half], atol=1e-3)
    found = head(tmp_path / "out")
    assert (found["license"], found["base_model"], found["base_model_relation"]) == (
        "apache-2.0",
        "some/base",
        "adapter",
    )
    assert "lora" in found["tags"]
    for name in re.findall(r"\]\(([^)]+\.(?:png|jpeg|yaml))\)", card):
        assert (tmp_path / "out" / name).is_file(), name
    pictures = sorted(file.name for file in (tmp_path / "out" / "images").glob("0*"))
    assert pictures == ["000-after.png", "000-before.png", "001-after.png", "001-before.png"]
    kept = (run / "samples" / "step_000002" / "001.png").read_bytes()
    assert (tmp_path / "out" / "images" / "001-after.png").read_bytes() == kept
    assert str(run.parent) not in card


def test_weights_that_were_not_evaluated_claim_no_scores(run, tmp_path):
    done = export(run, tmp_path / "out", 4, average=False)
    assert done.left_out == ["These weights were not evaluated: the run evaluates their moving average."]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| size |" not in card
    assert not list((tmp_path / "out" / "images").glob("0*"))


def test_a_whole_transformer_is_read_by_diffusers(whole, tmp_path):
    done = export(whole, tmp_path / "out", Chosen.LAST)
    assert done.file == "transformer"
    theirs = SD3Transformer2DModel.from_pretrained(tmp_path / "out" / "transformer", dtype=torch.bfloat16).state_dict()
    kept = load_file(whole / "checkpoints" / "step_000002" / "ema.safetensors")
    assert all(torch.equal(theirs[name], tensor.bfloat16()) for name, tensor in kept.items() if name != "steps")
    assert head(tmp_path / "out")["tags"][1] == "finetuned"
    with pytest.raises(UserError, match="trains every weight, so it has no adapter"):
        export(whole, tmp_path / "peft", layout=Layout.PEFT)
    assert not (tmp_path / "peft").exists()


def test_an_adapter_needs_no_base_model_and_merging_says_what_is_missing(run, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    for file in [moved / "config.yaml", *moved.glob("checkpoints/*/recipe.yaml")]:
        file.write_text(re.sub(r"model: /\S+", f"model: {tmp_path}/nowhere", file.read_text()))
    for manifest in moved.glob("checkpoints/*/manifest.json"):
        sealed = json.loads(manifest.read_text())
        sealed["sha256"]["recipe.yaml"] = hashlib.sha256((manifest.parent / "recipe.yaml").read_bytes()).hexdigest()
        manifest.write_text(json.dumps(sealed))
    for layout in (Layout.DIFFUSERS, Layout.PEFT, Layout.COMFYUI):
        export(moved, tmp_path / layout, layout=layout)
    with pytest.raises(UserError, match="there is no folder"):
        export(moved, tmp_path / "merged", layout=Layout.MERGED)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["comfyui", "diffusers", "moved", "peft"]


def test_a_killed_or_failed_export_leaves_nothing_and_the_next_one_works(run, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(
            module, "write_model_card", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
        )
        with pytest.raises(OSError, match="No space left"):
            export(run, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".out.tmp").mkdir()
    (tmp_path / ".out.tmp" / "torn.safetensors").write_bytes(b"torn")
    (tmp_path / "out").mkdir()
    export(run, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert not (tmp_path / "out" / "torn.safetensors").exists()
    with pytest.raises(UserError, match="exists and is not an empty folder"):
        export(run, tmp_path / "out")


def test_a_kill_while_an_adapter_is_saved_leaves_the_one_before(sd3_folder, tmp_path, monkeypatch):
    policy = Policy(tiny_settings(sd3_folder), seed=0)
    policy.save(tmp_path, about={"tempflow_step": "1"})
    before = (tmp_path / LORA_FILE).read_bytes()

    class Killed(BaseException):
        """The process ends here."""

    def killed(source, target):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(Killed):
            policy.save(tmp_path, about={"tempflow_step": "2"})
    assert (tmp_path / LORA_FILE).read_bytes() == before
    policy.save(tmp_path, about={"tempflow_step": "2"})
    assert about(tmp_path / LORA_FILE)["tempflow_step"] == "2"
    assert [file.name for file in tmp_path.iterdir()] == [LORA_FILE]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--step", "3"), "there is no intact checkpoint of step 3; the steps kept in .* are 0, 2, 4"),
        (("--step", "0"), "the checkpoint of step 0 in .* has no weights: nothing is trained yet"),
        (("--step", "newest"), "--step: `newest` is not a step; give best, last or a whole number"),
    ],
)
def test_a_mistake_is_one_sentence(run, in_process, tmp_path, arguments, said):
    done = in_process("export", run, "--to", tmp_path / "out", *arguments)
    assert done.returncode == 2
    assert re.fullmatch(f"tempflow: {said}.*\n", done.stderr), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_run_and_a_run_without_a_held_out_reward_are_named(run, in_process, tmp_path):
    done = in_process("export", tmp_path / "nowhere", "--to", tmp_path / "out")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "there is no folder" in done.stderr
    blind = tmp_path / "blind"
    shutil.copytree(run, blind)
    for step in (2, 4):
        shutil.rmtree(blind / "checkpoints" / f"step_{step:06d}")
    with pytest.raises(UserError, match=r"no checkpoint has a held-out reward.*give --step last or a step"):
        export(blind, tmp_path / "out")


def test_the_command_says_what_was_written_and_what_to_do_next(run, in_process, tmp_path):
    done = in_process("export", run, "--to", "out", "--step", "last", "--layout", "comfyui", "--no-ema")
    assert done.returncode == 0, done.stderr
    assert f"{tmp_path}/out: mine-step4.safetensors of step 4, trained weights" in done.stdout
    assert "enter `license` in its head" in done.stderr
    assert f"hf upload USER/NAME {tmp_path}/out" in done.stderr


def test_the_licence_is_that_of_the_base_models_card(tmp_path):
    assert license_of(str(tmp_path)) == {}
    card = tmp_path / "README.md"
    card.write_text("---\nlicense: other\nlicense_name: theirs\nlicense_link: LICENSE.md\ntags: [a]\n---\n# Base\n")
    assert license_of(str(tmp_path)) == {"license": "other", "license_name": "theirs", "license_link": "LICENSE.md"}
    for text in ("# no head\n", "---\n[torn\n", "---\n- a list\n---\n", ""):
        card.write_text(text)
        assert license_of(str(tmp_path)) == {}


def test_a_prompt_cannot_be_markup_in_the_card():
    assert md("a | b\n<script>x</script> [l](u) `c`") == r"a \| b &lt;script&gt;x&lt;/script&gt; \[l\](u) \`c\`"
