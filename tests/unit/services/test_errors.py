"""What is left of an error in a log line."""

import pytest
import ray.exceptions

from services.errors import first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device"),
        (RuntimeError("\n  it broke\nand more"), "it broke"),
        (ValueError(), ""),
        (
            ray.exceptions.RayTaskError("save", "Traceback …", OSError(28, "No space left on device")),
            "[Errno 28] No space left on device",
        ),
    ],
)
def test_the_first_line_is_that_of_the_cause(error, line):
    assert first_line(error) == line
