"""The report's figures against values worked out by hand, and whatever a stopped run may lack."""

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from services.errors import UserError
from system.report.build import build_report
from system.report.data import by_sampling_step, comparisons, read_run

PROMPTS = ["a <script>alert(1)</script> & co", "a cat", "two dogs", "a hole"]
BEFORE, AFTER = [0.0, 1.0, 0.0, 1.0], [1.0, 1.0, 0.0, np.nan]


@pytest.fixture
def run(tmp_path):
    config = {
        "name": "mine",
        "steps": 3,
        "scorers": [{"name": "size", "weight": 1.0}, {"name": "judge", "weight": 0.0}],
        "tempflow": {"version": "0.1", "commit": None},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    lines = [{"step": 0, "eval/judge": 0.5, "nfe": 0}]
    for step in range(1, 4):
        lines.append(
            {
                "step": step,
                "reward/size/mean": step / 10,
                "branch/std": [0.1 * step, 0.2, None],
                "branch/noise_level": [0.7, 0.9, 0.1],
                "drift/mean": 1e-6,
                "grad_norm": 1.0,
                "advantage/flat_groups": 0.1,
                "holes": step,
                "seconds/generate": 2.0,
                "idle/learner": 0.8,
                "nfe": step * 1000,
            }
        )
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for step, scores in ((0, BEFORE), (3, AFTER)):
        table = pa.table({"row": range(4), "prompt": PROMPTS, "category": ["x", "x", "y", "y"], "judge": scores})
        folder = tmp_path / "samples" / f"step_{step:06d}"
        folder.mkdir(parents=True)
        (tmp_path / "eval").mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / "eval" / f"step_{step:06d}.parquet")
        for i in range(2):
            Image.new("RGB", (8, 8), (step * 50, i * 50, 0)).save(folder / f"{i:03d}.png")
    return tmp_path


def test_differences_are_paired_and_holes_dropped(run):
    overall, x, y = comparisons(read_run(run))
    half = 1.96 * np.std([1, 0, 0], ddof=1) / np.sqrt(3)
    assert (overall.pairs, overall.before, overall.after) == (3, pytest.approx(1 / 3), pytest.approx(2 / 3))
    assert (overall.difference, overall.half_interval) == (pytest.approx(1 / 3), pytest.approx(half))
    assert (x.category, x.pairs, x.difference) == ("x", 2, 0.5)
    assert (y.category, y.pairs, y.difference) == ("y", 1, 0.0)


def test_the_page_is_one_file_that_shows_the_figures_and_escapes_prompts(run):
    page = build_report(run).read_text()
    assert "0.333 → 0.667" in page
    assert page.count("data:image/png;base64,") == 4
    assert page.count("<svg") == 4
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!data:|#)""", page)
    assert "Holes: 6" in page


def test_means_by_sampling_step_leave_out_what_was_not_drawn(run):
    means = by_sampling_step(read_run(run).steps, "branch/std")
    assert means[:2].tolist() == pytest.approx([0.2, 0.2])
    assert np.isnan(means[2])


def test_a_run_that_has_only_begun(run):
    first = run.joinpath("metrics.jsonl").read_text().splitlines()[0]
    run.joinpath("metrics.jsonl").write_text(first + "\n")
    for file in (run / "eval").iterdir():
        file.unlink()
    page = build_report(run).read_text()
    assert "nothing to compare yet" in page
    assert "No training step is recorded" in page


def test_lines_may_lack_any_key(run):
    run.joinpath("metrics.jsonl").write_text('{"step": 1}\n{"step": 2, "grad_norm": null}\n')
    assert "<svg" in build_report(run).read_text()


def test_a_folder_that_is_no_run_is_refused(run, tmp_path_factory):
    with pytest.raises(UserError, match="not a run"):
        build_report(tmp_path_factory.mktemp("empty"))
    run.joinpath("metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="nothing is recorded"):
        build_report(run)
