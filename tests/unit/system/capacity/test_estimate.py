"""The estimate of `tempflow plan`: memory and seconds by hand, what makes a recipe fit, and what the command says."""

import json
from dataclasses import replace
from math import ceil

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from actors.policy.policy import Policy
from services.base.errors import UserError
from system.capacity.cards import CARDS, Card, parse_gpus
from system.capacity.counts import checkpoint_bytes, store_bytes
from system.capacity.estimate import estimate_of
from system.capacity.estimate_text import fit_sentence
from system.capacity.fit import fit_of, fits_card, peak_bytes, single_changes
from system.capacity.layouts import layouts
from system.capacity.memory import first_plan, local_process, processes, reward_gpus
from system.capacity.optimizer import step_bytes_moved
from system.capacity.packing import nodes_of
from system.capacity.passes import decode_pass, learner_pass, rollout_pass, trained_parameters
from system.capacity.scorers import reward_of
from system.capacity.timing import step_seconds, task_seconds
from system.recipe.load import load_config

H100 = CARDS["H100"]


def times(speed: float) -> Card:
    """An H100 with other rates."""
    rates = [name for name in Card.__annotations__ if name.endswith("_tflops") or name == "memory_tb_per_s"]
    return replace(H100, **{name: speed * getattr(H100, name) for name in rates})


SLOW = times(0.001)
"""On this card the miniature's models take longer than the CPU's part of scoring."""


def by_role(*overrides: str, recipe: str = "shapes"):
    return {one.role: one for one in processes(load_config(recipe, list(overrides)))}


def test_what_a_learner_holds_for_what_it_trains():
    config = load_config("shapes", ["policy.dtype=bf16", "learner.ema={}"])
    count = trained_parameters(config.policy)
    held = {one.role: one for one in processes(config)}["learner"].held
    assert held["adapter"] == 2 * count
    assert held["gradients"] == held["fp32 masters"] == held["weight sets"] == 4 * count
    assert held["Adam"] == 8 * count
    fp32 = by_role("policy.dtype=fp32")["learner"].held
    assert "fp32 masters" not in fp32
    assert "weight sets" not in fp32
    assert fp32["adapter"] == 4 * count


def test_full_fine_tuning_in_shards():
    ranks = ["policy.lora=null", "policy.dtype=bf16", "learner.ranks=4"]
    whole, parts = by_role(*ranks)["learner"].held, by_role(*ranks, "learner.shard=true")["learner"].held
    assert parts["Adam"] == whole["Adam"] / 4
    assert parts["transformer"] == pytest.approx(2 * whole["transformer"] / 4, rel=0.01)  # fp32, a quarter of it
    assert "fp32 masters" in whole
    assert "fp32 masters" not in parts
    offloaded = by_role(*ranks, "learner.optimizer=adamw_offload")["learner"].held
    assert whole.items() - offloaded.items() == {("Adam", whole["Adam"])}
    compared = by_role(*ranks, "objective.kl=0.01")
    assert compared["learner"].held["base for comparison"] == pytest.approx(whole["Adam"] / 4)
    assert "base for comparison" not in whole.keys() | compared["rollout"].held.keys()


def test_a_merged_adapter_leaves_less_to_compute():
    config, merged = (load_config("shapes", [f"rollout.merge_adapter={value}"]) for value in ("false", "true"))
    assert task_seconds(merged, CARDS["H100"]).sampling < task_seconds(config, CARDS["H100"]).sampling
    assert task_seconds(merged, CARDS["H100"]).learning == task_seconds(config, CARDS["H100"]).learning


def test_too_few_gpus_are_no_fit_and_cost_what_the_recipe_asks_for():
    few, enough = (estimate_of(load_config("sd35_pickscore"), gpus, H100) for gpus in (1, 8))
    assert (few.fits, enough.fits) == (False, True)
    assert few.gpu_hours == enough.gpu_hours


@pytest.mark.parametrize(("size", "resizing_ms"), [(512, 6.9), (1024, 17.2)])
def test_images_are_scored_as_fast_as_four_threads_resize_them_or_as_the_card_computes(size, resizing_ms):
    replicas = ["scorers.hpsv3.replicas=2", "scorers.hpsv3.num_gpus=1"]
    config = load_config("flux_hpsv3", [f"policy.height={size}", f"policy.width={size}", *replicas])
    one = reward_of(config.scorers[0], config.policy).per_image
    fast, slow = times(1000), times(0.1)
    images = first_plan(config).leaves
    assert task_seconds(config, fast).scoring == pytest.approx(images * resizing_ms / 1000 / 4 / 2, rel=0.01)
    assert task_seconds(config, slow).scoring == pytest.approx(images * one.seconds(slow) / 2)


def test_a_scorer_needs_room_in_its_fraction():
    hpsv3 = ["rewards=hpsv3", "scorers.hpsv3.num_gpus=0.25", "scorers.hpsv3.replicas=1"]
    config = load_config("klein_pickscore_1gpu", hpsv3)
    assert not fits_card(processes(config), CARDS["RTX-4090"])
    assert fits_card(processes(config), H100)


def test_each_optimizer_step_waits_for_the_rank_with_most_tasks():
    """48 prompts on 7 ranks in two optimizer steps of 24: 4 tasks twice, where one step of 48 would take 7."""
    config = load_config("sd35_pickscore", ["hardware=8gpu"])
    task = task_seconds(config, H100)
    step = step_seconds(config, H100, task)
    assert step.learning == pytest.approx(8 * task.learning + step.optimizer)


def test_learning_without_guidance_costs_half_of_its_forwards():
    guided, without = (load_config("sd35_dpo", [f"objective.guided={value}"]) for value in ("true", "false"))
    tasks = [task_seconds(config, H100) for config in (guided, without)]
    assert tasks[0].passes == 2 * tasks[1].passes
    assert tasks[0].sampling == tasks[1].sampling
    assert tasks[1].learning < 0.6 * tasks[0].learning
    peaks = [processes(config)[0].phases["learning"] for config in (guided, without)]
    assert peaks[1] < 0.6 * peaks[0]


def test_fractions_of_a_gpu_are_shared():
    one = estimate_of(load_config("sd35_pickscore_24gb"), None, CARDS["RTX-4090"])
    assert (one.asked, one.gpus, one.fits) == (1.0, 1, True)


def test_colocated_roles_share_one_base_and_their_phases_take_turns():
    split, colocated = by_role(), by_role("placement=colocated", "rollout.workers=1")
    assert set(colocated) == {"colocated", "scorer pickscore"}
    one = colocated["colocated"]
    assert one.held["transformer"] == split["learner"].held["transformer"] == split["rollout"].held["transformer"]
    assert one.phases == split["rollout"].phases | split["learner"].phases
    assert one.peak_bytes == sum(one.held.values()) + max(one.phases.values())


def test_offloaded_text_encoders_are_a_phase():
    held, away = by_role()["rollout"], by_role("rollout.offload_text_encoders=true")["rollout"]
    assert away.phases["encoding text"] == held.held["text encoders"]
    assert "text encoders" not in away.held


def test_the_setting_that_makes_it_fit_is_found_and_does():
    config = load_config("shapes", ["learner.micro_batch=64"])
    learner = {one.role: one for one in processes(config)}["learner"]
    small = Card("small", (learner.peak_bytes + 1e9) / 0.95 / 1e9 - 0.01, 1, 1, 1, 1, 1, "0.0")
    assert not fits_card(processes(config), small)
    fix = estimate_of(config, None, small).fix
    assert fix is not None
    setting = fix.removeprefix("set ")
    assert fits_card(processes(load_config("shapes", ["learner.micro_batch=64", setting])), small)
    none = Card("tiny", 0.5, 1, 1, 1, 1, 1, "0.0")
    assert "no single setting" in str(estimate_of(config, None, none).fix)


def test_the_moments_of_full_fine_tuning_can_leave_the_gpu():
    recipe = ("sd35_pickscore_full_1gpu", ["learner.optimizer=adamw"])
    assert fit_of(load_config(*recipe), None, H100).fix == "set learner.optimizer=adamw_offload"
    assert fit_of(load_config("sd35_pickscore_full_1gpu"), None, H100).fits
    of_an_adapter = load_config("sd35_pickscore_1gpu")
    assert not any("optimizer" in text for text, _ in single_changes(of_an_adapter))


def test_roles_that_take_turns_can_share_the_base():
    config = load_config("shapes")
    *_, (text, shared) = single_changes(config)
    assert text == "placement=colocated"
    assert 2 * local_process(shared).held["transformer"] == local_process(config).held["transformer"]
    for impossible in ("learner.max_staleness=1", "rollout.workers=1 learner.ranks=2", "placement=colocated"):
        assert not any("placement" in text for text, _ in single_changes(load_config("shapes", impossible.split())))


def test_a_change_that_a_recipe_refuses_is_not_proposed():
    def texts(*overrides: str) -> list[str]:
        return [text for text, _ in single_changes(load_config("shapes", ["learner.ranks=2", *overrides]))]

    assert {"learner.shard=true", "placement=colocated"} <= set(texts())
    assert "placement=colocated" not in texts("learner.shard=true")
    assert "learner.shard=true" not in texts("policy.compile=true")


def test_a_change_is_of_one_setting():
    config = load_config("shapes", ["rollout.micro_batch=4"])
    texts = [text for text, _ in single_changes(config)]
    assert texts[0] == "policy.gradient_checkpointing=true"
    assert [text for text in texts if text.startswith("rollout.micro_batch")] == [
        "rollout.micro_batch=2",
        "rollout.micro_batch=1",
    ]


def test_seconds_are_passes_times_their_roofline():
    config = load_config("shapes", ["objective.optimizer_steps=2"])
    task = task_seconds(config, SLOW)
    rounds = sum(ceil(rows / 24) for rows in (4, 28, 52, 76, 96, 96))
    assert task.sampling == pytest.approx(rounds * rollout_pass(config.policy, 24).seconds(SLOW))
    forward, update = (
        p.seconds(SLOW) for p in (rollout_pass(config.policy, 16), learner_pass(config.policy, 16, False))
    )
    assert task.learning == pytest.approx(update + forward / 2)  # 16 decisions; half are read back before
    twice = load_config("shapes", ["objective.optimizer_steps=2", "objective.epochs=2"])
    assert task_seconds(twice, SLOW).learning == pytest.approx(2 * update + forward / 2)
    assert step_seconds(twice, SLOW, task).optimizer == 2 * step_seconds(config, SLOW, task).optimizer > 0
    assert task.sampling_padding == pytest.approx(1 - 352 / (24 * rounds))
    assert task.learning_padding == 0
    step = step_seconds(config, SLOW, task)
    assert step.rollout == pytest.approx(2 * task.rollout)  # 4 prompts, 2 workers
    assert step.learning == pytest.approx(4 * task.learning + step.optimizer)
    assert step.total == pytest.approx(step.rollout + step.last_scores + step.learning)
    assert step.idle["learner"] == pytest.approx(1 - step.learning / step.total)


def test_a_stale_learner_works_beside_the_rollout():
    config = load_config("shapes", ["learner.max_staleness=1"])
    step = step_seconds(config, SLOW, task_seconds(config, SLOW))
    assert step.total == pytest.approx(max(step.rollout + step.last_scores, step.learning))


def test_a_step_ends_with_the_role_that_has_most_to_do():
    on_paper = task_seconds(load_config("shapes"), H100)
    one, four = (step_seconds(load_config("shapes", [f"rollout.workers={n}"]), H100, on_paper).rollout for n in (1, 4))
    assert one == pytest.approx(4 * four)


def test_gpus_wait_where_prompts_cannot_be_dealt_out_evenly():
    """5 prompts on 2 workers take 3 rounds, in one of which a worker has nothing to do; 2 ranks learn from 3 and 2."""
    uneven = ["data.prompts_per_step=5", "learner.ranks=2"]
    for placement in ("split", "colocated"):
        config = load_config("shapes", [*uneven, f"placement={placement}"])
        task = task_seconds(config, SLOW)
        step = step_seconds(config, SLOW, task)
        assert (step.rollout, step.learning) == pytest.approx((3 * task.rollout, 3 * task.learning + step.optimizer))
        works, learns = 2.5 * task.rollout, 2.5 * task.learning + step.optimizer
        if placement == "split":
            expected = {"rollout": 1 - works / step.total, "learner": 1 - learns / step.total}
        else:
            expected = {"rollout and learner": 1 - (works + learns) / step.total}
        assert {role: step.idle[role] for role in expected} == pytest.approx(expected)


def test_reward_models_that_share_the_gpus_of_the_workers_take_their_time():
    """4 prompts of 96 images on 2 workers, each of which has a replica on its GPU."""
    shared = ["rollout.num_gpus=0.9", "learner.num_gpus=0.9", "placement=colocated", "learner.ranks=2"]
    config = load_config("shapes", [*shared, "scorers.pickscore.num_gpus=0.1", "scorers.pickscore.replicas=2"])
    each = reward_of(config.scorers[0], config.policy).per_image.seconds(SLOW)
    task = task_seconds(config, SLOW)
    step = step_seconds(config, SLOW, task)
    assert step.total == pytest.approx(2 * task.rollout + 4 * 96 * each / 2 + step.learning)
    assert step.idle == pytest.approx({"rollout and learner": 0.0})
    apart = load_config("shapes", ["scorers.pickscore.num_gpus=0.5", "scorers.pickscore.replicas=2"])
    assert "reward" in step_seconds(apart, SLOW, task_seconds(apart, SLOW)).idle


def test_replicas_that_share_a_gpu_share_its_rate():
    def scoring(*overrides: str) -> float:
        config = load_config("shapes", [f"scorers.pickscore.{override}" for override in overrides])
        return task_seconds(config, SLOW).scoring

    one = scoring("num_gpus=1")
    assert scoring("num_gpus=1", "replicas=2") == pytest.approx(one / 2)
    assert scoring("num_gpus=0.5", "replicas=2") == pytest.approx(one)
    assert scoring("num_gpus=0.5", "replicas=4") == pytest.approx(one / 2)
    assert scoring("num_gpus=0.1", "replicas=10") == pytest.approx(one)


def test_the_images_of_the_last_round_are_scored_in_waves():
    """11 prompts on 4 workers: the last round has 3. Each task's 96 images are 3 requests of 40, so that 2 replicas
    score 9 requests in 5 waves.
    """
    names = ["scorers.pickscore.request_images=40", "scorers.pickscore.replicas=2", "rollout.workers=4"]
    config = load_config("shapes", [*names, "data.prompts_per_step=11"])
    each = reward_of(config.scorers[0], config.policy).per_image.seconds(SLOW)
    task = task_seconds(config, SLOW)
    step = step_seconds(config, SLOW, task)
    assert step.last_scores == pytest.approx(5 * 40 * each)
    assert step.scoring == pytest.approx(11 * 96 * each / 2)
    assert step.total == pytest.approx(3 * task.rollout + 5 * 40 * each + step.learning)


def test_a_pool_that_is_slower_than_the_workers_begins_after_the_first_round():
    config = load_config("shapes")
    task = replace(task_seconds(config, H100), scoring=50.0, encoding=1.0, sampling=2.0, decoding=3.0)
    step = step_seconds(config, H100, task)
    assert step.total == pytest.approx(1 + 2 + 3 + 4 * 50 + step.learning)


def test_an_evaluation_waits_for_the_scores_of_its_last_batches():
    """512 prompts in batches of 60 on 2 workers: 9 batches in 5 rounds, the last of which has one."""
    config = load_config("shapes")
    each, sampling, decoding = (
        reward_of(config.scorers[0], config.policy).per_image.seconds(SLOW),
        rollout_pass(config.policy, 24).seconds(SLOW),
        decode_pass(config.policy, 24).seconds(SLOW),
    )
    task = task_seconds(config, SLOW)
    batch = 3 * 10 * sampling + 3 * decoding + 60 * task.encoding  # 60 rows in micro-batches of 24, 10 steps
    expected = (5 * batch + 60 * each) / 25
    assert step_seconds(config, SLOW, task).evaluation == pytest.approx(expected)


def test_an_optimizer_step_moves_the_bytes_that_adamw_moves():
    """Counted as PyTorch's AdamW runs here, an operator at a time over all tensors: each tensor that an operator has is
    read or written once, and one that it changes is both.
    """
    accesses = made = 0
    weight = torch.randn(50, requires_grad=True)
    weight.grad = torch.randn(50)

    def large(values):
        return {id(t) for t in tree_iter(values) if isinstance(t, torch.Tensor) and t.shape == weight.shape}

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal accesses, made
            out = function(*args, **(kwargs or {}))
            read = large((args, kwargs))
            new = large(out) - read
            changes = bool(read) and function._schema.name.endswith("_")
            accesses += len(read) + len(new) + changes
            made += len(new)
            return out

    optimizer = torch.optim.AdamW([weight], foreach=True)
    optimizer.step()  # makes the moments
    with Counting():
        torch.nn.utils.clip_grad_norm_([weight], 1.0, foreach=True)
        optimizer.step()
    config = load_config("shapes", ["policy.dtype=fp32"])
    count = trained_parameters(config.policy)
    assert step_bytes_moved(config) == 4 * count * accesses
    assert by_role("policy.dtype=fp32")["learner"].phases["optimizer step"] == 4 * count * made


def test_seconds_of_the_optimizers_steps():
    """Two steps; 23 fp32 reads and writes a parameter, an average that follows each second step by 3 more, and the fp32
    master that is read and rounded to bf16.
    """
    config = load_config("shapes", ["policy.dtype=bf16", "learner.ema={every: 2}", "objective.optimizer_steps=2"])
    step = step_seconds(config, H100, task_seconds(config, H100))
    moved = (4 * (23 + 3 / 2) + 4 + 2) * trained_parameters(config.policy)
    assert step.optimizer == pytest.approx(2 * moved / 2.7e12)
    full = ["policy.lora=null", "policy.dtype=bf16", "learner.ranks=4"]
    whole, shards = (step_bytes_moved(load_config("shapes", [*full, *more])) for more in ([], ["learner.shard=true"]))
    assert shards == pytest.approx(whole * 92 / 98 / 4)  # a shard is fp32, its own master


def test_bytes_of_the_store_and_of_a_checkpoint():
    config = load_config("shapes")
    text = 4 * sum_of_text(config)
    images = 4 * 96 * 64 * 64 * 3
    weights = 4 * trained_parameters(config.policy)
    experience = 4 * (2 * 16 * latent_bytes(config) + text)
    assert store_bytes(config) == pytest.approx(images + experience + 2 * weights)
    assert checkpoint_bytes(config) == 4 * 4 * trained_parameters(config.policy)
    assert checkpoint_bytes(load_config("shapes", ["learner.ema={}"])) == 5 * 4 * trained_parameters(config.policy)


def latent_bytes(config):
    shape = Policy(config.policy, seed=0).family.latent_shape
    return 4 * shape[0] * shape[1] * shape[2]


def sum_of_text(config):
    return sum(tensor.numel() for tensor in Policy(config.policy, seed=0).family.encode(["a"]).values())


def test_gpus_as_text():
    assert parse_gpus("8xH100") == (8, H100)
    assert parse_gpus("2xa100-40") == (2, CARDS["A100-40"])
    for text in ("H100", "0xH100", "8", "x", "-1xH100"):
        with pytest.raises(UserError, match="8xH100"):
            parse_gpus(text)
    with pytest.raises(UserError, match="RTX-4090"):
        parse_gpus("8xV100")


def test_a_measured_card_must_be_the_one_that_is_named():
    large = replace(CARDS["A100-80"], name="NVIDIA A100-SXM4-80GB", measured=True)
    assert parse_gpus("2xA100-80", large) == (2, large)
    for other in ("2xA100-40", "2xH100"):
        with pytest.raises(UserError, match=r"has the rates of `NVIDIA A100-SXM4-80GB`; leave out --card"):
            parse_gpus(other, large)
    old = replace(large, name="Tesla V100-SXM2-32GB")
    assert parse_gpus("1xV100", old) == (1, old)  # a card that is not in the list


def test_the_command_says_it_in_a_table_and_in_json(in_process):
    command = ("plan", "sd35_pickscore_24gb", "--gpus", "1xRTX-4090", "--price", "0.5")
    table = in_process(*command)
    assert table.returncode == 0
    for text in ("on paper", "It fits", "RTX-4090", "Padding is", "GPU-hours"):
        assert text in table.stdout
    found = json.loads(in_process(*command, "--json").stdout)
    assert found["rates"] == "on paper"
    assert found["gpus"] == 1
    assert found["price"] == pytest.approx(0.5 * found["gpu_hours"])
    assert set(found["memory_gb"]) == {"colocated", "scorer pickscore"}


def test_processes_that_share_a_card_have_their_peaks_added():
    fit = fit_of(load_config("sd35_pickscore"), None, H100)
    assert (fit.gpus, fit.packing.cards) == (8, [["colocated", "scorer pickscore"]] * 8)
    assert peak_bytes(fit.fullest) == sum(one.peak_bytes for one in fit.processes)
    together = f"{peak_bytes(fit.fullest) / 1e9:.1f} GB of 84.9 together"
    assert f"colocated and scorer pickscore share one and take {together}" in fit_sentence(fit)
    split = fit_of(load_config("sd35_pickscore", ["hardware=8gpu_split"]), None, H100)
    assert "; 8 x scorer pickscore share one and take" in fit_sentence(split)


def test_fractions_that_add_up_do_not_fit_if_no_card_has_room():
    three_quarters = ["rollout.num_gpus=0.75", "learner.num_gpus=0.75"]
    fit = fit_of(load_config("flux_pickscore", three_quarters), [8, 8], H100)
    assert (fit.fits, fit.asked < fit.gpus) == (False, True)
    assert "Ray finds no place for colocated with 0.75 of a GPU on 16 GPUs" in fit_sentence(fit)
    few = load_config("sd35_pickscore", [*three_quarters, "scorers.pickscore.replicas=1"])
    assert fit_of(few, None, H100).gpus == 8


@pytest.mark.parametrize(
    ("recipe", "start", "layer"),
    [
        ("sd35_pickscore", "hardware=8gpu_split", "8gpu_shared"),
        ("sd35_pickscore", "hardware=8gpu", "8gpu_shared"),
        ("flux_pickscore", "hardware=16gpu", "16gpu_shared"),
    ],
)
def test_shared_gpus_are_proposed_with_the_settings_that_give_the_printed_seconds(recipe, start, layer):
    own = ["scorers.pickscore.replicas=4", "scorers.pickscore.num_gpus=0.25"]
    gpus = 16 if layer.startswith("16") else 8
    best = estimate_of(load_config(recipe, [start, *own]), gpus, H100).best
    assert (best.shared, best.hardware) == (True, layer)
    other = load_config(recipe, [start, *own, *best.overrides])
    assert estimate_of(other, gpus, H100).step.total == best.seconds
    as_layer = [f"hardware={layer}", *(text for text in best.overrides if text.startswith("scorers."))]
    assert estimate_of(load_config(recipe, as_layer), gpus, H100).step.total == best.seconds
    assert fit_of(other, nodes_of(gpus), H100).fits


def test_no_layout_is_proposed_that_does_not_fit():
    """HPSv3 needs a quarter of an H100 and PickScore gets as much. The half that is left is too little for FLUX."""
    config = load_config("flux_hpsv3_8gpu", ["placement=split", "learner.ranks=2", "rollout.workers=5"])
    [shared] = [other for other in layouts(config, H100, 8) if other.rollout.num_gpus < 1]
    assert shared.rollout.num_gpus == 0.5
    assert [scorer.num_gpus for scorer in shared.scorers] == [0.25, 0.25]
    assert not fit_of(shared, nodes_of(8), H100).fits
    best = estimate_of(config, 8, H100).best
    assert (best.shared, best.placement, best.hardware) == (False, "colocated", "8gpu")


def test_replicas_that_no_card_has_room_for_two_of_have_a_gpu_each():
    asks = ["scorers.pickscore.num_gpus=0.6", "scorers.pickscore.replicas=3"]
    assert reward_gpus(load_config("shapes", asks)) == 3
    task = task_seconds(load_config("shapes", asks), SLOW)
    alone = ["scorers.pickscore.num_gpus=1", "scorers.pickscore.replicas=3"]
    assert task.scoring == task_seconds(load_config("shapes", alone), SLOW).scoring
