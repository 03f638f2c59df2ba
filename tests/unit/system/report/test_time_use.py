"""The stages of a step in the report."""

from types import SimpleNamespace

import pytest

from system.report.figures.time_use import time_use


def run_of(**seconds: float):
    """A run of one step with the seconds of its stages."""
    known = {f"seconds/{stage}": value for stage, value in seconds.items()}
    return SimpleNamespace(series=lambda key: ((1,), (known[key],)) if key in known else ((), ()))


@pytest.mark.parametrize(
    ("seconds", "parts"),
    [
        ({"generate": 60, "update": 39.8, "step": 100}, "generate 60%, update 40%"),
        ({"generate": 60, "update": 39.4, "export": 0.3, "step": 100}, "generate 60%, update 39%, other 1%"),
    ],
)
def test_a_stage_of_no_share_is_not_named(seconds, parts):
    stages, _ = time_use(run_of(**seconds))
    assert f"({parts})" in stages.caption
