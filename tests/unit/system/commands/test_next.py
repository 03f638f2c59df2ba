"""Each command that finishes says what to do next, on stderr: what it prints may go to a file or a program."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.main import get_command

from system.checks.finding import Finding
from system.commands.main import app
from system.compare.result import Point, Result
from system.recipe.load import load_config
from system.watch.server import PageServer
from tests.helpers.flow_grpo import CONFIG
from tests.helpers.paths import ROOT
from tests.helpers.recipes import ONE_PROCESS, tiny_recipe
from tests.helpers.training import trained_locally

INFRA = ROOT / "deploy" / "kuberay" / "one_gpu.infra.yaml"
NEXT = "next         "


def documents(text: str) -> list[Any]:
    """The documents of a YAML stream."""
    return list(yaml.safe_load_all(text))


@dataclass(frozen=True)
class Case:
    """A command line and what it ends with. `{…}` is a thing of the fixture `things`."""

    line: str
    said: str
    read: Callable[[str], Any] | None = None
    """Reads an output that is for programs, and raises if anything stands beside it."""


CASES = [
    Case("train {recipe} steps=9 --dry-run", "tempflow train {recipe} steps=9 starts the run"),
    Case("train {recipe} --local steps=1 data.heldout=null name=one", "tempflow watch {folder}/runs/one"),
    Case("eval {recipe} --local", "tempflow eval {recipe} --adapter RUN/lora"),
    Case("eval {recipe} --local --adapter {run}/lora", "tempflow export RUN --to FOLDER"),
    Case("sample {recipe} --prompt cat --output images", "images"),
    Case("serve shapes --print", "serve deploy pool.yaml", documents),
    Case("deploy sd35_pickscore_1gpu --infra {infra} {prompts}", "kubectl apply", documents),
    Case("score {image} --prompt cat --scorer pickscore", "tempflow train shapes"),
    Case("score {image} --prompt cat --scorer jpeg_size", "train shapes 'scorers.jpeg_size={{scorer: jpeg_size}}'"),
    Case("plan shapes steps=9", "doctor shapes steps=9, then tempflow train shapes steps=9"),
    Case("plan shapes --json", "tempflow doctor shapes", json.loads),
    Case("doctor", "tempflow doctor RECIPE"),
    Case("doctor {recipe} steps=9", "tempflow train {recipe} steps=9"),
    Case("watch {run} --port 0", "tempflow watch {run} opens the page again"),
    Case("top {run}", "tempflow watch {run} shows"),
    Case("report {run}", "open {run}/report.html"),
    Case("export {run} --to exported", "hf upload"),
    Case("bench sampler {recipe} --rounds 1", "docs/measuring.md"),
    Case("bench sampler {recipe} --rounds 1 --json", "docs/measuring.md", json.loads),
    Case("bench gpu --json", "open bench-gpu/gpu.html", json.loads),
    Case("compare --output {comparison}", "open {comparison}/compare.html"),
    Case("init new", "cd new; tempflow doctor recipe.yaml"),
    Case("config shapes steps=9", "tempflow train shapes steps=9 --dry-run", documents),
    Case("recipes", "tempflow plan RECIPE"),
    Case("from-flow-grpo {flow_grpo}:general_ocr_sd3", "tempflow plan mine.yaml", documents),
]


@pytest.fixture(scope="module")
def things(sd3_folder, tmp_path_factory) -> dict[str, Path | str]:
    """What the commands work on. Nothing in it is changed but reports and pages."""
    folder = tmp_path_factory.mktemp("things")
    recipe = tiny_recipe(sd3_folder, folder)
    small = ["steps=1", "eval.prompts=2", "eval.grid=1", "checkpoint.every=1", *ONE_PROCESS]
    run = trained_locally(load_config(str(recipe), [*small, "name=kept"]))
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(folder / "image.png")
    (folder / "comparison").mkdir()
    points = [Point(step, 10 * step, step, step, 1.0, {"size": 0.5 + step}) for step in range(2)]
    Result("only", 0, "key", "0.1", {}, ["size"], points, [0.1]).save(folder / "comparison" / "only-seed0.json")
    (folder / "grpo.py").write_text(CONFIG)
    return {
        "folder": folder,
        "recipe": recipe,
        "run": run,
        "image": folder / "image.png",
        "comparison": folder / "comparison",
        "flow_grpo": folder / "grpo.py",
        "infra": INFRA,
        "prompts": "data.train=/runs/train.txt data.heldout=/runs/heldout.txt",
    }


@pytest.fixture
def _quick(monkeypatch):
    """What depends on the machine, or runs until Ctrl-C, ends at once."""

    def interrupted(_):
        raise KeyboardInterrupt

    def measured(output, *_):
        output.mkdir()
        (output / "gpu.json").write_text("{}")
        return 0

    monkeypatch.setattr("system.checks.checks.diagnose", lambda _: [Finding("ok", "Python", "3.12")])
    monkeypatch.setattr("system.bench.gpu.run.run_gpu", measured)
    monkeypatch.setattr(PageServer, "serve_forever", interrupted)


def test_every_command_is_tried():
    assert {case.line.split()[0] for case in CASES} == set(get_command(app).commands)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.line)
@pytest.mark.usefixtures("_quick")
def test_a_command_ends_with_what_to_do_next_beside_its_output(things, in_process, case):
    done = in_process(*case.line.format(**things).split())
    assert done.returncode == 0, done.stderr
    *before, last = done.stderr.splitlines()
    assert last.startswith(NEXT)
    assert case.said.format(**things) in last
    assert not [line for line in before if line.startswith(NEXT)]
    assert NEXT not in done.stdout
    if case.read:
        assert case.read(done.stdout) is not None


def test_a_doctor_who_finds_a_problem_says_what_to_do_too(in_process, monkeypatch):
    monkeypatch.setattr("system.checks.checks.diagnose", lambda _: [Finding("problem", "disk", "is full; empty it")])
    done = in_process("doctor")
    assert done.returncode == 2
    assert "correct what is marked as a problem" in done.stderr.splitlines()[-1]
