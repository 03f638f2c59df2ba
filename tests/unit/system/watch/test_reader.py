"""A run folder as plain data: while files are written, torn, missing or made again."""

import json
import os
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from services.base.errors import UserError
from system.watch.prompt_history import SCANNED
from system.watch.reader import SILENT_S, Reader, newest_run
from tests.helpers.paths import ROOT
from tests.helpers.watched_runs import HOSTILE, experience, line, write_config, write_line, write_run, write_step


def read(run) -> Reader:
    reader = Reader(run)
    reader.poll()
    return reader


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="is not a run"):
        Reader(tmp_path)
    with pytest.raises(UserError, match="has no run"):
        newest_run(tmp_path)


def test_the_newest_run_is_the_one_that_wrote_last(tmp_path):
    for age, name in enumerate(("c", "a", "b")):
        run = write_run(tmp_path / name)
        for file in (run / "config.yaml", run / "metrics.jsonl"):
            os.utime(file, (1000 - age, 1000 - age))
    os.utime(tmp_path / "b" / "metrics.jsonl", (2000, 2000))
    assert newest_run(tmp_path).name == "b"


def test_a_run_that_has_not_begun_is_waiting(tmp_path):
    write_config(tmp_path / "mine")
    overview = read(tmp_path / "mine").overview(now=0.0)
    assert (overview["state"]["kind"], overview["panels"], overview["steps"]["experience"]) == ("waiting", [], [])
    json.dumps(overview, allow_nan=False)


@pytest.mark.parametrize(
    ("steps", "age_s", "kind"),
    [(2, 1, "running"), (2, SILENT_S - 1, "running"), (2, SILENT_S + 1, "silent"), (3, 10**6, "finished")],
)
def test_the_state_follows_from_the_last_line(tmp_path, steps, age_s, kind):
    state = read(write_run(tmp_path / "mine", steps)).state(now=1000 + steps + age_s)
    assert (state["kind"], state["step"], state["age_s"]) == (kind, steps, age_s)
    assert state["left_s"] == (2.0 * (3 - steps) if kind == "running" else None)


def test_a_slow_run_is_not_called_silent(tmp_path):
    run = write_run(tmp_path / "mine", 1)
    write_line(run, line(2, **{"seconds/step": 1000.0}))
    assert read(run).state(now=1002 + 4000)["kind"] == "running"


def test_the_overview_has_the_curves_the_roles_and_the_steps(tmp_path):
    overview = read(write_run(tmp_path / "mine")).overview(now=1002.0)
    assert overview["recipe"]["rewards"] == ["size"]
    panels = {panel["series"][0]["label"]: panel for panel in overview["panels"]}
    assert panels["size"]["series"] == [{"label": "size", "steps": [1, 2], "values": [0.1, 0.2], "low": [], "high": []}]
    assert [(panel["place"], panel["title"]) for panel in overview["panels"] if panel["place"] == "scores"] == [
        ("scores", "Training reward"),
        ("scores", "Held-out score"),
    ]
    assert len(panels["judge (not trained on)"]["series"]) == 1
    assert overview["roles"] == {"learner": 0.25}
    assert overview["steps"] == {"experience": [1, 2], "pictures": [1, 2], "samples": [0]}
    json.dumps(overview, allow_nan=False)


def test_missing_steps_are_named(tmp_path):
    run = write_run(tmp_path / "mine", 1)
    write_line(run, line(4))
    (run / "metrics.jsonl").open("a").write('{"step": 5, "torn\n[1, 2]\n{"step": 6}\n')
    overview = read(run).overview(now=0.0)
    assert (overview["missing"], overview["state"]["step"]) == ("2–3, 5", 6)


def test_the_revision_grows_only_with_something_new(tmp_path):
    run = write_run(tmp_path / "mine")
    reader = read(run)
    before = reader.revision
    reader.poll()
    assert reader.revision == before
    write_line(run, line(3), end="")
    reader.poll()
    assert reader.revision == before
    (run / "metrics.jsonl").open("a").write("\n")
    reader.poll()
    assert reader.revision == before + 1


def test_warnings_of_the_metrics_and_of_the_logs_are_shown_once(tmp_path):
    run = write_run(tmp_path / "mine")
    write_line(run, line(3, warnings=["the watcher falls"]))
    (run / "logs").mkdir()
    entries = [
        {"time": "2026-01-01T00:00:00.000+00:00", "level": "WARNING", "message": "the watcher falls", "step": 3},
        {"time": "2026-01-01T00:00:01.000+00:00", "level": "INFO", "message": "a WARNING in a text"},
        {"time": "2026-01-01T00:00:02.000+00:00", "level": "ERROR", "message": "a worker was lost", "step": 2},
        {"time": "no time", "level": "ERROR", "message": "odd"},
    ]
    content = "".join(json.dumps(entry) + "\n" for entry in entries)
    (run / "logs" / "driver.log").write_text(f"{content}not JSON, ERROR\n")
    found = [(warned.source, warned.step, warned.message) for warned in read(run).warnings]
    assert found == [("driver.log", 2, "a worker was lost"), ("run", 3, "the watcher falls")]


def test_warnings_of_steps_that_are_made_again_are_forgotten(tmp_path):
    run = write_run(tmp_path / "mine")
    write_line(run, line(3, warnings=["old"]))
    reader = read(run)
    text = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(text[:-1]))
    reader.poll()
    assert reader.warnings == []


def test_a_step_has_its_groups_and_the_task_with_pictures(tmp_path):
    reader = read(write_run(tmp_path / "mine"))
    step = reader.step(1)
    assert (step["row"], step["groups"]["count"], step["groups"]["flat"]) == (7, 8, 4)
    assert [task["prompt"] for task in step["tasks"]] == [HOSTILE, "prompt 8"]
    task = reader.task(1, 7)
    assert (task["pictures"], task["num_steps"], len(task["leaves"])) == ([0, 1, 2, 3], 4, 12)
    assert reader.task(1, 8)["pictures"] == []
    assert reader.picture(1, 7, 2).startswith(b"\x89PNG")
    assert reader.picture(1, 7, 4) is reader.picture(1, 8, 0) is reader.picture(9, 7, 0) is None
    assert reader.step(9) is reader.task(9, 7) is None


def test_files_that_are_torn_or_replaced_are_read_when_they_are_whole(tmp_path):
    run = write_run(tmp_path / "mine", 1)
    file, reader = run / "experience" / "step_000001.parquet", read(run)
    whole = file.read_bytes()
    assert reader.task(1, 7)["trunks"]
    file.write_bytes(whole[:50])
    assert reader.task(1, 7) is None
    file.write_bytes(whole)
    assert reader.task(1, 7)["trunks"]
    pq.write_table(experience(1, {(9, 0, 0, 0): [1.0, 2.0]}), file)
    assert [task["row"] for task in reader.step(1)["tasks"]] == [9]


def test_held_out_pictures_have_prompts_and_scores(tmp_path):
    reader = read(write_run(tmp_path / "mine"))
    shown = reader.samples(0)["pictures"]
    assert shown[0] == {"index": 0, "prompt": "a dog", "scores": {"judge": 0.25}}
    assert shown[1]["scores"] == {"judge": None}
    assert reader.sample_file(0, 1).startswith(b"\x89PNG")
    assert reader.sample_file(0, 2) is reader.sample_file(5, 0) is None
    assert reader.samples(5)["pictures"] == []


def test_the_history_of_prompts_is_read_a_part_at_a_time_and_follows_a_resumed_run(tmp_path):
    run = write_run(tmp_path / "mine", 1)
    for step in range(2, SCANNED + 3):
        write_step(run, step)
    reader = read(run)
    assert [(found["read"], found["of"]) for found in (reader.prompts(), reader.prompts())] == [
        (SCANNED, SCANNED + 2),
        (SCANNED + 2, SCANNED + 2),
    ]
    last = reader.prompts()
    history = {prompt["row"]: prompt for prompt in last["prompts"]}
    assert history[8]["steps"] == list(range(1, SCANNED + 3))
    assert history[8]["means"] == pytest.approx([0.1 * step for step in range(1, SCANNED + 3)])
    (run / "experience" / f"step_{SCANNED + 2:06d}.parquet").unlink()
    pq.write_table(experience(1, {(8, 0, 0, 0): [5.0]}), run / "experience" / "step_000001.parquet")
    history = {prompt["row"]: prompt for prompt in reader.prompts()["prompts"]}
    assert history[8]["steps"] == list(range(1, SCANNED + 2))
    assert (history[8]["means"][0], history[7]["steps"][0]) == (5.0, 2)


def test_nothing_heavy_is_imported():
    code = "import sys; import system.watch.server, system.watch.terminal; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not {"torch", "ray", "matplotlib", "diffusers"} & set(done.stdout.split())


def test_scores_of_different_scales_have_figures_of_their_own(tmp_path):
    run = write_run(tmp_path / "mine", 1)
    write_line(run, line(2, **{"eval/judge": 0.5, "eval/size": 20.0}))
    heldout = [panel["series"] for panel in read(run).panels() if panel["title"].startswith("Held-out")]
    assert sorted([one["label"] for one in series] for series in heldout) == [["judge (not trained on)"], ["size"]]
