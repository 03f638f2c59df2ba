"""The attention back end as a setting."""

import importlib.util

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

from actors.policy.policy import Policy
from services.base.errors import UserError
from tests.helpers.families import FAMILIES
from tests.helpers.tiny import tiny_settings


@pytest.fixture(autouse=True)
def _native_for_others():
    """A back end that is chosen becomes the process's own; the tests after this one have the usual one."""
    yield
    _AttentionBackendRegistry.set_active_backend(AttentionBackendName.NATIVE)


def velocity(policy: Policy) -> torch.Tensor:
    x_NZ = torch.randn(2, *policy.family.latent_shape, generator=torch.Generator().manual_seed(0))
    conditioning = policy.family.encode(["a cat", "a dog"])
    with torch.no_grad():
        return policy.family.velocity(x_NZ, torch.full((2,), 0.5), conditioning)


@pytest.mark.parametrize("case", FAMILIES[1:], ids=str)
def test_every_layer_uses_it_and_the_velocity_is_the_same(case, tiny_folder):
    chosen = Policy(tiny_settings(tiny_folder(case), attention="_native_math", **case.settings), 0)
    layers = [module for module in chosen.transformer.modules() if hasattr(module, "processor")]
    backends = {layer.processor._attention_backend for layer in layers}
    assert backends == {AttentionBackendName._NATIVE_MATH}
    _AttentionBackendRegistry.set_active_backend(AttentionBackendName.NATIVE)
    usual = Policy(tiny_settings(tiny_folder(case), **case.settings), 0)
    torch.testing.assert_close(velocity(chosen), velocity(usual), rtol=0, atol=1e-5)


def test_a_model_without_a_choice_says_so(sd3_folder):
    with pytest.raises(UserError, match=r"policy\.attention: SD3Transformer2DModel has only one back end"):
        Policy(tiny_settings(sd3_folder, attention="_native_math"), 0)


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is not None, reason="the package is installed")
def test_a_back_end_that_is_not_installed_is_named(tiny_folder):
    case = FAMILIES[1]
    with pytest.raises(UserError, match=r"policy\.attention: `flash` cannot be used here .*flash-attn"):
        Policy(tiny_settings(tiny_folder(case), attention="flash", **case.settings), 0)
