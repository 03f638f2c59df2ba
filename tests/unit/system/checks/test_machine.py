"""Checks of the machine: each on good and on bad input, without Ray."""

import os
import subprocess
import sys
from collections import namedtuple

import psutil
import pytest
import torch

from services.base.errors import UserError
from system.capacity.counts import exported_bytes
from system.checks import checks, machine
from system.recipe.load import load_config
from system.recipe.model import RunConfig
from tests.helpers.command_line import environment
from tests.helpers.grpc_like import grpc_server

Usage = namedtuple("Usage", "total used free")


def shapes(*overrides: str) -> RunConfig:
    return load_config("shapes", overrides)


def levels(findings) -> list[str]:
    return [finding.level for finding in findings]


def free(monkeypatch, count: float) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(10**15, 0, int(count)))


def test_cpus_that_all_roles_ask_for_together(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert levels(machine.cpus(None)) == ["ok"]
    (enough,) = machine.cpus(shapes())
    assert (enough.level, "ask for 1.4 CPUs, and this machine has 2" in enough.says) == ("ok", True)
    many = shapes("scorers.0.num_cpus=0.5", "scorers.0.replicas=2")
    (few,) = machine.cpus(many)
    assert (few.level, "ask for 2.3 CPUs" in few.says) == ("problem", True)
    assert "lower num_cpus of rollout, learner or scorers" in few.says
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert levels(machine.cpus(many)) == ["warning"]


def test_gpus_that_the_roles_ask_for(monkeypatch):
    recipe = shapes("rollout.num_gpus=1", "learner.num_gpus=0.5", "scorers.0.num_gpus=0.25", "scorers.0.replicas=2")
    assert machine.gpus_wanted(recipe) == 2 * 1 + 0.5 + 2 * 0.25
    together = recipe.model_copy(update={"placement": "colocated"})
    assert machine.gpus_wanted(together) == 2 * 1 + 2 * 0.25
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for enough in (None, shapes(), shapes("rollout.num_gpus=1")):
        assert levels(machine.gpus(enough)) == ["ok"]
    (missing,) = machine.gpus(recipe)
    assert missing.level == "problem"
    assert "3 GPUs, and this machine has 2" in missing.says
    fractions = shapes("rollout.num_gpus=0.6", "rollout.workers=2", "learner.num_gpus=0.6")
    (no_place,) = machine.gpus(fractions)
    assert no_place.level == "problem"
    assert "Ray finds no place for a learner rank with 0.6 of a GPU on 2 GPUs" in no_place.says
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert levels(machine.gpus(recipe)) == ["warning"]


def test_a_driver_that_does_not_fit_is_named(monkeypatch):
    """PyTorch counts GPUs without the driver's part of CUDA, and cannot use them."""

    def refuses() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\n  Update it")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "init", refuses)
    (finding,) = machine.gpus(shapes("rollout.num_gpus=1"))
    assert finding.level == "problem"
    assert finding.says.startswith(
        "the recipe's roles ask for 2 GPUs, and PyTorch finds none here (The NVIDIA driver on your system is too old "
        "(found version 11040). Update it); install a driver and a build of PyTorch that fit each other"
    )


def test_an_old_gpu_is_refused_at_the_start(monkeypatch):
    """Each GPU is looked at. One that is not used on this machine is no problem."""
    recipe = shapes("rollout.num_gpus=1", "learner.num_gpus=1", "policy.dtype=bf16", "rollout.workers=1")
    assert not list(machine.cards(recipe))  # this machine has none
    capabilities = [(9, 0), (7, 5)]
    found = {"is_available": True, "device_count": 2, "get_device_name": "Some GPU", "get_arch_list": []}
    for name, value in found.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capabilities[index])
    (old,) = machine.cards(recipe)
    assert (old.level, old.says) == (
        "problem",
        "GPU 1 (Some GPU) does not compute in bf16 (its compute capability is 7.5); set policy.dtype to fp32",
    )
    with pytest.raises(UserError, match="does not compute in bf16"):
        checks.refuse(recipe, checks.By.LOCAL)
    assert not list(machine.cards(shapes()))  # no role asks for a GPU
    capabilities[1] = (8, 9)
    assert not list(machine.cards(recipe))
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    capabilities[1] = (7, 5)
    assert levels(machine.cards(recipe)) == ["warning"]


def test_a_gpu_that_is_there_is_named(monkeypatch):
    gpu, memory = namedtuple("Properties", "name")("Some GPU"), [23 * 2**30, 24 * 2**30]
    found = {"is_available": True, "device_count": 1, "get_device_properties": gpu, "mem_get_info": memory}
    for name, value in found.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    assert [finding.says for finding in machine.torch(shapes())][1:] == ["Some GPU, 24 GiB"]
    memory[0] = 4 * 2**30
    *_, used = machine.torch(shapes())
    assert (used.level, used.says) == ("warning", "Some GPU, 24 GiB, of which 20 GiB are in use by another process")


def test_a_cluster_that_is_not_there_and_one_whose_token_is_missing(monkeypatch, tmp_path):
    assert levels(machine.cluster(None)) == ["ok", "ok"]
    with grpc_server() as address:
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert levels(machine.cluster(None)) == ["ok", "ok", "warning"]
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        assert levels(machine.cluster(None)) == ["ok", "ok", "problem"]
        (tmp_path / "ray_token").write_text("x")
        assert levels(machine.cluster(None)) == ["ok", "ok", "ok"]
    with pytest.raises(UserError, match=f"no Ray answers at {address}"):
        list(machine.cluster(None))
    monkeypatch.setenv("RAY_ADDRESS", "nonsense")
    with pytest.raises(UserError, match="no Ray answers at nonsense"):
        list(machine.cluster(None))


def test_a_disk_that_is_full_small_or_read_only(monkeypatch, tmp_path):
    recipe = shapes(f"output={tmp_path}/deep/down")
    needed = machine.LEAST_FREE_BYTES + 5 * machine.checkpoint_bytes(recipe)
    for count, level in ((needed - 1, "problem"), (needed, "warning"), (2 * needed, "ok")):
        free(monkeypatch, count)
        assert levels(machine.disks(recipe)) == [level]
    free(monkeypatch, 10**12)
    away = recipe.model_copy(update={"checkpoint": recipe.checkpoint.model_copy(update={"folder": "s3://bucket/x"})})
    assert levels(machine.disks(away)) == ["ok", "ok"]
    assert levels(machine.disks(None)) == ["ok"]
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert levels(machine.disks(recipe)) == ["problem"]


def test_the_size_of_a_checkpoint_is_that_of_the_adapter_the_moments_and_the_average(sd3_folder):
    from actors.policy.policy import Policy
    from tests.helpers.tiny import tiny_settings

    arrays = Policy(tiny_settings(sd3_folder, num_steps=4), seed=0).arrays().values()
    lora = tiny_settings(sd3_folder, num_steps=4).lora
    recipe = shapes(f"policy.model={sd3_folder}", f"policy.lora={{rank: {lora.rank}, alpha: {lora.alpha}}}")
    assert machine.checkpoint_bytes(recipe) == 4 * sum(array.nbytes for array in arrays)
    whole = recipe.model_copy(update={"policy": recipe.policy.model_copy(update={"lora": None})})
    every = Policy(tiny_settings(sd3_folder, num_steps=4, lora=None), seed=0).arrays().values()
    assert machine.checkpoint_bytes(whole) == 4 * 4 * sum(array.size for array in every)
    assert machine.checkpoint_bytes(shapes("policy.model=org/elsewhere")) == 0


def test_shared_memory_holds_what_is_in_flight(monkeypatch, tmp_path):
    recipe = shapes()
    needed = machine.store_bytes(recipe)
    experience = needed - 4 * 4 * 6 * 4 * 64 * 64 * 3 - 2 * exported_bytes(recipe)
    assert experience > 0
    stale = shapes("learner.max_staleness=2")
    assert machine.store_bytes(stale) == pytest.approx(needed + 2 * experience)  # two tasks of images a worker
    free(monkeypatch, needed - 1)
    assert levels(machine.shared_memory(recipe)) == ["problem"]
    free(monkeypatch, needed)
    assert levels(machine.shared_memory(recipe)) == ["ok"]
    monkeypatch.setattr(machine, "SHM", tmp_path / "none")
    assert levels(machine.shared_memory(recipe)) == ["warning"]


def test_token_files_that_others_can_read(tmp_path):
    file = tmp_path / "token"
    recipe = shapes(f"serve.token_file={file}")
    assert levels(machine.token_files(recipe)) == ["problem"]
    file.write_text("x")
    file.chmod(0o640)
    (finding,) = machine.token_files(recipe)
    assert (finding.level, f"chmod 600 {file}" in finding.says) == ("warning", True)
    file.chmod(0o600)
    assert levels(machine.token_files(recipe)) == ["ok"]
    assert levels(machine.token_files(None)) == []


def test_extras_that_are_installed(monkeypatch):
    installed = [finding.says for finding in machine.extras(None)]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert [finding.says for finding in machine.extras(None)] == ["not installed"] * 3
    assert "not installed" not in installed


@pytest.mark.parametrize(("cluster", "level"), [(None, "problem"), ("10.0.0.1:6379", "warning")])
def test_a_gpu_that_is_too_small_is_named_with_the_setting_that_helps(monkeypatch, cluster, level):
    import torch

    asks = shapes("rollout.num_gpus=1", "learner.num_gpus=1", "learner.micro_batch=64", "rollout.workers=1")
    monkeypatch.setattr(machine, "running_ray", lambda: cluster)
    assert not list(machine.memory(asks))  # this machine has none
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    said = {}
    for total, expected in ((2 * 10**9, "ok"), (1.12 * 10**9, "warning"), (0.05 * 10**9, level)):
        card = type("Properties", (), {"name": "Small", "total_memory": total, "major": 9, "minor": 0})
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, card=card: card)
        (found,) = machine.memory(asks)
        assert found.level == expected
        said[expected] = said.get(expected, "") + found.says
    assert "It does not fit: learner takes" in said["warning"]
    assert "set policy.gradient_checkpointing=true" in said["warning"]
    assert not list(machine.memory(shapes()))  # no role asks for a GPU


@pytest.mark.parametrize("placement", ["split", "colocated"])
def test_a_run_in_one_process_has_all_roles_on_one_gpu(monkeypatch, placement):
    """Apart, the roles have a model each; colocated, they share one. A cluster that runs elsewhere does not help."""
    from system.capacity.memory import local_process, processes

    asks = shapes("rollout.workers=1", *asked_of(placement))
    roles, one = processes(asks), local_process(asks)
    held = sum(sum(role.held.values()) for role in roles)
    largest = max(max(role.phases.values()) for role in roles)
    assert one.peak_bytes == pytest.approx(held + largest)
    assert local_process(shapes("rollout.workers=2", *asked_of(placement))).peak_bytes == one.peak_bytes
    assert not list(machine.local_memory(asks))  # this machine has none
    monkeypatch.setattr(machine, "running_ray", lambda: "10.0.0.1:6379")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for total, level in (
        (one.peak_bytes + 1.5e9, "ok"),
        (one.peak_bytes + 1e8, "warning"),
        (one.peak_bytes - 1, "problem"),
    ):
        card = type("Properties", (), {"name": "Small", "total_memory": total, "major": 9, "minor": 0})
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, card=card: card)
        (found,) = machine.local_memory(asks)
        assert found.level == level
    assert "local takes" in found.says
    with pytest.raises(UserError, match="It does not fit: local takes"):
        checks.refuse(asks, checks.By.LOCAL)


def asked_of(placement: str) -> list[str]:
    return ["rollout.num_gpus=1", "learner.num_gpus=1", f"placement={placement}"]


@pytest.mark.parametrize(("cluster", "level"), [(None, "problem"), ("10.0.0.1:6379", "warning")])
def test_a_machine_whose_memory_the_processes_do_not_fit(monkeypatch, tmp_path, cluster, level):
    """What doctor says is the sentence of a dry run. Below what is assumed, nothing is refused for sure."""
    from system.capacity.estimate_text import host_sentence
    from system.capacity.host import assumed_bytes, host_bytes, host_processes

    recipe = shapes()
    found = host_processes(recipe)
    needed, assumed = host_bytes(recipe, found), assumed_bytes(found)
    monkeypatch.setattr(machine, "running_ray", lambda: cluster)
    for have, expected in ((needed, "ok"), (needed - 1, "warning"), (needed - assumed - 1, level)):
        monkeypatch.setattr(machine, "machine_bytes", lambda have=have: have)
        (finding,) = machine.host_memory(recipe)
        assert (finding.level, finding.says.startswith(host_sentence(found, needed))) == (expected, True)
    assert not list(machine.host_memory(None))
    assert not list(machine.host_memory(shapes("policy.model=org/elsewhere")))


def test_a_container_has_the_memory_of_its_limit(monkeypatch, tmp_path):
    total, limit = psutil.virtual_memory().total, tmp_path / "memory.max"
    monkeypatch.setattr(machine, "CONTAINER_LIMIT", limit)
    assert machine.machine_bytes() == total
    for text, expected in (("max\n", total), ("1073741824\n", 2**30), (f"{2 * total}\n", total)):
        limit.write_text(text)
        assert machine.machine_bytes() == expected


STARTS = """
import sys
from system.checks.checks import By, refuse
from system.recipe.load import load_config
refuse(load_config("shapes"), By.TRAIN)
print("torch" in sys.modules)
"""


def test_a_start_without_gpus_does_not_import_torch():
    """It takes seconds, and the driver needs it for nothing else."""
    done = subprocess.run([sys.executable, "-c", STARTS], env=environment(), capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr
