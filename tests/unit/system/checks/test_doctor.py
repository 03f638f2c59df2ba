"""`tempflow doctor`: each check on good and on bad input, without Ray."""

import json
import os
import socket
import tempfile
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors.numpy import load_file
from typer.testing import CliRunner

from system.checks import doctor
from system.commands.main import app
from system.recipe.load import load_config
from system.recipe.model import RunConfig
from tests.helpers.grpc_like import grpc_server

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch, tmp_path):
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "TEMPFLOW_TOKEN", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "ray_token"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with tempfile.TemporaryDirectory(dir="/tmp") as short:  # the paths of Ray's sockets have a bound
        monkeypatch.setenv("RAY_TMPDIR", short)
        yield


def shapes(*overrides: str) -> RunConfig:
    return load_config("shapes", overrides)


def levels(findings) -> list[str]:
    return [finding.level for finding in findings]


def free(monkeypatch, count: float) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(10**15, 0, int(count)))


def test_a_healthy_machine_and_recipe_have_no_problem_and_exit_code_0(tmp_path):
    done = CliRunner().invoke(app, ["doctor", "shapes", f"output={tmp_path}"])
    assert done.exit_code == 0, done.output
    assert "problem" not in done.output
    assert "4096 in package:system.miniature" in done.output


def test_all_problems_are_shown_at_once_and_the_exit_code_is_2(tmp_path):
    overrides = ["policy.model=./nowhere", "data.train=gone.txt", "scorers.0.scorer=pickscorer", "log.wandb={}"]
    done = CliRunner().invoke(app, ["doctor", "shapes", f"output={tmp_path}", *overrides])
    assert done.exit_code == 2
    assert isinstance(done.exception, SystemExit)
    for said in ("no folder `./nowhere`", "no prompt file at `gone.txt`", "neither built in", "set WANDB_API_KEY"):
        assert said in done.output
    assert done.output.count("\nproblem ") == 4


def test_cpus_that_all_roles_ask_for_together(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert doctor.cpus(None).level == "ok"
    assert doctor.cpus(shapes()).says == "2 CPUs, and the recipe's roles ask for 1.4"
    many = shapes("scorers.0.num_cpus=0.5", "scorers.0.replicas=2")
    assert doctor.cpus(many).level == "problem"
    assert "roles ask for 2.3; lower num_cpus of rollout, learner or scorers" in doctor.cpus(many).says
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert doctor.cpus(many).level == "warning"


def test_gpus_that_the_roles_ask_for(monkeypatch):
    recipe = shapes("rollout.num_gpus=1", "learner.num_gpus=0.5", "scorers.0.num_gpus=0.25", "scorers.0.replicas=2")
    assert doctor.gpus_wanted(recipe) == 2 * 1 + 0.5 + 2 * 0.25
    together = recipe.model_copy(update={"placement": "colocated"})
    assert doctor.gpus_wanted(together) == 2 * 1 + 2 * 0.25
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert levels(doctor.gpus(shapes())) == ["ok"]
    (missing,) = doctor.gpus(recipe)
    assert missing.level == "problem"
    assert "3 GPUs" in missing.says
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert levels(doctor.gpus(recipe)) == ["warning"]


def test_a_gpu_that_is_there_is_named_and_must_compute_the_dtype(monkeypatch):
    properties = namedtuple("Properties", "name total_memory")("Some GPU", 24 * 2**30)
    for name, value in (("is_available", True), ("device_count", 1), ("get_device_properties", properties)):
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert [finding.says for finding in doctor.gpus(shapes())] == ["Some GPU, 24 GiB"]
    assert levels(doctor.gpus(shapes("policy.dtype=bf16"))) == ["ok", "problem"]
    assert levels(doctor.gpus(shapes("rollout.num_gpus=1"))) == ["ok", "problem"]


def test_a_cluster_that_is_not_there_and_one_whose_token_is_missing(monkeypatch, tmp_path):
    assert levels(doctor.ray_cluster()) == ["ok", "ok"]
    with grpc_server() as address:
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert levels(doctor.ray_cluster()) == ["ok", "ok", "warning"]
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        assert levels(doctor.ray_cluster()) == ["ok", "ok", "problem"]
        (tmp_path / "ray_token").write_text("x")
        assert levels(doctor.ray_cluster()) == ["ok", "ok", "ok"]
    gone = list(doctor.ray_cluster())
    assert levels(gone) == ["ok", "problem"]
    assert address in gone[1].says
    monkeypatch.setenv("RAY_ADDRESS", "nonsense")
    assert levels(doctor.ray_cluster()) == ["ok", "problem"]


def test_a_disk_that_is_full_small_or_read_only(monkeypatch, tmp_path):
    recipe = shapes(f"output={tmp_path}/deep/down")
    needed = doctor.LEAST_FREE_BYTES + 5 * doctor.checkpoint_bytes(recipe)
    for count, level in ((needed - 1, "problem"), (needed, "warning"), (2 * needed, "ok")):
        free(monkeypatch, count)
        assert levels(doctor.disks(recipe)) == [level]
    free(monkeypatch, 10**12)
    away = recipe.model_copy(update={"checkpoint": recipe.checkpoint.model_copy(update={"folder": "s3://bucket/x"})})
    assert levels(doctor.disks(away)) == ["ok", "ok"]
    assert levels(doctor.disks(None)) == ["ok"]
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert levels(doctor.disks(recipe)) == ["problem"]


def test_the_size_of_a_checkpoint_is_that_of_the_adapter_the_moments_and_the_average(sd3_folder):
    from actors.policy.policy import Policy
    from tests.helpers.tiny import tiny_settings

    arrays = Policy(tiny_settings(sd3_folder, num_steps=4), seed=0).arrays().values()
    lora = tiny_settings(sd3_folder, num_steps=4).lora
    recipe = shapes(f"policy.model={sd3_folder}", f"policy.lora={{rank: {lora.rank}, alpha: {lora.alpha}}}")
    assert doctor.checkpoint_bytes(recipe) == 4 * sum(array.nbytes for array in arrays)
    whole = recipe.model_copy(update={"policy": recipe.policy.model_copy(update={"lora": None})})
    (file,) = (Path(sd3_folder) / "transformer").glob("*.safetensors")
    assert doctor.checkpoint_bytes(whole) == 4 * 4 * sum(array.size for array in load_file(file).values())
    assert doctor.checkpoint_bytes(shapes("policy.model=org/elsewhere")) == 0


def test_shared_memory_holds_what_is_in_flight(monkeypatch, tmp_path):
    recipe = shapes()
    needed = doctor.store_bytes(recipe)
    experience = needed - 4 * 4 * 6 * 4 * 64 * 64 * 3
    assert experience > 0
    stale = shapes("learner.max_staleness=2")
    assert doctor.store_bytes(stale) == pytest.approx(needed + 2 * experience)  # two tasks of images a worker
    free(monkeypatch, needed - 1)
    assert doctor.shared_memory(recipe).level == "problem"
    free(monkeypatch, needed)
    assert doctor.shared_memory(recipe).level == "ok"
    monkeypatch.setattr(doctor, "SHM", tmp_path / "none")
    assert doctor.shared_memory(recipe).level == "warning"


def test_token_files_that_others_can_read(tmp_path):
    file = tmp_path / "token"
    recipe = shapes(f"serve.token_file={file}")
    assert levels(doctor.token_files(recipe)) == ["problem"]
    file.write_text("x")
    file.chmod(0o640)
    (finding,) = doctor.token_files(recipe)
    assert (finding.level, f"chmod 600 {file}" in finding.says) == ("warning", True)
    file.chmod(0o600)
    assert levels(doctor.token_files(recipe)) == ["ok"]
    assert levels(doctor.token_files(None)) == []


def test_extras_that_the_recipe_needs(monkeypatch):
    assert levels(doctor.extras(None)) == ["ok"] * 3
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert levels(doctor.extras(shapes())) == ["ok"] * 3
    missing = list(doctor.extras(shapes("log.tensorboard=true", "log.wandb={mode: offline}")))
    assert levels(missing) == ["ok", "problem", "problem"]
    assert "pip install 'tempflow[wandb]'" in missing[2].says


def test_each_scorer_is_tried():
    with socket.create_server(("127.0.0.1", 0)) as closed:
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}"
    far = {"name": "far", "scorer": "remote", "options": {"url": nobody, "scorer": "size"}}
    recipe = shapes(f"scorers=[{{name: size, scorer: jpeg_size}}, {json.dumps(far)}]")
    tried = {finding.what: finding for finding in doctor.parts(recipe) if finding.what.startswith("scorer")}
    assert tried["scorer size"].level == "ok"
    assert "for a grey image; loaded in" in tried["scorer size"].says
    assert (tried["scorer far"].level, nobody in tried["scorer far"].says) == ("problem", True)


def test_a_pool_of_the_same_cluster(monkeypatch):
    assert "no Ray cluster runs" in doctor.shared_pool("pool", ["size"]).says
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    running = {"pool": ["scorer-size", "Gateway"]}.get
    assert doctor.shared_pool("pool", ["size"], running).level == "ok"
    assert "no scorer beauty" in doctor.shared_pool("pool", ["size", "beauty"], running).says
    assert "no application `other`" in doctor.shared_pool("other", ["size"], running).says
