"""The live Ray, the command line and the tiny recipe of the integration tests."""

from tests.helpers.command_line import tempflow
from tests.helpers.ray_head import local_ray, ray_head
from tests.helpers.recipes import recipe

__all__ = ["local_ray", "ray_head", "recipe", "tempflow"]
