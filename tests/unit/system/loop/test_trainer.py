"""The training loop on roles that compute nothing: each event at each place of a run."""

import contextlib
import json
import logging
import os
import shutil
import time
import weakref
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from actors.lost import Lost
from services.base.errors import UserError
from services.base.futures import resolved
from services.base.logs import ScreenHandler
from system.loop.heldout import read_sets
from system.loop.prompts import read_prompts
from system.loop.recorder import Recorder
from system.loop.stop import Stopped
from system.loop.trainer import MAX_LOSSES, Trainer
from system.loop.warnings import WINDOW
from system.recipe.load import load_config
from system.recipe.model import RunConfig
from system.run.files import RunFiles
from system.run.folder import RunFolder
from system.run.opening import open_run
from system.run.progress import Progress
from tests.helpers.fakes import FakeRoles, Script, lost

STEPS = 4


def recipe(folder: Path, *overrides: str) -> RunConfig:
    """Four steps of two prompts; evaluations at 0, 2 and 4, checkpoints at the evaluations and at 3."""
    prompts = folder / "prompts.txt"
    prompts.write_text("".join(f"prompt number {i}\n" for i in range(8)))
    return load_config(
        "shapes",
        [
            *("name=run", f"output={folder / 'runs'}", f"steps={STEPS}", "plan.seeds=1", "plan.explorations=2"),
            *(f"data.train={prompts}", f"data.heldout={prompts}", "data.prompts_per_step=2"),
            *("eval.every=2", "eval.prompts=4", "eval.batch=2", "eval.grid=1", "checkpoint.every=3"),
            *overrides,
        ],
    )


@pytest.fixture(autouse=True, scope="module")
def quick():
    """A disk that is not waited for, and models whose files are not read: other tests prove what these do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        patch.setattr("system.run.opening.read_inputs", lambda config: {})
        yield


class Stops:
    """A stop that comes at a call, and is seen when the loop looks next."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self) -> None:
        self.asked = True

    def check(self) -> None:
        if self.asked:
            raise Stopped("SIGTERM")


def fit(config: RunConfig, roles: FakeRoles, stops: Stops | None = None, resume: bool = False) -> RunFolder:
    """Train to the end, or to what ends the run."""
    stops = stops or Stops()
    train = read_prompts(config.data.train)
    with open_run(config, resume) as run, Progress(config.steps, Console(quiet=True)) as progress:
        roles.learners.staleness = config.learner.max_staleness
        Trainer(config, run, roles, train, read_sets(config), Recorder(config, run, progress), stops.check).fit()
    return run


def recorded(config: RunConfig) -> dict:
    """What a run has left, but for times and for how often things were started again."""
    run = RunFiles(Path(config.output) / config.name)
    checkpoints = run.checkpoints(config.checkpoint)
    timed = ("time", "elapsed_s", "learner_restarts", "idle/", "seconds/", "bytes/images_peak")
    lines = [{k: repr(v) for k, v in line.items() if not k.startswith(timed)} for line in run.read_metrics()]
    tables = {
        f"{kind}/{file.name}": pq.read_table(file).to_pydict()
        for kind in ("experience", "eval")
        for file in sorted((run.path / kind).iterdir())
    }
    return {
        "metrics": lines,
        "tables": repr(tables),
        "images": sorted(p.name for p in (run.path / "samples").iterdir()),
        "state": replace(checkpoints.latest().state, elapsed_s=0),
        "best": checkpoints.best().state.step,
    }


@pytest.fixture(scope="module", params=[0, 2], ids=["in step", "two ahead"])
def whole(request, tmp_path_factory):
    """A run that nothing disturbs: its overrides, its calls, its final weights and what it recorded."""
    staleness = f"learner.max_staleness={request.param}"
    config, script = recipe(tmp_path_factory.mktemp("whole"), staleness), Script()
    roles = FakeRoles(script)
    fit(config, roles)
    assert roles.learners.current == STEPS
    return staleness, script.calls, roles.learners.versions[STEPS], recorded(config)


def best_weights(run: RunFiles, config: RunConfig) -> str:
    """The weights in the checkpoint with the best held-out reward."""
    best = run.checkpoints(config.checkpoint).best()
    return json.loads(best.folder.read("weights"))[str(best.state.step)]


def test_a_run_records_every_step_and_saves_what_it_ends_with(whole, tmp_path):
    staleness, calls, weights, left = whole
    config = recipe(tmp_path, staleness)
    roles = FakeRoles()
    run = fit(config, roles)
    assert (roles.learners.versions[STEPS], recorded(config)) == (weights, left)
    assert roles.learners.models == {"lora": weights, "best": best_weights(run, config)}
    assert [line["step"] for line in run.read_metrics()] == [0, 1, 2, 3, 4]
    assert [file.name for file in sorted((run.path / "eval").iterdir())] == [
        "step_000000.parquet",
        "step_000002.parquet",
        "step_000004.parquet",
    ]
    assert sorted(p.name for p in (run.path / "checkpoints").glob("step_*"))[-1] == "step_000004"
    assert set(roles.rollouts.generated.values()) == {1}
    assert roles.rollouts.budget.reserved == 0
    assert calls.count("update") == STEPS


def test_what_is_lost_at_any_place_is_made_again_with_the_same_result(whole, tmp_path):
    staleness, calls, weights, left = whole
    for at in range(calls.index("describe") + 1, len(calls)):
        folder = tmp_path / str(at)
        folder.mkdir()
        config, script = recipe(folder, staleness), Script(at, lost)
        roles = FakeRoles(script)
        fit(config, roles)
        assert roles.learners.restarts == 1, calls[at]
        assert roles.learners.versions[STEPS] == weights, calls[at]
        assert recorded(config) == left, calls[at]
        assert roles.learners.models["best"] == best_weights(RunFiles(folder / "runs" / "run"), config), calls[at]
        assert roles.rollouts.budget.reserved == 0, calls[at]


def test_a_stop_at_any_place_leaves_a_run_that_resumes_with_the_same_result(whole, tmp_path):
    staleness, calls, weights, left = whole
    ended = 0
    for at in range(len(calls)):
        folder = tmp_path / str(at)
        folder.mkdir()
        config, stops = recipe(folder, staleness), Stops()
        roles = FakeRoles(Script(at, stops))
        try:
            run = fit(config, roles, stops)
        except Stopped:
            ended += 1
            run = RunFiles(Path(config.output) / config.name)
            if run.read_metrics():  # The checkpoint is that of the last recorded step.
                last = run.read_metrics()[-1]["step"]
                assert (run.path / "checkpoints" / f"step_{last:06d}" / "manifest.json").exists(), calls[at]
            stopped, roles = roles, FakeRoles()
            roles.learners.models = stopped.learners.models
            fit(config, roles, resume=True)
        assert roles.learners.versions[STEPS] == weights, calls[at]
        assert recorded(config) == left, calls[at]
        assert roles.learners.models == {"lora": weights, "best": best_weights(run, config)}, calls[at]
    assert ended > len(calls) // 2


def test_a_stop_in_an_evaluation_counts_it_on_resume_even_if_the_run_folder_is_lost(tmp_path, whole):
    staleness, calls, _, left = whole
    second_update = [i for i, name in enumerate(calls) if name == "update"][1]
    config, stops = recipe(tmp_path, staleness, f"checkpoint.folder={tmp_path / 'kept'}"), Stops()
    with pytest.raises(Stopped):
        fit(config, FakeRoles(Script(second_update, stops)), stops)
    shutil.rmtree(tmp_path / "runs")
    fit(config, FakeRoles(), resume=True)
    after = recorded(config)
    assert (after["state"], after["best"]) == (left["state"], left["best"])


class Killed(BaseException):
    """The process ends here: nothing is caught, nothing is cleaned up."""


def killed() -> None:
    raise Killed


def test_a_driver_that_is_killed_at_any_place_resumes_with_the_same_result(whole, tmp_path):
    staleness, calls, weights, left = whole
    for at in range(len(calls)):
        folder = tmp_path / str(at)
        folder.mkdir()
        config = recipe(folder, staleness)
        with pytest.raises(Killed):
            fit(config, FakeRoles(Script(at, killed)))
        roles = FakeRoles()
        fit(config, roles, resume=True)
        assert roles.learners.versions[STEPS] == weights, calls[at]
        assert recorded(config) == left, calls[at]


def test_another_error_of_a_role_ends_the_run_and_the_run_resumes(whole, tmp_path):
    staleness, calls, weights, left = whole

    def fails() -> None:
        raise ValueError("a bug")

    for name in sorted(set(calls)):
        folder = tmp_path / name
        folder.mkdir()
        config, last = recipe(folder, staleness), len(calls) - 1 - calls[::-1].index(name)
        with pytest.raises(ValueError, match="a bug"):
            fit(config, FakeRoles(Script(last, fails)))
        roles = FakeRoles()
        fit(config, roles, resume=True)
        assert (roles.learners.versions[STEPS], recorded(config)) == (weights, left), name


def test_a_loss_that_comes_again_and_again_ends_the_run(tmp_path):
    class AlwaysLost(Script):
        def __call__(self, name: str) -> None:
            super().__call__(name)
            if name == "update":
                raise Lost("killed")

    script = AlwaysLost()
    with pytest.raises(UserError, match=r"lost 3 times without a new checkpoint, at last because killed; read logs/"):
        fit(recipe(tmp_path), FakeRoles(script))
    assert script.calls.count("update") == MAX_LOSSES


def test_holes_have_no_advantage_and_too_many_end_the_run(tmp_path):
    config = recipe(tmp_path, "reward.max_hole_share=0.5", "data.heldout=null")
    run = fit(config, FakeRoles(holes=1))
    for file in (run.path / "experience").iterdir():
        table = pq.read_table(file).to_pydict()
        without = [a for a, r in zip(table["advantage"], table["reward"], strict=True) if r != r]
        assert without
        assert not any(without)
    assert {line["holes"] for line in run.read_metrics()[1:]} == {2}

    (tmp_path / "refused").mkdir()
    refused = recipe(tmp_path / "refused", "reward.max_hole_share=0.05", "data.heldout=null")
    with pytest.raises(UserError, match=r"images have no reward \(scorer `pickscore`: OSError: away\)"):
        fit(refused, FakeRoles(holes=1))


def test_the_images_of_one_job_are_released_before_the_next_where_the_budget_is_small(tmp_path):
    """The fake asserts that it may reserve; a bound of one byte lets one job at a time through."""
    config = recipe(tmp_path)
    roles = FakeRoles(bound=1)
    fit(config, roles)
    assert roles.learners.current == STEPS


def test_the_experience_of_a_step_is_dropped_before_the_next_step_is_generated(tmp_path):
    """In one process the next step is generated at once, so that two steps would be in memory."""

    class Weighty(str):
        """Experience that can be counted as long as it lives."""

    config, roles = recipe(tmp_path), FakeRoles()
    generate = roles.rollouts.generate
    alive = weakref.WeakSet()
    steps_alive = []

    def counted(task, plan, weights):
        steps_alive.append({experience.step for experience in alive} | {task.training_step})
        job = generate(task, plan, weights).result()
        experience = Weighty(job.experience)
        experience.step = task.training_step
        alive.add(experience)
        return resolved(lambda: replace(job, experience=experience))

    roles.rollouts.generate = counted
    fit(config, roles)
    assert steps_alive == [{step} for step in range(STEPS) for _ in range(2)]


def test_an_evaluation_that_was_cut_off_is_made_on_resume(tmp_path, whole):
    staleness, _, _, left = whole
    config = recipe(tmp_path, staleness)
    run = fit(config, FakeRoles())
    (run.path / "eval" / "step_000004.parquet").unlink()
    fit(config, FakeRoles(), resume=True)
    assert recorded(config) == left


def test_the_seconds_of_the_steps_leave_nothing_out(tmp_path):
    """Each task takes 0.1 s as soon as it is given out, and each checkpoint 0.2 s: the first begins after step 2."""
    config, roles = recipe(tmp_path), FakeRoles()
    generate, save = roles.rollouts.generate, roles.learners.save

    def slowly(seconds, call):
        def run(*arguments):
            time.sleep(seconds)
            return call(*arguments)

        return run

    roles.rollouts.generate, roles.learners.save = slowly(0.1, generate), slowly(0.2, save)
    lines = fit(config, roles).read_metrics()[1:]
    assert all(line["seconds/generate"] >= 0.2 for line in lines)
    assert [line["seconds/checkpoint"] >= 0.2 for line in lines if "seconds/checkpoint" in line] == [False, True, True]
    stages = ("generate", "update", "export", "eval", "checkpoint")
    for line in lines:
        assert sum(line.get(f"seconds/{stage}", 0.0) for stage in stages) <= line["seconds/step"]
    whole_s = sum(line["seconds/step"] for line in lines)
    assert whole_s == pytest.approx(lines[-1]["elapsed_s"])
    assert whole_s >= lines[-1]["time"] - lines[0]["time"]


def test_a_checkpoint_begins_before_the_next_tasks_are_given_out(tmp_path):
    """A process with both roles would answer between two tasks only."""
    script = Script()
    fit(recipe(tmp_path), FakeRoles(script))
    begun = script.calls.index("save")
    assert script.calls[:begun].count("generate") == 2 * 2
    assert "generate" in script.calls[begun:]


def test_checkpoints_that_cannot_be_written_leave_the_one_before_and_the_end_says_so(tmp_path, monkeypatch, caplog):
    config, roles = recipe(tmp_path), FakeRoles()

    def full(folder) -> None:
        raise OSError("no space left")

    roles.learners.save = full
    with caplog.at_level(logging.WARNING), pytest.raises(UserError, match="continue with --resume from step 0"):
        fit(config, roles)
    assert "no checkpoint of step 2: no space left" in caplog.text


def test_a_learner_that_is_lost_before_a_checkpoint_with_weights_begins_at_that_of_step_0(tmp_path):
    config, script = recipe(tmp_path), Script()
    fit(config, FakeRoles(script))
    second_update = [i for i, name in enumerate(script.calls) if name == "update"][1]
    (tmp_path / "again").mkdir()
    config = recipe(tmp_path / "again", "checkpoint.keep=9")
    run = fit(config, FakeRoles(Script(second_update, lost)))
    assert [line["step"] for line in run.read_metrics()] == [0, 1, 2, 3, 4]
    assert [line.get("learner_restarts") for line in run.read_metrics()] == [None, 1, 1, 1, 1]
    first = run.path / "checkpoints" / "step_000000"
    assert sorted(file.name for file in first.iterdir()) == ["manifest.json", "recipe.yaml", "state.json"]


def test_a_learner_that_is_lost_with_all_checkpoints_ends_the_run_and_no_record_is_touched(tmp_path):
    config = recipe(tmp_path)
    run = RunFiles(Path(config.output) / config.name)
    kept = []

    class LosesTheCheckpointsToo(Script):
        def __call__(self, name: str) -> None:
            super().__call__(name)
            if name == "update" and self.calls.count("update") == 3:
                shutil.rmtree(run.path / "checkpoints")
                kept.append(run.metrics_file.read_bytes())
                lost()

    with pytest.raises(UserError, match="has recorded step 2, but there is no checkpoint of it in"):
        fit(config, FakeRoles(LosesTheCheckpointsToo()))
    assert run.metrics_file.read_bytes() == kept[0]
    assert len(list((run.path / "experience").iterdir())) == 2


def test_a_driver_whose_run_another_one_has_taken_over_ends(tmp_path):
    config = recipe(tmp_path)
    run = RunFiles(Path(config.output) / config.name)

    class TakenOver(Script):
        def __call__(self, name: str) -> None:
            super().__call__(name)
            if self.calls.count("update") == 1 and name == "update":
                run.checkpoints(config.checkpoint).claim()

    with pytest.raises(UserError, match="another driver has taken over the checkpoints"):
        fit(config, FakeRoles(TakenOver()))
    assert [path.name for path in (run.path / "checkpoints").glob("step_*")] == ["step_000000"]


@pytest.mark.parametrize("staleness", [0, 2])
def test_a_run_ends_when_its_patience_does_and_continues_with_more(tmp_path, monkeypatch, staleness, caplog):
    """Held-out scores .1 .3 .2 .3: with a patience of 1 the third evaluation ends the run, and .3 is no new best."""
    scores = {1: 0.1, 2: 0.3, 3: 0.2, 4: 0.3}
    made = iter(scores.values())
    monkeypatch.setattr("system.loop.trainer.best_by", lambda config, evaluations: next(made) if evaluations else None)
    changes = ("eval.every=1", "checkpoint.every=1", f"learner.max_staleness={staleness}")
    config, roles = recipe(tmp_path, "eval.patience=1", *changes), FakeRoles()
    run = fit(config, roles)
    assert (roles.learners.current, run.last_step()) == (3, 3)
    assert "the run ends at step 3 of 4: eval.patience" in caplog.text
    assert roles.learners.models == {"lora": roles.learners.versions[3], "best": best_weights(run, config)}
    again = FakeRoles()
    fit(config, again, resume=True)
    assert again.script.calls.count("update") == 0
    assert staleness or "generate" not in again.script.calls, "what no update will use is not generated"
    longer = recipe(tmp_path, "eval.patience=3", *changes)
    whole = fit(longer, FakeRoles(), resume=True)
    state = whole.checkpoints(longer.checkpoint).latest().state
    assert (state.step, state.best_heldout, state.evaluations_since_best) == (4, 0.3, 2)


def test_named_sets_are_recorded_beside_the_default_one_and_forgotten_with_their_step(tmp_path):
    config = recipe(tmp_path, f"eval.sets={{more: {{prompts: {tmp_path / 'prompts.txt'}, scorers: [judge]}}}}")
    run = fit(config, FakeRoles())
    names = [f"step_{step:06d}.parquet" for step in (0, 2, 4)]
    for folder in ("eval", "eval/more"):
        assert sorted(file.name for file in (run.path / folder).glob("*.parquet")) == names
    assert all("eval.more/judge" in line for line in run.read_metrics() if line["step"] % 2 == 0)
    assert len(list((run.path / "samples" / "step_000004" / "more").iterdir())) == 1
    assert run.has_eval(4, ["heldout", "more"])
    run.forget_after(2)
    assert not run.has_eval(4, ["more"])
    assert run.has_eval(2, ["heldout", "more"])


def test_warnings_are_once_in_the_log_the_metrics_and_on_the_screen_and_a_resumed_run_goes_on_with_them(
    tmp_path, caplog, capsys
):
    """All scores are equal: a warning at the end of the first window, and none until the pause is over."""
    config, screen = recipe(tmp_path, f"steps={WINDOW + 2}"), Console()
    logging.getLogger().addHandler(ScreenHandler())

    def part(resume: bool, stop_at: int) -> RunFolder:
        roles = FakeRoles(Script())
        score = roles.rewards.score

        def equal(*what):
            done = score(*what)
            for score_M in done.result().by_scorer.values():
                score_M[:] = 1.0
            return done

        def check_stop() -> None:
            if run.last_step() == stop_at:
                raise Stopped("SIGTERM")

        roles.rewards.score = equal
        train = read_prompts(config.data.train)
        with open_run(config, resume) as run, Progress(config.steps, screen) as progress:
            trainer = Trainer(config, run, roles, train, None, Recorder(config, run, progress), check_stop)
            with contextlib.suppress(Stopped):
                trainer.fit()
        return run

    part(False, WINDOW)
    run = part(True, -1)
    (said,) = {line["step"]: line["warnings"] for line in run.read_metrics() if "warnings" in line}.items()
    assert said[0] == WINDOW
    assert [record.getMessage() for record in caplog.records if "teach nothing" in record.getMessage()] == said[1]
    shown = "".join(capsys.readouterr())
    assert shown.count(said[1][0]) == shown.count("teach nothing") == 1
