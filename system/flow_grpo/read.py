"""Reads a configuration of flow_grpo (https://github.com/yifan123/flow_grpo) without running it.

Such a file is Python: each function makes a `ConfigDict`, calls other functions and assigns keys. The reader knows
assignments of literals and of arithmetic on them, `os.path.join`, conditional expressions, and calls of functions of
the same file and of `base.get_config()`. It imports nothing and calls nothing of the file. Any other statement is
reported with its line, and a key that such a statement may set has no value.
"""

import ast
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.base.errors import UserError
from services.base.text import read_text
from system.flow_grpo.base import BASE

LARGEST_FILE_BYTES = 2**20
"""flow_grpo's own file has 44 kB."""
MOST_STATEMENTS = 20_000
"""A file whose functions call each other may have this many statements in all; flow_grpo's has less than 100."""
LONGEST_TEXT = 10_000
LARGEST_NUMBER = 1e15

BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
COMPARED: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
OF_NUMBERS: dict[str, Callable[..., Any]] = {"int": int, "float": float, "round": round, "min": min, "max": max}


class Config(dict[str, Any]):
    """A `ConfigDict`: its values, and the line that gave each, None if base.get_config() did."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: dict[str, int | None] = {}

    def put(self, key: str, value: Any, line: int | None) -> None:
        self[key], self.lines[key] = value, line

    def flat(self, above: str = "") -> Iterator[tuple[str, Any, int | None]]:
        """The dotted keys in it, each with its value and its line."""
        for key, value in self.items():
            if isinstance(value, Config):
                yield from value.flat(f"{above}{key}.")
            else:
                yield f"{above}{key}", value, self.lines[key]


@dataclass(frozen=True)
class Reading:
    """What a function of a file assigns."""

    values: dict[str, Any]
    """The value of each dotted key."""
    lines: dict[str, int | None]
    """The line of the file that gave each key its value; None for a value of base.get_config()."""
    variables: dict[str, Any]
    """The local variables of the function and of those that it calls, such as `gpu_number`."""
    unread: list[tuple[int, str]]
    """The line and the text of each statement that was not understood."""


class NotUnderstood(Exception):
    """An expression that the reader does not know."""


def read_function(path: Path, name: str) -> Reading:
    """Read what a function of a file assigns.

    Raises:
        UserError: the file is missing, too large or not Python, or it has no such function that makes a configuration.
    """
    reader = _Reader(_parse(path), path.parent / "base.py")
    if name not in reader.functions:
        known = [known for known in reader.functions if known != "get_config"]
        raise UserError(f"`{path}` has no function `{name}`; it has {', '.join(known) or 'none'}"[:600])
    try:
        made = reader.run(reader.functions[name], [], {})
    except NotUnderstood as error:
        raise UserError(f"`{path}`: {error}") from error
    if not isinstance(made, Config):
        raise UserError(f"`{path}`: the function `{name}` does not return a configuration; name one that does")
    keys = list(made.flat())
    return Reading(
        {key: value for key, value, _ in keys},
        {key: line for key, _, line in keys},
        {key: value for key, value in reader.variables.items() if isinstance(value, int | float | str)},
        sorted(set(reader.unread)),
    )


def _parse(path: Path) -> ast.Module:
    try:
        if path.stat().st_size > LARGEST_FILE_BYTES:
            raise UserError(f"`{path}` is larger than {LARGEST_FILE_BYTES} bytes, so it is not a file of flow_grpo")
    except OSError as error:
        raise UserError(f"`{path}` cannot be read: {error.strerror}") from error
    try:
        return ast.parse(read_text(path))
    except (SyntaxError, ValueError) as error:
        raise UserError(f"`{path}` is not Python: {error}") from error
    except (RecursionError, MemoryError) as error:
        raise UserError(f"`{path}` is nested too deeply") from error


class _Reader:
    """Reads the functions of one file.

    Args:
        base: the file of `base.get_config()`. If there is none, the values of flow_grpo's are taken.
    """

    def __init__(self, module: ast.Module, base: Path) -> None:
        self.base = base
        self.functions = {node.name: node for node in module.body if isinstance(node, ast.FunctionDef)}
        self.unread: list[tuple[int, str]] = []
        self.statements = 0
        self.calls: list[str] = []
        self.variables: dict[str, Any] = {}
        self.globals: dict[str, Any] = {}
        for node in module.body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                try:
                    self.globals[node.targets[0].id] = self._value(node.value, {})
                except NotUnderstood:
                    continue  # if a function uses the name, the line that does is reported

    def run(self, function: ast.FunctionDef, given: list[Any], named: dict[str, Any]) -> Any:
        """What a function returns."""
        if function.name in self.calls:
            raise UserError(f"the function `{function.name}` calls itself in line {function.lineno}")
        variables = self._arguments(function, given, named)
        self.calls.append(function.name)
        try:
            for statement in function.body:
                self.statements += 1
                if self.statements > MOST_STATEMENTS:
                    raise UserError(f"the functions of the file have more than {MOST_STATEMENTS:,} statements in all")
                if isinstance(statement, ast.Return):
                    return statement.value and self._value(statement.value, variables)
                self._take(statement, variables)
        finally:
            self.calls.pop()
            self.variables |= variables
        return None

    def _arguments(self, function: ast.FunctionDef, given: list[Any], named: dict[str, Any]) -> dict[str, Any]:
        """The parameters of a call, by name."""
        takes, defaults = function.args, function.args.defaults
        names = [argument.arg for argument in takes.args]
        plain = not (takes.vararg or takes.kwarg or takes.kwonlyargs or takes.posonlyargs or function.decorator_list)
        known = dict(zip(names[len(names) - len(defaults) :], defaults, strict=True))
        variables = {name: self._value(default, {}) for name, default in known.items()}
        variables |= dict(zip(names, given, strict=False)) | named
        if not plain or len(given) > len(names) or set(variables) != set(names):
            raise NotUnderstood(f"the call of `{function.name}` (line {function.lineno}) does not fit its parameters")
        return variables

    def _take(self, statement: ast.stmt, variables: dict[str, Any]) -> None:
        """Take over what one statement assigns; report it if it is not understood."""
        try:
            match statement:
                case ast.Expr(ast.Constant()) | ast.Pass():
                    pass
                case ast.Expr(ast.Call() as call):
                    self._value(call, variables)
                case ast.Assign(targets, value):
                    self._assign(targets, self._value(value, variables), variables, statement.lineno)
                case ast.AugAssign(target, op, value):
                    changed = self._value(ast.BinOp(_loaded(target), op, value), variables)
                    self._assign([target], changed, variables, statement.lineno)
                case ast.Assert(test):
                    if not self._value(test, variables):
                        raise NotUnderstood("it does not hold")
                case _:
                    raise NotUnderstood("a statement")
        except NotUnderstood:
            self.unread.append((statement.lineno, _text(statement)))
            self._forget(statement, variables)

    def _assign(self, targets: list[ast.expr], value: Any, variables: dict[str, Any], line: int) -> None:
        for target in targets:
            if isinstance(target, ast.Name):
                variables[target.id] = value
            else:
                config, key = self._place(target, variables)
                config.put(key, value, line)

    def _forget(self, statement: ast.stmt, variables: dict[str, Any]) -> None:
        """Drop the value of everything that a statement would assign: the old one is no longer true."""
        for node in ast.walk(statement):
            if not isinstance(getattr(node, "ctx", None), ast.Store | ast.Del):
                continue
            if isinstance(node, ast.Name):
                variables.pop(node.id, None)
            elif isinstance(node, ast.Attribute | ast.Subscript):
                try:
                    config, key = self._place(node, variables)
                except NotUnderstood:
                    continue
                config.pop(key, None)

    def _place(self, target: ast.expr, variables: dict[str, Any]) -> tuple[Config, str]:
        """The configuration and the key that `config.key` or `config["key"]` names."""
        match target:
            case ast.Attribute(holder, str(key)) | ast.Subscript(holder, ast.Constant(str(key))):
                config = self._value(holder, variables)
                if isinstance(config, Config):
                    return config, key
        raise NotUnderstood("a place")

    def _value(self, node: ast.expr, variables: dict[str, Any]) -> Any:
        """The value of an expression.

        Raises:
            NotUnderstood: the reader does not know it.
        """
        try:
            return _bounded(self._compute(node, variables))
        except (ArithmeticError, TypeError, ValueError, KeyError) as error:
            raise NotUnderstood(str(error)) from error
        except RecursionError as error:
            raise NotUnderstood("it is nested too deeply") from error

    def _compute(self, node: ast.expr, variables: dict[str, Any]) -> Any:
        def value(inner: ast.expr) -> Any:
            return self._value(inner, variables)

        match node:
            case ast.Constant(bool() | int() | float() | str() | None as literal):
                return literal
            case ast.Name(name):
                return (self.globals | variables)[name]
            case ast.Attribute() | ast.Subscript():
                config, key = self._place(node, variables)
                return config[key]
            case ast.List(items) | ast.Tuple(items):
                return [value(item) for item in items]
            case ast.Dict(keys, values):
                return {value(_known(key)): value(item) for key, item in zip(keys, values, strict=True)}
            case ast.JoinedStr(parts):
                return "".join(str(value(part)) for part in parts)
            case ast.FormattedValue(inner, -1, None):
                return value(inner)
            case ast.UnaryOp(ast.USub(), operand):
                return -_number(value(operand))
            case ast.BinOp(left, op, right) if type(op) in BINARY:
                return BINARY[type(op)](_number(value(left)), _number(value(right)))
            case ast.Compare(left, [op], [right]) if type(op) in COMPARED:
                return COMPARED[type(op)](value(left), value(right))
            case ast.IfExp(test, body, orelse):
                return value(body if value(test) else orelse)
            case ast.Call(function, arguments, keywords):
                named = {_known(keyword.arg): value(keyword.value) for keyword in keywords}
                return self._call(ast.unparse(function), [value(argument) for argument in arguments], named)
        raise NotUnderstood("an expression")

    def _call(self, function: str, given: list[Any], named: dict[str, Any]) -> Any:
        """What a call returns. Only the functions that are named here, and those of the file, are known."""
        if function in self.functions:
            return self.run(self.functions[function], given, named)
        if function in OF_NUMBERS and not named:
            return OF_NUMBERS[function](*map(_number, given))
        if function == "os.path.join" and not named and all(isinstance(part, str) for part in given):
            return "/".join(part for part in given if part)
        if function == "os.getcwd" and not given and not named:
            return ""
        if function.endswith("ConfigDict") and not given and not named:
            return Config()
        if function == "base.get_config" and not given and not named:
            return self._base()
        raise NotUnderstood(f"the function {function}")

    def _base(self) -> Config:
        """The configuration that flow_grpo's base.py makes; its values have no line."""
        if self.base.is_file():
            reader = _Reader(_parse(self.base), self.base)
            if "get_config" in reader.functions:
                made = reader.run(reader.functions["get_config"], [], {})
                self.unread += [(line, f"base.py: {text}") for line, text in reader.unread]
                if isinstance(made, Config):
                    return _of_base({key: value for key, value, _ in made.flat()})
        return _of_base(BASE)


def _of_base(values: dict[str, Any]) -> Config:
    config = Config()
    for dotted, value in values.items():
        *holders, key = dotted.split(".")
        node = config
        for holder in holders:
            if holder not in node:
                node.put(holder, Config(), None)
            node = node[holder]
        node.put(key, value, None)
    return config


def _bounded(value: Any) -> Any:
    """A value that cannot have grown without bound."""
    too_large = isinstance(value, int | float) and abs(value) > LARGEST_NUMBER
    if too_large or (isinstance(value, str) and len(value) > LONGEST_TEXT):
        raise NotUnderstood("it is too large")
    return value


def _number(value: Any) -> int | float:
    if not isinstance(value, int | float):
        raise NotUnderstood("it is not a number")
    return value


def _known(part: Any) -> Any:
    """The key of a mapping or a keyword; `**more` has none."""
    if part is None:
        raise NotUnderstood("**")
    return part


def _loaded(target: ast.expr) -> ast.expr:
    """The expression that reads what a target writes."""
    match target:
        case ast.Name(name):
            return ast.Name(name, ast.Load())
        case ast.Attribute(holder, key):
            return ast.Attribute(holder, key, ast.Load())
        case ast.Subscript(holder, key):
            return ast.Subscript(holder, key, ast.Load())
    raise NotUnderstood("a target")


def _text(statement: ast.stmt) -> str:
    """The first line of a statement."""
    try:
        text = ast.unparse(statement).partition("\n")[0]
    except RecursionError:
        return "a statement that is nested too deeply"
    return text if len(text) <= 90 else f"{text[:87]}..."
