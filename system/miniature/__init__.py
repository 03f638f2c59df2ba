"""Shapes: small models with the architectures of SD3.5, PickScore and HPSv3, and a judge of which images are right."""

from pathlib import Path

ASSETS = Path(__file__).with_name("assets")
"""The folder of the weights and prompts that recipes name."""
