"""Writes a resolved recipe as YAML, plain or with the source of each value."""

from collections.abc import Iterator
from typing import Any

import yaml

from services.base.yaml_text import dump_yaml
from system.recipe.find import SHIPPED
from system.recipe.model import RunConfig
from system.recipe.provenance import Key, Source, Sources, items_of, leaves, source_of


def dump_config(config: RunConfig) -> str:
    """The resolved recipe as YAML."""
    return dump_yaml(config.model_dump(mode="json"))


def dump_with_sources(config: RunConfig, sources: Sources) -> str:
    """The resolved recipe as YAML, with a comment after each value: the file that gave it, `override` or `default`."""
    text = dump_config(config)
    given = set(leaves(config.model_dump(mode="json", exclude_unset=True)))
    node, comments = yaml.compose(text, Loader=yaml.SafeLoader), {}
    assert node is not None
    for line, key in _lines(node, config.model_dump(mode="json")):
        source = source_of(sources, key) if key in given else None
        comments[line] = "default" if source is None else _label(source)
    lines = text.splitlines()
    width = max(len(lines[line]) for line in comments)
    return "".join(
        f"{said:{width}}  # {comments[i]}\n" if i in comments else f"{said}\n" for i, said in enumerate(lines)
    )


def _lines(node: yaml.Node, value: Any, above: Key = ()) -> Iterator[tuple[int, Key]]:
    """The number of the last line of each value in a YAML text, and the value's place."""
    below = items_of(value)
    if not below:
        yield node.end_mark.line, above
        return
    children = [child for _, child in node.value] if isinstance(node, yaml.MappingNode) else node.value
    for child, (name, item) in zip(children, below, strict=True):
        yield from _lines(child, item, (*above, name))


def _label(source: Source) -> str:
    """The text of a source in a comment. The path of a file that comes with tempflow is relative to the project."""
    if isinstance(source, str):
        return "override"
    ours = source.is_relative_to(SHIPPED) or source.suffix == ".py"
    path = source.relative_to(SHIPPED.parent) if ours else source
    return str(path) if str(path).isprintable() else ascii(str(path))
