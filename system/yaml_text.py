"""YAML in which a text is a text to every reader, whichever version of YAML the reader knows."""

from __future__ import annotations

import re
from typing import Any

import yaml

_BEGINS_PLAINLY = re.compile(r"[A-Za-z/]")
_WORDS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})
"""Some version of YAML reads these as booleans or as null. All its numbers and dates begin otherwise than a letter."""


class Block(str):
    """Text of several lines that is shown line by line."""


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        return True

    def text(self, text: str) -> yaml.ScalarNode:
        """Without quotes only where no reader can take the text for anything else."""
        style = None
        if not text.isprintable():
            style = '"'
        elif not _BEGINS_PLAINLY.match(text) or text.lower() in _WORDS:
            style = "'"
        return self.represent_scalar("tag:yaml.org,2002:str", text, style)

    def block(self, text: Block) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", text, "|")


_Dumper.add_representer(str, _Dumper.text)
_Dumper.add_representer(Block, _Dumper.block)


def dump_yaml(*documents: Any) -> str:
    """One document, or several as one stream."""
    several = len(documents) > 1
    return yaml.dump_all(
        documents, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120, explicit_start=several
    )
