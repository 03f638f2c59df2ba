"""Traces: the extrapolation over blocks is exact, operators have the work of their formulas, and memory is what PyTorch
allocates.
"""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from actors.policy.policy import Policy
from system.capacity.architecture import architecture, random_conditioning, read_config
from system.capacity.cards import Card
from system.capacity.passes import block_counts, decode_pass, learner_pass, pass_of_blocks, rollout_pass, with_blocks
from system.capacity.trace import traced, without_data
from system.recipe.load import load_config
from tests.helpers.families import FAMILIES
from tests.helpers.tiny import tiny_settings


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("case", FAMILIES, ids=str)
def test_extrapolating_over_blocks_equals_a_trace_of_all(case, checkpointing, tmp_path, monkeypatch):
    settings = tiny_settings(
        case.build(tmp_path / "model"),
        guidance=case.guidances[1],
        dtype="bf16",
        gradient_checkpointing=checkpointing,
        **case.settings,
    )
    config = read_config(architecture(settings.model) / "transformer")
    deeper = tuple((name, 3 + 2 * index) for index, (name, _) in enumerate(block_counts(config)))
    monkeypatch.setattr("system.capacity.passes.block_counts", lambda _: deeper)
    for kind, given in (("learn", learner_pass(settings, 3, True)), ("sample", rollout_pass(settings, 3))):
        plain = settings.model_copy(update={"gradient_checkpointing": checkpointing and kind == "learn"})
        whole = pass_of_blocks(kind, plain, 3, kind == "learn", deeper)
        assert given.operators == whole.operators
        # With checkpointing the moment of the peak can move by one operator, of a size that is small in a real model.
        assert given.peak_bytes == (pytest.approx(whole.peak_bytes, rel=0.01) if checkpointing else whole.peak_bytes)


def test_the_blocks_of_each_kind():
    sd3 = read_config(architecture("stabilityai/stable-diffusion-3.5-medium") / "transformer")
    assert block_counts(sd3) == (("dual", 13), ("plain", 11))
    assert with_blocks((("dual", 2), ("plain", 1))) == {"num_layers": 3, "dual_attention_layers": [0, 1]}
    flux = read_config(architecture("black-forest-labs/FLUX.1-dev") / "transformer")
    assert block_counts(flux) == (("num_layers", 19), ("num_single_layers", 38))


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_peak_is_what_pytorch_allocates(dtype, checkpointing):
    """On the miniature, forward and backward of the learner and a forward of the rollout, within 10%."""
    settings = load_config("shapes", [f"policy.dtype={dtype}"]).policy
    settings = settings.model_copy(update={"gradient_checkpointing": checkpointing})
    policy = Policy(settings, seed=0)
    rows = 16
    x_NZ = torch.randn(rows, *policy.family.latent_shape)
    conditioning = {k: v.expand(rows, *v.shape[1:]) for k, v in random_conditioning(policy.family).items()}

    def learn():
        policy.family.velocity(x_NZ, torch.full((rows,), 0.5), conditioning).square().mean().backward()

    @torch.no_grad()
    def sample():
        policy.family.velocity(x_NZ, torch.full((rows,), 0.5), conditioning)

    learn()  # the gradients exist from now on
    assert learner_pass(settings, rows, False).peak_bytes == pytest.approx(allocated(learn), rel=0.1)
    assert rollout_pass(settings, rows).peak_bytes == pytest.approx(allocated(sample), rel=0.1)


def test_a_decode_allocates_what_its_tensors_take_and_the_workspace_of_its_convolutions():
    """The workspace of a kernel is no tensor, so that a trace does not see it: here up to 30% of the peak."""
    settings = load_config("shapes", []).policy
    family = Policy(settings, seed=0).family
    latent_NZ = torch.randn(8, *family.latent_shape)
    tensors = decode_pass(settings, 8).peak_bytes
    assert tensors == traced(lambda: family.decode(latent_NZ)).peak_bytes
    assert tensors <= allocated(lambda: family.decode(latent_NZ)) <= 1.3 * tensors


def allocated(call) -> int:
    """The most bytes that PyTorch's CPU allocator gave out at one time during a call, by its own profiler."""
    call()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        call()
    live = peak = 0
    memory = [event for event in found.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(memory, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    assert memory
    return peak


def test_operators_have_the_work_of_their_formulas():
    card = Card("unit", 1, 1, 1, 1, 1, 1, "0.0")
    with without_data():
        left, right = torch.empty(30, 500, dtype=torch.bfloat16), torch.empty(500, 70, dtype=torch.bfloat16)
        product = traced(lambda: left @ right)
        q, k = torch.empty(2, 3, 40, 8), torch.empty(2, 3, 50, 8)
        attention = traced(lambda: torch.nn.functional.scaled_dot_product_attention(q, k, k))
        image, kernel = torch.empty(1, 4, 10, 10), torch.empty(6, 4, 3, 3)
        convolution = traced(lambda: torch.nn.functional.conv2d(image, kernel, padding=1))
        addition = traced(lambda: (left + left).t())
    assert product.flops == 2 * 30 * 500 * 70
    assert {one.kind for one in product.operators} == {"matmul_bf16"}
    assert product.peak_bytes == 2 * 30 * 70
    assert product.seconds(card) == pytest.approx(2 * 30 * 500 * 70 / 1e12)
    assert attention.flops == 2 * 2 * 2 * 3 * 40 * 50 * 8
    assert convolution.flops == 2 * 6 * 4 * 9 * 100
    assert {one.kind for one in convolution.operators} == {"matmul_tf32"}
    assert addition.flops == 0
    assert addition.seconds(card) == pytest.approx(3 * 2 * 30 * 500 / 1e12)
    assert (product + product - product) * 3 == product * 3
