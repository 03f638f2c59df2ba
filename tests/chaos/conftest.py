"""The same live Ray and tiny recipe as the integration tests."""

from tests.integration.conftest import ray_head, recipe, tempflow

__all__ = ["ray_head", "recipe", "tempflow"]
