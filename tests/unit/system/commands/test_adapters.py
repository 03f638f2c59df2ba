"""Trained weights that a command is given: what is refused before any role starts."""

from safetensors.torch import load_file, save_file

from actors.policy.policy import Policy
from actors.policy.trained import LORA_FILE
from tests.helpers.tiny import stir, tiny_settings

NOBODY = "127.0.0.1:1"
"""An address at which no Ray answers."""


def test_an_adapter_that_is_torn_or_holds_nan_is_refused_before_any_role_starts(
    recipe, sd3_folder, in_process, tmp_path
):
    policy = Policy(tiny_settings(sd3_folder), seed=0)
    stir(policy)
    policy.save(tmp_path / "lora")
    file = tmp_path / "lora" / LORA_FILE
    tensors = load_file(file)
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, file, {"format": "pt"})
    given = {
        "train": [f"policy.adapter={tmp_path}/lora", "name=nan"],
        "eval": ["--adapter", "lora"],
        "sample": ["--prompt", "x", "--adapter", "lora"],
    }
    for command, arguments in given.items():
        done = in_process(command, recipe, *arguments, address=NOBODY)
        assert done.returncode == 2, done.stderr
        assert "holds NaN or infinity in transformer." in done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr
    file.write_bytes(file.read_bytes()[:-50])
    for command, arguments in given.items():
        done = in_process(command, recipe, *arguments, address=NOBODY)
        assert done.returncode == 2, done.stderr
        assert "is torn or not a safetensors file" in done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr
