"""The pool's `/docs`: the OpenAPI document as a page without scripts, which loads nothing from another host."""

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

TEMPLATE = Path(__file__).with_name("docs_page.html.j2")


def docs_page(openapi: dict[str, Any]) -> str:
    """Render an OpenAPI document as HTML."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(TEMPLATE.read_text())
    return template.render(openapi=openapi, as_json=lambda value: json.dumps(value, indent=2, ensure_ascii=False))
