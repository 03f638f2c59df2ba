"""What the benchmarks run on: a recipe's own model, or a known one of full size with random weights."""

from __future__ import annotations

from actors.policy.families.family import Conditioning
from actors.policy.policy import Policy
from actors.policy.settings import PolicySettings
from services.base.devices import device_of
from system.capacity.architecture import build_family, known_models, random_conditioning

FULL_SIZES = {model.rpartition("/")[2].lower(): model for model in known_models()} | {
    "sd35-medium": "stabilityai/stable-diffusion-3.5-medium",
    "flux-dev": "black-forest-labs/FLUX.1-dev",
}
"""The known models by the last part of their ids, and two by shorter names."""


def bench_policy(settings: PolicySettings, full_size: str | None) -> tuple[Policy, Conditioning]:
    """The policy and the embeddings of one prompt. A model of full size has no VAE and no text encoders."""
    if full_size is None:
        policy = Policy(settings, seed=0)
        return policy, policy.family.encode(["a benchmark"])
    settings = settings.model_copy(update={"model": FULL_SIZES[full_size]})
    family = build_family(settings, device_of(settings.device))
    return Policy(family.settings, seed=0, family=family), random_conditioning(family)
