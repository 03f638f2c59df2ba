"""The memory of a recipe on the host, by hand."""

from math import ceil, log2

import pytest
import torch

from actors.policy.policy import Policy
from system.bench.gpu.work import task_of, update_of
from system.capacity.counts import store_bytes
from system.capacity.host import assumed_bytes, host_bytes, host_processes, node_share, pinned_bytes
from system.capacity.memory import Process, experience_bytes, processes
from system.capacity.optimizer import copied_bytes
from system.capacity.passes import trained_parameters
from system.recipe.load import load_config

GPUS = ["rollout.num_gpus=1", "learner.num_gpus=1", "scorers.pickscore.num_gpus=1", "learner.micro_batch=2"]
LIBRARIES, CUDA = 0.6e9, 1.5e9


def by_role(*overrides: str):
    return {one.role: one for one in host_processes(load_config("shapes", list(overrides)))}


def weights(*parts: str) -> int:
    """Bytes of the miniature's parts as they are loaded, in fp32."""
    pipe = Policy(load_config("shapes", ["policy.lora=null"]).policy, seed=0).family.pipe
    modules = [pipe.components[part] for part in parts]
    return sum(t.nbytes for module in modules for t in (*module.parameters(), *module.buffers()))


def encoders() -> list[str]:
    pipe = Policy(load_config("shapes").policy, seed=0).family.pipe
    named = pipe.components.items()
    return [name for name, part in named if name.startswith("text_encoder") and isinstance(part, torch.nn.Module)]


def test_a_process_without_a_gpu_has_everything_on_the_host():
    config = load_config("shapes")
    host = by_role()
    assert host["driver"].peak_bytes == LIBRARIES
    for one in processes(config):
        more = 0.0
        if one.role == "rollout":
            more = 2**30 + 96 * 64 * 64 * 3 + experience_bytes(config)
        assert host[one.role].peak_bytes == pytest.approx(LIBRARIES + more + one.peak_bytes)


def test_a_model_is_read_into_the_hosts_memory_before_it_goes_to_the_gpu():
    host = by_role(*GPUS)
    assert host["rollout"].phases["loading"] == weights("transformer", "vae", *encoders())
    assert host["learner"].phases["loading"] == weights("transformer")
    assert host["rollout"].held == {"libraries": LIBRARIES + CUDA}
    colocated = by_role(*GPUS, "placement=colocated", "rollout.workers=1")["colocated"]
    assert colocated.phases["loading"] == host["rollout"].phases["loading"]


def test_pinned_memory_is_rounded_to_a_power_of_two():
    for size in (1, 2, 3, 4096, 4097, 10240 * 4096 * 2):
        assert pinned_bytes(size) == 2 ** ceil(log2(size))
    assert pinned_bytes(0) == 0


def test_offloaded_text_encoders_and_overwritten_weights_stay_on_the_host():
    pipe = Policy(load_config("shapes", ["policy.lora=null"]).policy, seed=0).family.pipe
    modules = [pipe.components[name] for name in encoders()]
    tensors = [t for module in modules for t in (*module.parameters(), *module.buffers())]
    rounded = sum(2 ** ceil(log2(t.nbytes)) for t in tensors)
    plain, away = by_role(*GPUS)["rollout"], by_role(*GPUS, "rollout.offload_text_encoders=true")["rollout"]
    assert away.phases["working"] - plain.phases["working"] == rounded
    policy = Policy(load_config("shapes").policy, seed=0)
    adapted = [name.removesuffix(".lora_A.default.weight") for name in policy.parameters if ".lora_A." in name]
    under = [policy.transformer.get_submodule(name).get_base_layer().weight for name in adapted]
    merged = by_role(*GPUS, "rollout.merge_adapter=true")["rollout"]
    assert merged.phases["working"] - plain.phases["working"] == sum(2 ** ceil(log2(t.nbytes)) for t in under)


def test_one_rank_makes_the_files_of_a_checkpoint_and_of_shards_each():
    """fp32: trained weights, two moments and an average, and the two moments once more while their file is made."""
    ranks = [*GPUS, "learner.ranks=4", "learner.ema={}"]
    host, count = by_role(*ranks), trained_parameters(load_config("shapes").policy)
    assert host["first learner"].phases["saving a checkpoint"] == 4 * 6 * count
    assert (host["first learner"].count, host["learner"].count) == (1, 3)
    assert "saving a checkpoint" not in host["learner"].phases
    full = load_config("shapes", [*ranks, "policy.lora=null", "learner.shard=true"])
    (shards,) = [one for one in host_processes(full) if "learner" in one.role]
    assert shards.phases["saving a checkpoint"] == pytest.approx(4 * 6 * trained_parameters(full.policy) / 4)
    stale = by_role(*GPUS, "learner.max_staleness=3", "policy.dtype=bf16")["learner"]
    assert stale.phases["saving a checkpoint"] == (4 * 5 + 2 * 3) * count


def test_the_files_of_a_checkpoint_have_the_size_that_is_counted():
    settings = load_config("shapes").policy
    decisions, _ = task_of(settings)
    learner, _ = update_of(settings, decisions)
    files = [len(content) for content in learner.files().values()]
    counted = by_role(*GPUS)["learner"].phases["saving a checkpoint"]
    assert sum(files) + max(files) == pytest.approx(counted, rel=0.05)  # headers are small


def test_all_processes_and_the_share_of_a_node():
    config = load_config("shapes", [*GPUS, "rollout.workers=3"])
    found = host_processes(config)
    host = {one.role: one for one in found}
    total = host["driver"].peak_bytes + 3 * host["rollout"].peak_bytes + host["learner"].peak_bytes
    total += host["scorer pickscore"].peak_bytes
    assert host_bytes(config, found) == pytest.approx(total + store_bytes(config))
    assert assumed_bytes(found) == pytest.approx(6 * LIBRARIES + 5 * CUDA)
    assert node_share(found) == 1
    assert node_share([Process("rollout", 16, 1, {}), Process("scorer x", 3, 0.5, {})]) == pytest.approx(8 / 18)


def test_offloaded_moments_are_pinned_and_cost_their_copies():
    changes = ["policy.lora=null", "objective.kl=0", *GPUS]
    kept, away = (load_config("shapes", [*changes, f"learner.optimizer={kind}"]) for kind in ("adamw", "adamw_offload"))
    moments = 2 * 4 * trained_parameters(kept.policy)
    assert (copied_bytes(kept), copied_bytes(away)) == (0, 2 * moments)
    there, here = ({one.role: one for one in host_processes(config)}["learner"] for config in (kept, away))
    assert here.phases["working"] - there.phases.get("working", 0) == moments
    device = {one.role: one for one in processes(away)}["learner"]
    assert "Adam" not in device.held
    assert "optimizer step" not in device.phases
