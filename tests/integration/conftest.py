"""The live Ray and the command line of the integration tests."""

from tests.helpers.command_line import tempflow
from tests.helpers.ray_head import local_ray, ray_head

__all__ = ["local_ray", "ray_head", "tempflow"]
