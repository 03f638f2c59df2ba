"""Rollout: plans, the wavefront sampler, and the actor that runs them."""
