"""The command line: which commands it has, what help costs, and what it says about a mistake."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from system.commands import main
from system.recipe.find import recipe_names, what_for
from tests.helpers.paths import ROOT

SHARED = {"__init__", "main", "arguments", "plain"}


def test_each_file_is_a_command_and_has_help():
    files = {file.stem for file in Path(main.__file__).parent.glob("*.py")}
    assert files - SHARED == set(main.COMMANDS)
    names = list(get_command(main.app).commands)
    assert names[:3] == ["train", "eval", "sample"]
    for name in names:
        done = CliRunner().invoke(main.app, [name, "-h"])
        assert (done.exit_code, f"{name} [OPTIONS]" in done.output) == (0, True)


def test_help_imports_nothing_heavy():
    """The commands import what they need when they run."""
    code = "import sys; import system.commands.main; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "system.commands.config" in done.stdout.split()
    assert not {"torch", "ray", "numpy", "pyarrow", "pydantic", "PIL"} & set(done.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["report", "nowhere"], "`nowhere` is not a run"),
        (["train", "nowhere"], "no recipe `nowhere`"),
        (["score", "gone\x1b[31m.png", "--prompt", "x", "--scorer", "jpeg_size"], r"`gone\x1b[31m.png`"),
    ],
)
def test_a_mistake_is_one_sentence_without_escapes_and_exit_code_2(monkeypatch, capsys, arguments, said):
    monkeypatch.setattr(sys, "argv", ["tempflow", *arguments])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert "\x1b" not in error


@pytest.mark.parametrize(
    ("number", "file", "said"),
    [
        (errno.ENOSPC, None, "tempflow: a file cannot be written: No space left on device; make room there\n"),
        (errno.EROFS, "/ro/x", "tempflow: `/ro/x`: Read-only file system; write to another place\n"),
        (errno.EACCES, "/x", "tempflow: `/x`: Permission denied; change its permissions, or use another place\n"),
    ],
)
def test_storage_that_refuses_is_one_sentence(number, file, said, monkeypatch, capsys):
    def refuse():
        raise OSError(number, os.strerror(number), file)

    monkeypatch.setattr(main, "app", refuse)
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == said


def test_an_error_of_ours_has_a_traceback(monkeypatch):
    def bug():
        raise ZeroDivisionError

    monkeypatch.setattr(main, "app", bug)
    with pytest.raises(ZeroDivisionError):
        main.main()


def test_recipes_are_listed_with_their_gpus_and_their_purpose(in_process):
    lines = in_process("recipes").stdout.splitlines()
    rows = {name: (gpus, purpose) for name, gpus, purpose in (line.split(maxsplit=2) for line in lines[1:])}
    assert rows.keys() == set(recipe_names())
    assert rows["shapes"] == ("0", "TempFlow-GRPO on the embedded miniature: no download")
    assert rows["sd35_geneval"][0] == "8", "its fractions of GPUs are rounded up"
    assert rows["sd35_awm"] == ("8", what_for("sd35_awm"))
    assert all(len(purpose) > 20 for _, purpose in rows.values())


def test_libraries_keep_their_notices_to_themselves_unless_asked(monkeypatch):
    monkeypatch.delenv("TRANSFORMERS_VERBOSITY", raising=False)
    monkeypatch.setenv("DIFFUSERS_VERBOSITY", "info")
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    monkeypatch.setattr(main, "app", lambda: None)
    main.main()
    assert (os.environ["TRANSFORMERS_VERBOSITY"], os.environ["DIFFUSERS_VERBOSITY"]) == ("error", "info")
