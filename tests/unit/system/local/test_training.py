"""`tempflow train --local` through the command line: bits, resume, the run folder, refusals and holes."""

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.numpy import load_file

from actors.rollout.sampler import Sampler
from tests.helpers.holes import write_scorers
from tests.helpers.judging import judged_by_rows
from tests.helpers.run_folders import adapter, figures, metrics


@pytest.fixture
def train(recipe, in_process):
    """Train in this process; the exit code must be 0 unless another is given."""

    def run(*arguments, code: int = 0):
        done = in_process("train", recipe, "--local", *arguments)
        assert done.returncode == code, done.stderr
        return done

    return run


@pytest.mark.parametrize("staleness", [0, 2])
def test_the_same_seed_gives_the_same_bits_and_so_does_a_resumed_run(train, tmp_path, staleness):
    stale = f"learner.max_staleness={staleness}"
    for arguments in (["name=one"], ["name=two"], ["name=halves", "steps=2"], ["name=halves", "--resume"]):
        train(*arguments, stale)
    one, two, halves = (tmp_path / "runs" / name for name in ("one", "two", "halves"))
    assert adapter(one) == adapter(two) == adapter(halves)
    assert figures(one) == figures(two)
    assert [line["step"] for line in metrics(halves)] == [0, 1, 2, 3, 4]
    assert figures(halves) == figures(one)
    assert [line["staleness"] for line in metrics(one)[1:]] == [min(step, staleness) for step in range(4)]
    check_run_folder(one)
    train("name=other", "seed=1", stale)
    assert adapter(tmp_path / "runs" / "other") != adapter(one)


def test_a_run_is_neither_begun_twice_nor_resumed_with_other_settings(train):
    train("name=one", "steps=1")
    assert "--resume" in train("name=one", "steps=1", code=2).stderr
    changed = train("name=one", "learner.lr=1e-3", "--resume", code=2)
    assert "other settings: learner.lr was 0.01 and is" in changed.stderr


def check_run_folder(run: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["tempflow"]["version"]
    assert config["learner"]["betas"] == [0.9, 0.999]
    lines = metrics(run)
    assert {"eval/size", "nfe"} <= lines[0].keys()
    for line in lines[1:]:
        assert (line["ratio/first_deviation"] == 0) == (line["staleness"] == 0)
        assert line["drift/mean"] < 1e-4
        assert line["holes"] == 0
    assert lines[-1]["nfe"] == sum(line["nfe/generate"] + line["nfe/learn"] for line in lines[1:])
    experience = pq.read_table(run / "experience" / "step_000001.parquet")
    assert len(experience) == 3 * 2 * 3 * 3
    assert set(experience["branch_step"].to_pylist()) == {0, 1, 2}
    assert set(experience["policy_version"].to_pylist()) == {0}
    groups = experience.group_by(["prompt_row", "seed", "branch_step"]).aggregate([("advantage", "sum")])
    assert all(abs(total) < 1e-9 for total in groups["advantage_sum"].to_pylist())
    assert (run / "samples" / "step_000004" / "001.png").exists()
    assert len(pq.read_table(run / "eval" / "step_000004.parquet")) == 6
    assert load_file(run / "lora" / "pytorch_lora_weights.safetensors")
    assert "<svg" in (run / "report.html").read_text()
    assert not list(run.rglob("*.tmp"))


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_run_whose_checkpoints_are_not_found_is_refused_and_no_record_is_touched(recipe, in_process, tmp_path):
    """A forgotten checkpoint.folder, and then a storage that is not mounted: neither begins the run again."""
    elsewhere, run = tmp_path / "elsewhere", tmp_path / "runs" / "kept"

    def train(*arguments):
        return in_process("train", recipe, "--local", "name=kept", *arguments)

    begun = train(f"checkpoint.folder={elsewhere}", "steps=2")
    assert begun.returncode == 0, begun.stderr
    before = files(run)

    forgotten = train("--resume")
    assert forgotten.returncode == 2
    assert f"there is no checkpoint of it in `{run}/checkpoints`" in forgotten.stderr
    assert f"so add checkpoint.folder={elsewhere}" in forgotten.stderr
    assert len(forgotten.stderr.strip().splitlines()) == 1
    assert files(run) == before

    elsewhere.rename(tmp_path / "mounted")
    unmounted = train(f"checkpoint.folder={elsewhere}", "--resume")
    assert unmounted.returncode == 2
    assert "mount or restore the storage that had them" in unmounted.stderr
    assert files(run) == before
    assert not elsewhere.exists()

    (tmp_path / "mounted").rename(elsewhere)
    (tmp_path / "prompts.txt").write_text((tmp_path / "prompts.txt").read_text().replace("3", "three"))
    replaced = train(f"checkpoint.folder={elsewhere}", "--resume")
    assert replaced.returncode == 2
    assert "the content of data.train, data.heldout has changed since the run" in replaced.stderr
    assert files(run) == before

    again = train(f"checkpoint.folder={elsewhere}", "--resume", "--accept-changes")
    assert again.returncode == 0, again.stderr
    assert [line["step"] for line in metrics(run)] == [0, 1, 2, 3, 4]
    assert "continues with changed content of data.train" in (run / "logs" / "driver.log").read_text()


def test_a_scorer_that_always_raises_stops_the_run(train, tmp_path):
    write_scorers(tmp_path)
    done = train("name=raises", "scorers.0.scorer=broken:Raises", code=2)
    assert "scorer `size`: OSError: the model file is gone" in done.stderr
    assert "Traceback" not in done.stderr
    log = (tmp_path / "runs" / "raises" / "logs" / "driver.log").read_text()
    assert 'broken.py\\", line' in log, "the log names the line of the scorer"


def test_failed_scores_are_holes_and_too_many_stop_the_run(train, tmp_path):
    write_scorers(tmp_path)
    some = ("scorers.0.scorer=broken:SomeNaN", "reward.max_hole_share=0.7")
    everything = train("name=everything", *some, "scorers.0.options={percent: 100}", "data.heldout=null", code=2)
    assert "54 of 54 images have no reward" in everything.stderr

    for percent in (1, 50):
        train(f"name=nan{percent}", *some, f"scorers.0.options.percent={percent}")
        run = tmp_path / "runs" / f"nan{percent}"
        tables = [pq.read_table(file).to_pydict() for file in sorted((run / "experience").iterdir())]
        pairs = list(itertools.chain(*(zip(t["advantage"], t["reward"], strict=True) for t in tables)))
        without = [advantage for advantage, reward in pairs if reward != reward]
        assert without
        assert abs(len(without) / len(pairs) - percent / 100) < 0.1
        assert sum(line["holes"] for line in metrics(run)[1:]) == len(without)
        assert not any(without)


def test_a_full_gpu_is_a_sentence_in_the_terminal_and_the_log_and_a_smaller_batch_resumes(train, tmp_path, monkeypatch):
    train("name=full", "steps=2")
    with monkeypatch.context() as patch:
        patch.setattr(Sampler, "__call__", raises(torch.OutOfMemoryError("CUDA out of memory.")))
        done = train("name=full", "--resume", code=2)
    assert "the memory of the GPU is full; lower rollout.micro_batch or rollout.decode_batch" in done.stderr
    assert "Traceback" not in done.stderr
    log = tmp_path / "runs" / "full" / "logs" / "driver.log"
    assert "the memory of the GPU is full" in log.read_text()

    train("name=full", "--resume", "rollout.micro_batch=4", "rollout.decode_batch=4")
    assert [line["step"] for line in metrics(tmp_path / "runs" / "full")] == [0, 1, 2, 3, 4]
    assert "differ in rounding from those of an unchanged run: rollout.micro_batch was 8" in log.read_text()


def raises(error: Exception):
    def call(*_):
        raise error

    return call


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["policy.model=./nowhere"], "policy.model"),
        (["data.train=gone.parquet"], "no prompt file"),
        (["data.prompt_column=text", "data.train={parquet}"], "no column `text`"),
        (["data.train={broken}"], "not a readable Parquet"),
        (["policy.num_steps=1"], "policy.num_steps"),
        (["plan.explorations=1"], "at least 2"),
        (["learner.lrr=1"], "did you mean `lr`?"),
        (["steps=many"], "`steps` = 'many'"),
        (["scorers.0.scorer=pickscorer"], "neither built in"),
        (["scorers.0.scorer=nowhere:Scorer"], "check the import path"),
        (["scorers.0.options={speed: 3}"], "options"),
        (["data.prompts_per_step=13"], "only 12 prompts"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_2_before_anything_starts(
    recipe, in_process, tmp_path, overrides, message
):
    good, broken = tmp_path / "good.parquet", tmp_path / "broken.parquet"
    pq.write_table(pa.table({"prompt": ["a", "b"]}), good)
    broken.write_bytes(b"PAR1 is not enough")
    overrides = [
        text.format(parquet=good, broken=broken) if "{p" in text or "{b" in text else text for text in overrides
    ]
    done = in_process("train", recipe, *overrides, "name=never")
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_a_run_learns_from_rows_sub_scores_and_groups(train, recipe, tmp_path):
    train("name=judged", "steps=2", *judged_by_rows(tmp_path))
    run = tmp_path / "runs" / "judged"
    leaves = 2 * 3 * 3
    table = pq.read_table(run / "experience" / "step_000002.parquet").sort_by("leaf")
    column = {name: table[name].to_numpy() for name in table.column_names}
    brightness, rank, judge = (column[f"reward/{name}"] for name in ("judge.brightness", "rank", "judge"))
    np.testing.assert_array_equal(column["reward/judge.count"], column["prompt_row"])
    np.testing.assert_allclose(judge, 2 * brightness + 10 * column["prompt_row"])
    np.testing.assert_allclose(column["reward"], judge + rank)
    for row in set(column["prompt_row"].tolist()):
        task = column["prompt_row"] == row
        place = brightness[task].argsort(kind="stable").argsort()
        assert len(place) == leaves
        np.testing.assert_allclose(rank[task], place / leaves)
    line = metrics(run)[-1]
    assert line["reward/judge.count/mean"] == pytest.approx(column["prompt_row"].mean())
    assert line["eval/judge.count"] == pytest.approx((0 + 1 + 2 + 3 + 4 + 5) / 6)
    assert not [key for key in line if key.startswith("eval/rank")]
    assert "judge.brightness, sub-score" in (run / "report.html").read_text()
    refused = train("name=no", *judged_by_rows(tmp_path), "scorers.1.request_images=4", code=2)
    assert f"set scorers.1.request_images to at least {leaves}" in refused.stderr
