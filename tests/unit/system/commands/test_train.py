"""`tempflow train` as far as it gets without Ray: dry runs, mistakes, and what it says of itself."""

import subprocess
import sys

from tests.helpers.command_line import environment
from tests.helpers.recipes import ONE_PROCESS


def test_dry_run_counts_what_a_step_costs_and_starts_nothing(recipe, in_process, tmp_path):
    done = in_process("train", recipe, "--dry-run")
    assert done.returncode == 0, done.stderr
    nfe = 3 * (2 * 3 + 2 * 3 * (3 + 2 + 1))
    images, learning = 3 * 2 * 3 * 3, 3 * 3 * 2 * 3
    assert f"{nfe} NFE of sampling, {images} images, {learning} NFE of learning" in done.stdout
    assert not (tmp_path / "runs").exists()


def test_the_first_line_comes_before_heavy_imports(recipe, tmp_path):
    """PyTorch and Ray take seconds to import. The first line is printed when neither is."""
    code = (
        "import sys\n"
        "from rich.console import Console\n"
        "said = Console.print\n"
        "def first(self, *texts, **how):\n"
        "    said(self, *texts, **how)\n"
        "    heavy = {'torch', 'ray', 'transformers', 'diffusers'} & set(sys.modules)\n"
        "    print(sorted(heavy))\n"
        "    sys.exit(0)\n"
        "Console.print = first\n"
        "from system.commands.main import main\n"
        "main()\n"
    )
    command = [sys.executable, "-c", code, "train", str(recipe)]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120)
    first, heavy = done.stdout.splitlines()
    assert first == "checking     tiny: the recipe, its prompts, this machine"
    assert heavy == "[]"


def test_a_run_says_what_it_loads_and_what_to_do_next(recipe, in_process, tmp_path):
    done = in_process("train", recipe, "--local", "steps=1", "eval.prompts=2", *ONE_PROCESS)
    assert done.returncode == 0, done.stderr
    checking, folder, watch, loading, *_ = done.stdout.splitlines()
    assert (checking[:8], folder[:10]) == ("checking", "run folder")
    assert watch.startswith("watch it     tempflow watch ")
    assert loading.startswith("loading      ")
    assert loading.endswith("; scorers: size")
    (last,) = done.stderr.splitlines()
    run = tmp_path / "runs" / "tiny"
    assert last == (
        f'next         open {run}/report.html; make images: tempflow sample {run} --adapter {run}/lora --prompt "…"'
    )
    assert (run / "report.html").is_file()
