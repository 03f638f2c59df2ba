"""Reading a file of flow_grpo: it gives the values that Python would, and nothing of it runs."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from services.base.errors import UserError
from system.flow_grpo.base import BASE
from system.flow_grpo.read import read_function
from tests.helpers.flow_grpo import CONFIG

BEGIN = "def f():\n    config = ml_collections.ConfigDict()\n"
DEEP = 100_000


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.py"
    path.write_text(text)
    return path


def body(tmp_path: Path, *lines: str) -> Path:
    return written(tmp_path, BEGIN + "".join(f"    {line}\n" for line in lines) + "    return config\n")


def executed(name: str) -> dict[str, object]:
    """What the configuration assigns when it is run, with stand-ins for its imports and for base.get_config()."""

    class ConfigDict(dict):
        __getattr__, __setattr__ = dict.__getitem__, dict.__setitem__

    def get_config():
        config = ConfigDict(sample=ConfigDict(), train=ConfigDict(), pretrained=ConfigDict())
        for dotted, value in BASE.items():
            holder, _, key = dotted.rpartition(".")
            (config[holder] if holder else config)[key] = value
        return config

    code = CONFIG[CONFIG.index("def shared") :]
    made = {"os": SimpleNamespace(path=os.path, getcwd=lambda: ""), "base": SimpleNamespace(get_config=get_config)}
    exec(code, made)  # the project's own text, in a test
    config = made["get_config"](name)
    flat = {key: value for key, value in config.items() if not isinstance(value, ConfigDict)}
    return flat | {f"{h}.{k}": v for h in ("sample", "train", "pretrained") for k, v in config[h].items()}


@pytest.mark.parametrize("name", ["general_ocr_sd3", "pickscore_flux_fast"])
def test_the_values_are_those_of_running_the_file(name, tmp_path):
    reading = read_function(written(tmp_path, CONFIG), name)
    wanted = {key: list(value) if isinstance(value, tuple) else value for key, value in executed(name).items()}
    assert reading.values == wanted
    assert reading.unread == []
    assert reading.variables["gpu_number"] == 32


def test_base_is_read_beside_the_file(tmp_path):
    (tmp_path / "base.py").write_text(
        "def get_config():\n    config = ml.ConfigDict()\n    config.train = train = ml.ConfigDict()\n"
        "    train.beta = 0.5\n    return config\n"
    )
    reading = read_function(
        written(tmp_path, "def f():\n    c = base.get_config()\n    c.seed = 3\n    return c\n"), "f"
    )
    assert reading.values == {"train.beta": 0.5, "seed": 3}
    assert reading.lines == {"train.beta": None, "seed": 3}


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("2 * 3 + 1", 7),
        ("int(48 / (32 * 9 / 24))", 4),
        ("7 // 2 % 2", 1),
        ("-1.5", -1.5),
        ("(0, 10 // 2)", [0, 5]),
        ('{"a": 1, "b": 2.0}', {"a": 1, "b": 2.0}),
        ("1 if 2 > 1 else 3", 1),
        ("max(1, 2)", 2),
        ("None", None),
        ('f"logs/{GPUS}"', "logs/8"),
        ('os.path.join(os.getcwd(), "dataset/ocr")', "dataset/ocr"),
    ],
)
def test_literals_and_arithmetic(expression, value, tmp_path):
    path = body(tmp_path, f"config.x = {expression}")
    path.write_text(f"GPUS = 8\n{path.read_text()}")
    assert read_function(path, "f").values == {"x": value}


def test_keys_are_set_through_names_items_and_functions(tmp_path):
    path = body(
        tmp_path,
        "config.train = train = ml_collections.ConfigDict()",
        "train.beta = 1",
        "config['seed'] = 2",
        "config.train.beta += 3",
        "more(config, by=5)",
    )
    path.write_text(path.read_text() + "def more(config, by, extra=1):\n    config.more = by + extra\n")
    assert read_function(path, "f").values == {"train.beta": 4, "seed": 2, "more": 6}


@pytest.mark.parametrize(
    "statement",
    [
        "config.x = open('/etc/passwd').read()",
        "config.x = __import__('os').getcwd()",
        "config.x = [i for i in range(3)]",
        "config.x = 1 << 60",
        "config.x = 9 ** 9",
        "config.x = 10 ** 99",
        "config.x = 1e300 * 1e300",
        "config.x = 1 / 0",
        "config.x = 'a' * 10",
        "config.x = unknown",
        "config.x = config.missing.key",
        "config.x = {**config}",
        "config.x = lambda: 1",
        "config.x = int('7')",
        "config.x, config.y = 1, 2",
        "del config.x",
        "for config.x in range(3): pass",
        "with config.unlocked(): config.x = 2",
        "if gpus: config.x = 2",
        "while True: config.x = 3",
    ],
)
def test_a_statement_that_is_not_understood_is_listed_and_leaves_no_old_value(statement, tmp_path):
    reading = read_function(body(tmp_path, "config.x = 1", statement, "config.z = 2"), "f")
    assert reading.values == {"z": 2}
    ((line, text),) = reading.unread
    assert line == 4
    assert text[:6] == statement[:6]


def test_an_assertion_that_fails_is_listed(tmp_path):
    reading = read_function(body(tmp_path, "config.x = 3", "assert config.x % 2 == 0, 'even'"), "f")
    assert reading.unread == [(4, "assert config.x % 2 == 0, 'even'")]


HOSTILE = {
    "no function": "import os\nos.system('touch pwned')\n",
    "system": "import os\ndef f():\n    os.system('touch pwned')\n    exec(\"open('pwned', 'w')\")\n",
    "decorator": "@exec\ndef f():\n    return ml_collections.ConfigDict()\n",
    "default": "def f(x=open('pwned', 'w')):\n    return ml_collections.ConfigDict()\n",
    "loop": "def f():\n    while True:\n        pass\n",
    "recursion": "def f():\n    return g()\ndef g():\n    return f()\n",
    "calls": "def f0():\n    return 1\n"
    + "".join(f"def f{i + 1}():\n    a = f{i}()\n    return f{i}()\n" for i in range(40))
    + "def f():\n    return f40()\n",
    "parentheses": f"x = {'(' * DEEP}1{')' * DEEP}\n",
    "minus": f"x = {'-' * DEEP}1\n",
    "sum": f"x = 1{'+1' * DEEP}\n",
    "attributes": f"x = a{'.a' * DEEP}\n",
    "elif": "def f():\n    if a: pass\n" + "    elif a: pass\n" * (DEEP // 2),
    "indents": "def f():\n" + "".join(f"{' ' * (i + 1)}if a:\n" for i in range(100)),
    "large": "x = 1\n" * 1_700_000,
    "not Python": "a: [b\n",
    "NUL": "x = 1\0\n",
    "not UTF-8": b"x = '\xff'\n",
    "a number of too many digits": f"x = {'9' * 5000}\n",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_a_sentence_and_nothing_runs(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, text = tmp_path / "config.py", HOSTILE[kind]
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as refused:
        read_function(path, "f")
    assert 0 < len(str(refused.value)) < 600
    assert "\n" not in str(refused.value)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.py"]


@pytest.mark.parametrize("path", ["missing.py", "."])
def test_a_file_that_cannot_be_read_is_a_sentence(path, tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_function(tmp_path / path, "f")


def test_a_text_does_not_grow_without_bound(tmp_path):
    reading = read_function(body(tmp_path, "s = 'ab'", *["s = f'{s}{s}'"] * 60, "config.s = s"), "f")
    assert reading.values == {}
    assert reading.unread
