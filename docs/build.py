"""Writes the reference pages that follow from the code: every key of a recipe, and every command.

    python -m docs.build

reference/recipe-keys.md      from the settings' own docstrings
reference/infrastructure.md   the same for the file that `tempflow deploy` reads
reference/commands.md         from the command line's own help

Keys come from the JSON schema of the settings, whose descriptions are the docstrings.
"""

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from services.base.settings import Settings
from system.commands.main import app
from system.manifests.infra import Infra
from system.recipe.model import RunConfig

HERE = Path(__file__).parent
KINDS = {
    "array": "list",
    "boolean": "`true` or `false`",
    "integer": "whole number",
    "null": "`null`",
    "number": "number",
    "object": "mapping",
    "string": "text",
}
BOUNDS = {"minimum": "at least", "exclusiveMinimum": "more than", "maximum": "at most", "exclusiveMaximum": "less than"}
TABLE = "| key | kind | default | what it says |\n|---|---|---|---|"

Schema = dict[str, Any]


class Page:
    """The tables of one model of settings."""

    def __init__(self, model: type[Settings]) -> None:
        self.schema = model.model_json_schema()

    def sections(self) -> Iterator[str]:
        """The keys that hold one value, then a section for each key that holds settings of its own."""
        single = {key: of for key, of in self.schema["properties"].items() if not self.members(of)}
        yield "## Top level\n\n" + self.table({"properties": single, "required": self.schema.get("required", [])}, "")
        for key, of in self.schema["properties"].items():
            if members := self.members(of):
                yield self.section(key, of, members)

    def section(self, key: str, of: Schema, members: list[Schema]) -> str:
        entry = f"{key}.0." if of.get("type") == "array" else f"{key}."
        parts = [f"## `{key}`", of.get("description", "")]
        if entry != f"{key}.":
            parts.append(f"This is a list. The first entry has the keys below, the second one `{key}.1.…`, and so on.")
        if len(members) > 1:
            names = ", ".join(f"`{_name(member)}`" for member in members)
            parts.append(f"`{entry}name` is one of {names}; each has keys of its own.")
        for member in members:
            if len(members) > 1:
                default = " (the default)" if _name(member) == of.get("default", {}).get("name") else ""
                parts.append(f"### `{key}`: `{_name(member)}`{default}")
            parts += [member.get("description", ""), self.table(member, entry)]
        return "\n\n".join(_plain(part) if "|" not in part else part for part in parts if part)

    def table(self, model: Schema, prefix: str) -> str:
        return "\n".join([TABLE, *self.rows(model, prefix)])

    def rows(self, model: Schema, prefix: str) -> Iterator[str]:
        for key, of in model["properties"].items():
            if "const" in of:  # the name that chooses this member of several: the heading says it
                continue
            required = key in model.get("required", [])
            members = self.members(of)
            default = "required" if required else self.default(of, members)
            yield f"| `{prefix}{key}` | {self.kind(of)} | {default} | {_cell(of.get('description', ''))} |"
            for member in members:
                yield from self.rows(member, f"{prefix}{key}." + ("0." if of.get("type") == "array" else ""))

    def members(self, of: Schema) -> list[Schema]:
        """The models that a key may hold: one, one of several, or those of a list's entries."""
        if "$ref" in of:
            target = self.schema["$defs"][of["$ref"].rpartition("/")[2]]
            return [target] if "properties" in target else []
        options = of.get("oneOf") or of.get("anyOf") or ([of["items"]] if "items" in of else [])
        return [member for option in options for member in self.members(option)]

    def kind(self, of: Schema) -> str:
        if "$ref" in of:
            target = self.schema["$defs"][of["$ref"].rpartition("/")[2]]
            return "mapping" if "properties" in target else self.kind(target)
        if options := of.get("oneOf") or of.get("anyOf"):
            return " or ".join(dict.fromkeys(self.kind(option) for option in options))
        if "enum" in of:
            return " or ".join(f"`{value}`" for value in of["enum"])
        if "items" in of:
            return f"list, each: {self.kind(of['items'])}"
        if "prefixItems" in of:
            each = self.kind(of["prefixItems"][0])
            return f"list of {len(of['prefixItems'])}, each: {f'({each})' if ' or ' in each else each}"
        kind = KINDS[of["type"]] if "type" in of else "anything"
        return kind + "".join(f", {said} {_number(of[bound])}" for bound, said in BOUNDS.items() if bound in of)

    def default(self, of: Schema, members: list[Schema]) -> str:
        if "default" not in of:
            return ""
        value = of["default"]
        if members and value:
            return "as below"
        return f"`{_cell(json.dumps(value, ensure_ascii=False))}`" if not isinstance(value, str) else f"`{value}`"


def _name(member: Schema) -> str:
    return str(member["properties"]["name"]["const"])


def _number(value: float) -> str:
    return "2⁶³" if value == 2**63 else f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _plain(text: str) -> str:
    return inspect.cleandoc(text)


def _cell(text: str) -> str:
    """One line, in which no character ends the cell."""
    return " ".join(text.split()).replace("|", r"\|")


def recipe_page() -> str:
    head = """# Every key of a recipe

<!-- Written by docs/build.py from the settings' docstrings: change those, then run `make reference`. -->

A [recipe](../glossary.md#recipe) is YAML. [Recipes](../recipes.md) says how one is composed of layers and changed on
the command line. `tempflow config RECIPE` prints a recipe with every default filled in.

A key is written here as an override on the command line writes it: `learner.lr=1e-4` sets the key `lr` of the mapping
`learner`. Unknown keys are refused, and so is a value of another kind."""
    return "\n\n".join([head, *Page(RunConfig).sections()]) + "\n"


def infrastructure_page() -> str:
    head = """# Every key of an infrastructure file

<!-- Written by docs/build.py from the settings' docstrings: change those, then run `make reference`. -->

`tempflow deploy RECIPE --infra FILE` reads this file. It says what a [recipe](../glossary.md#recipe) does not know
about a Kubernetes cluster. [Run on Kubernetes](../deploy.md) explains it with examples."""
    return "\n\n".join([head, *Page(Infra).sections()]) + "\n"


def commands_page() -> str:
    head = """# Command line

<!-- Written by docs/build.py from the commands' own help: change that, then run `make reference`. -->

Each command exits with 0 on success, 2 after a mistake of the user (with one sentence that names the fix), and 130
after a stop by Ctrl-C or a signal. `tempflow COMMAND --help` prints the same text as this page. The
[glossary](../glossary.md) has the terms."""
    commands = typer.main.get_group(app).commands
    return "\n\n".join([head, *(_command(name, commands[name]) for name in sorted(commands))]) + "\n"


def _command(name: str, command: Any) -> str:
    """`command` is click's, of which newer versions of typer have a copy of their own."""
    usage, rows = [f"tempflow {name}"], ["| argument or option | default | what it says |", "|---|---|---|"]
    for parameter in command.params:
        shown = parameter.opts[0]
        if parameter.param_type_name == "argument":
            shown = shown.upper() + ("…" if parameter.nargs == -1 else "")
            usage.append(shown if parameter.required else f"[{shown}]")
        elif parameter.required:
            usage.append(f"{shown} {shown.removeprefix('--').upper()}")
        default = "required" if parameter.required else f"`{parameter.default}`" if parameter.default else ""
        rows.append(f"| `{shown}` | {default} | {_cell(parameter.help or '')} |")
    table = "\n".join(rows) if command.params else "It takes no arguments."
    return f"## `tempflow {name}`\n\n{_plain(command.help or '')}\n\n    {' '.join(usage)}\n\n{table}"


PAGES = {
    HERE / "reference" / "recipe-keys.md": recipe_page,
    HERE / "reference" / "infrastructure.md": infrastructure_page,
    HERE / "reference" / "commands.md": commands_page,
}


if __name__ == "__main__":
    for path, page in PAGES.items():
        path.write_text(page())
