"""The licence of a base model, from the model's own card."""

from pathlib import Path
from typing import Any

from services.base.errors import UserError
from services.base.paths import PACKAGE_PREFIX, resolve_model
from services.base.yaml_text import load_yaml

KEYS = ("license", "license_name", "license_link")


def hub_id(model: str) -> str | None:
    """The name of a model on a hub; None for a folder."""
    is_folder = model.startswith((PACKAGE_PREFIX, "/", ".", "~")) or Path(model).is_dir() or model.count("/") != 1
    return None if is_folder else model


def license_of(model: str) -> dict[str, Any]:
    """The licence fields in the head of a base model's card; empty if the card is not on this machine or has none."""
    card = _card(model)
    if card is None or not card.is_file():
        return {}
    text = card.read_text(encoding="utf-8", errors="replace")
    head = text.removeprefix("---\n").partition("\n---")[0] if text.startswith("---\n") else ""
    try:
        fields = load_yaml(head, str(card))
    except UserError:
        return {}
    return {key: fields[key] for key in KEYS if isinstance(fields.get(key), str)} if isinstance(fields, dict) else {}


def _card(model: str) -> Path | None:
    """The card in the model's folder, or in the hub's cache on this machine."""
    if hub_id(model) is None:
        return Path(resolve_model(model)) / "README.md"
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model, "README.md")
    return Path(found) if isinstance(found, str) else None
