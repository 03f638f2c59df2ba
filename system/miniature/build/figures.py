"""The figures that stages record about their training, in figures.json beside the assets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_figures(out: Path) -> dict[str, dict[str, Any]]:
    """The figures of each stage that has been built."""
    path = out / "figures.json"
    return json.loads(path.read_text()) if path.exists() else {}


def record_figures(out: Path, stage: str, figures: dict[str, Any]) -> None:
    """Record the figures of a stage, and replace its earlier ones."""
    (out / "figures.json").write_text(json.dumps({**read_figures(out), stage: figures}, indent=1) + "\n")
