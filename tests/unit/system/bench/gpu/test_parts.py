"""The checks fail where they should, and the figures are what their names say; what is measured is not tested."""

import json
import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch

from actors.policy.families.registry import FAMILIES
from services.scoring.hpsv3 import LENGTH_STEP
from system.bench.gpu import card, determinism, forward, parity, training
from system.bench.gpu.determinism import differing
from system.bench.gpu.forward import MEMORY, THROUGHPUT, Timed, one_pass, too_large, weight_bytes
from system.bench.gpu.models import MINIATURE, MODELS, TINY, settings_of
from system.bench.gpu.neighbours import NEIGHBOURS
from system.bench.gpu.parity import BOUNDS, beyond, differences
from system.bench.gpu.process import run_part
from system.bench.gpu.record import Findings, Record, State
from system.bench.gpu.run import as_json
from system.bench.gpu.work import task_of, update_of
from system.bench.models import bench_policy
from system.capacity.architecture import META
from system.capacity.cards import Card
from system.capacity.trace import Trace
from system.recipe.load import load_config
from tests.helpers.paths import ROOT

CPU = torch.device("cpu")
BILLIONS = {
    "VAE of SD3 and FLUX.1, fp32": 0.0838,
    "VAE of SD3 and FLUX.1, bf16": 0.0838,
    "VAE of Qwen-Image, fp32": 0.1269,
    "CLIP-L text": 0.1237,
    "CLIP-G text": 0.6947,
    "T5-XXL, 256 tokens": 4.762,
    "Qwen2.5-VL-7B text, 256 tokens": 8.292,
    "PickScore": 0.9861,
    "HPSv3": 7.750,
}
"""Parameters of the published models: CLIP with its projection, Qwen2.5-VL with its language head, HPSv3 without."""


class FakePolicy:
    """Settings, a device and the number of forwards of a row."""

    def __init__(self, settings) -> None:
        self.settings, self.device = settings, CPU
        self.family = SimpleNamespace(forwards_per_row=2)


@pytest.fixture
def record(tmp_path) -> Record:
    return Record(tmp_path / "part.json", Findings("a CPU", True, "0.1"), "cpu", bound_s=60)


def test_every_family_has_a_tiny_model():
    assert TINY.keys() == FAMILIES.keys()


def test_other_arithmetic_and_other_weights_are_beyond_the_bounds(tmp_path):
    exact = settings_of(MINIATURE, tmp_path, dtype="fp32", num_steps=3)
    found = differences(exact, exact.model_copy(update={"dtype": "bf16"}))
    assert found.keys() == BOUNDS.keys()
    assert found["first |ρ − 1|"] == 0
    assert {sentence.split(":")[0] for sentence in beyond(found)} >= {"states", "means", "drift", "update"}


@pytest.mark.parametrize("name", BOUNDS)
def test_each_figure_has_a_bound_and_nan_is_beyond_it(name):
    fine = dict.fromkeys(BOUNDS, 0.0)
    assert beyond(fine) == []
    for figure in (1.5 * BOUNDS[name] + 1e-9, math.nan):
        (sentence,) = beyond(fine | {name: figure})
        assert sentence.startswith(f"{name}: ")


def test_drift_is_seen_where_rollout_and_learner_compute_differently(tmp_path):
    """Otherwise a table of zeros would mean nothing."""
    settings = settings_of(MINIATURE, tmp_path, dtype="bf16", num_steps=3)
    decisions, _ = task_of(settings)
    _, stats = update_of(settings.model_copy(update={"dtype": "fp32"}), decisions)
    assert np.nanmin(stats.drift_mean) > 1e-6


def test_digests_that_differ_are_told_apart_and_so_is_an_update_that_changed_nothing():
    same = {"rollouts": ["a", "a"], "updates": ["b", "b"], "before": ["c"]}
    assert differing({"m": same}, {"m": same}) == {"m": ""}
    for other, said in (
        (same | {"rollouts": ["a", "x"]}, "rollouts differ"),
        (same | {"updates": ["x", "x"]}, "updates differ"),
    ):
        assert differing({"m": same}, {"m": other}) == {"m": said}
    failed = "no deterministic algorithm"
    for one, two in ((same, failed), (failed, same)):
        assert differing({"m": one}, {"m": two}) == {"m": failed}
    still = same | {"before": ["b"]}
    assert differing({"m": still}, {"m": still}) == {"m": "nothing was learned"}


def test_a_model_without_deterministic_algorithms_does_not_hide_the_others(tmp_path, monkeypatch):
    def digests(settings):
        if "Flux" in settings.model:
            raise RuntimeError("no deterministic algorithm\nmore")
        return {"updates": ["a"]}

    monkeypatch.setattr(determinism, "digests", digests)
    found = determinism.made("cpu", tmp_path)
    wrong = {"FluxPipeline, bf16", "Flux2Pipeline, bf16", "Flux2KleinPipeline, bf16"}
    assert {model for model, made in found.items() if made == "no deterministic algorithm"} == wrong
    assert len(found) == len(TINY) + 1


def test_an_error_of_one_model_is_recorded_and_the_others_are_measured(record, monkeypatch):
    def differences(here, there):
        if "Flux" in here.model:
            raise RuntimeError("CUDA error: no kernel image is available")
        return dict.fromkeys(BOUNDS, 0.0)

    monkeypatch.setattr(parity, "differences", differences)
    parity.measure(record)
    assert [(check.name, check.passed) for check in record.findings.checks] == [
        (model, "Flux" not in model) for model in MODELS
    ]


@pytest.fixture
def runs(tmp_path):
    """Two run folders alike."""
    for name in ("one", "other"):
        folder = tmp_path / name / "checkpoints" / f"step_{training.STEPS:06d}"
        folder.mkdir(parents=True)
        (folder / "trained.safetensors").write_bytes(b"weights")
        (tmp_path / name / "metrics.jsonl").write_text('{"step": 0}\n{"step": 1}\n{"st')
    return tmp_path / "one", tmp_path / "other"


def test_a_run_with_other_bits_files_or_steps_is_told_apart(runs):
    one, other = runs
    assert training.differing(one, other) == ""
    (file,) = other.rglob("*.safetensors")
    file.write_bytes(b"weightz")
    assert training.differing(one, other) == f"trained.safetensors of step {training.STEPS} differ"
    file.rename(file.with_name("optimizer.safetensors"))
    assert "do not hold the same files" in training.differing(one, other)
    (other / "metrics.jsonl").write_text('{"step": 0}\n{"step": 1}\n{"step": 1}\n')
    assert "[0, 1] and [0, 1, 1]" in training.differing(one, other)


@pytest.mark.slow
def test_a_training_run_that_is_killed_has_the_bits_of_an_undisturbed_one(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    found = run_part("training", tmp_path / "training.json", "cpu")
    assert found.state is State.PASSED, found
    assert "killed after step" in found.tables[0].rows[1]["run"]


@pytest.fixture
def each_call_takes_a_second(monkeypatch):
    monkeypatch.setattr(card, "alternate", lambda calls, rounds, device: dict.fromkeys(calls, 1.0))


@pytest.mark.usefixtures("each_call_takes_a_second")
def test_rates_count_what_a_call_does():
    rows, tokens, heads, width = card.ATTENTION_BLHD["cpu"]
    assert card.attention_rate(CPU) == 2 * (2 * rows * heads * tokens * tokens * width)  # q·k and weights·v
    assert card.memory_rate(CPU) == 2 * card.COPIED_BYTES["cpu"]  # read and written


def test_the_card_is_recorded_as_the_estimate_reads_it(tmp_path):
    findings = run_part("card", tmp_path / "card.json", "cpu")
    assert findings.state is State.PASSED, findings
    (tmp_path / "gpu.json").write_text(json.dumps(as_json({"card": findings})))
    card = Card.measured_in(tmp_path / "gpu.json")
    assert card.name == findings.device
    assert card.memory_bytes == pytest.approx(psutil.virtual_memory().total)


@pytest.mark.usefixtures("each_call_takes_a_second")
@pytest.mark.parametrize(("name", "on_paper"), [("NVIDIA H100 80GB HBM3", 650), ("NVIDIA T4", None)])
def test_rates_stand_beside_those_on_paper(record, monkeypatch, name, on_paper):
    monkeypatch.setattr(card, "name_of", lambda device: name)
    card.measure(record)
    [rates] = [table for table in record.findings.tables if table.title == "Rates"]
    product = rates.rows[0]
    assert (product["rate"], product["unit"], product["on paper"]) == ("matrix product in bf16", "TFLOP/s", on_paper)
    assert rates.rows[4]["measured"] == 2 * card.COPIED_BYTES["cpu"] / 1e12
    assert [row["unit"] for row in rates.rows] == ["TFLOP/s"] * 4 + ["TB/s"]


@pytest.fixture(scope="module")
def miniature():
    torch.set_num_threads(1)
    return bench_policy(load_config("shapes").policy, None)


def test_a_step_is_one_forward_and_learning_reaches_the_adapter(miniature, monkeypatch):
    policy, conditioning = miniature
    seen = []
    velocity = policy.family.velocity
    monkeypatch.setattr(policy.family, "velocity", lambda x, *rest: seen.append(x) or velocity(x, *rest))
    for work, learns in (("sampling", False), ("learning", True)):
        gradients = []
        hooks = [p.register_hook(gradients.append) for p in policy.parameters.values()]
        one_pass(policy, conditioning, 3, work)()
        assert bool(gradients) == learns
        assert all(p.grad is None for p in policy.parameters.values())
        for hook in hooks:
            hook.remove()
    assert [len(x) for x in seen] == [3, 3]


def test_running_out_of_memory_is_a_row_that_says_so_and_the_next_row_follows(record, monkeypatch):
    def timed(call, rounds, device):
        if call.args[1].shape[0] == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return Timed(2.0, 3 * 10**9, 10**9)

    monkeypatch.setattr(forward, "timed", timed)
    forward.measure(record)
    (table,) = record.findings.tables
    assert table.title == THROUGHPUT
    rows = {(row["dtype"], row["work"], row["latents"]): row for row in table.rows}
    assert rows["fp32", "sampling", 1]["note"] == "out of memory"
    learned = rows["fp32", "learning", 2]
    assert learned["NFE/s"] == pytest.approx(2 * 3 / 2.0)  # two latents, a forward and a backward that counts 2
    assert learned["ms an NFE"] == pytest.approx(1000 / 3)
    assert learned["peak memory, GB"] == 3
    assert len(rows) == len(table.rows) == 8


def test_memory_is_compared_with_the_estimate_of_the_largest_row(record, monkeypatch):
    """On a model of full size without weights: nothing of it runs."""
    measured = {("sampling", 1): 10, ("sampling", 2): 20, ("learning", 1): 30}
    monkeypatch.setattr(forward, "bench_policy", lambda settings, model: (FakePolicy(settings), {}))
    monkeypatch.setattr(forward, "one_pass", lambda policy, conditioning, count, work: (work, count))
    monkeypatch.setattr(forward, "flops_of", lambda call: 1)

    def timed(call, rounds, device):
        if call not in measured:
            raise torch.OutOfMemoryError
        return Timed(1.0, 99, measured[call])

    monkeypatch.setattr(forward, "timed", timed)
    monkeypatch.setattr(forward, "estimated_bytes", lambda settings, count, work: 5 * count)
    settings = load_config("sd35_pickscore").policy
    forward.measure_model(record, "sd35-medium", settings, 1.0)
    (table,) = [table for table in record.findings.tables if table.title == MEMORY]
    assert [(row["work"], row["latents"], row["ratio"]) for row in table.rows] == [
        ("sampling", 2, 2.0),
        ("learning", 1, 6.0),
    ]


def test_the_estimate_is_asked_for_the_pass_that_is_measured(monkeypatch):
    asked = []

    def note(name):
        return lambda settings, rows, **more: asked.append((name, rows)) or Trace(peak_bytes=7)

    for name in ("rollout_pass", "learner_pass"):
        monkeypatch.setattr(forward, name, note(name))
    settings = load_config("sd35_pickscore").policy
    assert [forward.estimated_bytes(settings, 4, work) for work in forward.PASSES] == [7, 7]
    assert asked == [("rollout_pass", 4), ("learner_pass", 4)]


def test_a_model_that_does_not_fit_is_left_out_with_both_sizes(monkeypatch):
    model, recipe = next(iter(forward.RECIPES.items()))
    settings = load_config(recipe).policy.model_copy(update={"device": "cuda", "dtype": "fp32"})
    needed = weight_bytes(model, settings)
    assert needed == pytest.approx(4 * 2.24e9, rel=0.02)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (8 * 10**9, 0))
    assert too_large(model, settings) == "its weights take 9.0 GB, and 8.0 GB of the card are free"
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (80 * 10**9, 0))
    assert too_large(model, settings) == ""


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_shapes_are_those_of_the_published_models(name):
    model = NEIGHBOURS[name].build(META, torch.bfloat16, False)
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(BILLIONS[name], rel=1e-3)


@pytest.mark.parametrize("name", ["VAE of SD3 and FLUX.1, fp32", "T5-XXL, 256 tokens", "PickScore", "HPSv3"])
def test_a_neighbour_runs_on_its_own_inputs(name):
    neighbour = NEIGHBOURS[name]
    model, inputs = neighbour.make(CPU, small=True), neighbour.inputs(2, 64)
    given = {key: len(tensor) for key, tensor in inputs.items() if key in ("latent", "input_ids")}
    assert set(given.values()) == {2}
    if name == "HPSv3":
        assert inputs["input_ids"].shape[1] % LENGTH_STEP == 0
    with torch.no_grad():
        found = partial(model, **inputs)()
    if name.startswith("VAE"):
        assert found.shape == (2, 3, 64, 64)
    first = found if isinstance(found, torch.Tensor) else found[0]
    assert bool(first.isfinite().all())
