"""Shapes: a true small copy of SD3.5 and PickScore, with a judge that knows the right answer."""

from pathlib import Path

ASSETS = Path(__file__).with_name("assets")
"""The folder of the weights and prompts that recipes name."""
