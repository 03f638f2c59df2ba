"""The image's recipe: linted, pinned, and without what does not belong in it."""

import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

DEPLOY = Path(__file__).parents[3] / "deploy"


def test_the_dockerfile_passes_the_linter():
    linter = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([linter, DEPLOY / "Dockerfile"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def test_everything_that_tempflow_asks_for_is_pinned():
    lines = (DEPLOY / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    asked = [Requirement(text) for text in requires("tempflow") or []]
    for requirement in [one for one in asked if one.marker is None or one.marker.evaluate({"extra": "ocr"})]:
        assert pinned[canonicalize_name(requirement.name)] in requirement.specifier
