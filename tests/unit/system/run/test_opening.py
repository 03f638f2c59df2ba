"""Who may begin or continue a run, and that nothing is lost or mixed up."""

import shutil
from pathlib import Path

import pytest

from services.base import locks
from services.base.errors import UserError
from services.base.locks import InUse
from system.recipe.load import load_config
from system.recipe.model import RunConfig
from system.run.checkpoint import Checkpoints
from system.run.opening import newest_checkpoint, open_run
from system.run.recorded import differences, read_recorded
from tests.helpers.begun_runs import begin, config, kept_in, seal


def files(folder: Path) -> dict[str, bytes]:
    """All but the lock, which is empty."""
    found = [file for file in folder.rglob("*") if file.is_file() and file.name != "driver.lock"]
    return {str(file.relative_to(folder)): file.read_bytes() for file in found}


def refused(settings: RunConfig, resume: bool, message: str) -> None:
    """Opening the run raises the message, and nothing of the run folder is touched."""
    folder = Path(settings.output) / settings.name
    before = files(folder)
    with pytest.raises(UserError, match=message), open_run(settings, resume):
        pass
    assert files(folder) == before


def newest(settings: RunConfig) -> int:
    """The step that a resumed run continues from."""
    with open_run(settings, resume=True) as run:
        return newest_checkpoint(run, run.recorded, run.checkpoints(settings.checkpoint)).state.step


def test_a_run_that_has_begun_is_continued_only_if_asked_and_with_its_own_recipe(tmp_path):
    begin(config(tmp_path))
    refused(config(tmp_path), False, "the run `.*mine` exists; add --resume")
    refused(config(tmp_path, seed=5), True, "the run `.*mine` began with other settings: seed was")
    assert newest(config(tmp_path)) == 2


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_ended_before_it_began_may_begin_with_another_recipe(tmp_path, resume):
    """What a first try names as too large can be changed and tried again."""
    with open_run(config(tmp_path), resume) as run:
        assert newest_checkpoint(run, run.recorded, run.checkpoints(config(tmp_path).checkpoint)) is None
    with open_run(config(tmp_path, seed=5), resume) as run:
        assert run.recorded.config.seed == 5
        assert read_recorded(run.config_file.read_text(), "").config.seed == 5


def test_records_without_a_checkpoint_are_refused_and_not_begun_again(tmp_path):
    """A forgotten override, a storage that is not mounted, and checkpoints that somebody removed."""
    kept = tmp_path / "kept"
    begin(config(tmp_path, **kept_in(kept)))
    nowhere = rf"has recorded step 2, but there is no checkpoint of it in `{tmp_path}/mine/checkpoints`"
    advice = rf"its config.yaml names `{kept}/mine`, so add checkpoint.folder={kept}, or start a new run"
    refused(config(tmp_path), True, f"{nowhere}; {advice}")

    shutil.move(kept, tmp_path / "elsewhere")
    message = rf"no checkpoint of it in `{kept}/mine`; mount or restore the storage that had them, or"
    refused(config(tmp_path, **kept_in(kept)), True, message)
    assert not kept.exists()
    assert newest(config(tmp_path, **kept_in(tmp_path / "elsewhere"))) == 2


def test_a_run_kept_in_its_own_folder_is_not_looked_for_elsewhere(tmp_path):
    begin(config(tmp_path))
    refused(config(tmp_path, **kept_in(tmp_path / "other")), True, "mine/checkpoints`, so add checkpoint.folder=null")


def test_unreadable_records_and_experience_alone_are_records_too(tmp_path):
    run = begin(config(tmp_path))
    shutil.rmtree(run.path / "checkpoints")
    run.metrics_file.write_bytes(bytes(100))
    refused(config(tmp_path), True, "`.*mine` has begun, but there is no checkpoint")
    run.metrics_file.unlink()
    refused(config(tmp_path), True, "`.*mine` has begun, but there is no checkpoint")
    shutil.rmtree(run.path / "experience")
    with open_run(config(tmp_path), resume=True):
        pass


def test_checkpoints_that_go_away_under_a_run_are_missed_when_the_learner_is_restored(tmp_path):
    begin(config(tmp_path))
    with open_run(config(tmp_path), resume=True) as run:
        checkpoints = run.checkpoints(config(tmp_path).checkpoint)
        shutil.rmtree(run.path / "checkpoints")
        before = files(run.path)
        with pytest.raises(UserError, match="no checkpoint of it in"):
            newest_checkpoint(run, run.recorded, checkpoints)
        assert files(run.path) == before


@pytest.mark.parametrize("link", ["runs", "runs/mine", "runs/mine/checkpoints", "kept", "kept/mine"])
def test_a_link_that_leads_nowhere_is_named(tmp_path, link):
    settings = config(tmp_path / "runs", **(kept_in(tmp_path / "kept") if link.startswith("kept") else {}))
    begin(settings)
    path = tmp_path / link
    path.rename(tmp_path / "moved")
    path.symlink_to(tmp_path / "unmounted")
    for resume in (False, True):
        refused(settings, resume, f"`{path}` is a link to `{tmp_path}/unmounted`, which does not exist")
    (tmp_path / "moved").rename(tmp_path / "unmounted")
    assert newest(settings) == 2


def test_fewer_steps_than_are_recorded_do_not_drop_the_others(tmp_path):
    begin(config(tmp_path), recorded=4)
    with pytest.raises(
        UserError, match=r"recorded step 4, and .* of step 2: steps=3 would lose .* set steps to 4 or more"
    ):
        newest(config(tmp_path, steps=3))
    assert newest(config(tmp_path, steps=4)) == 2
    begin(config(tmp_path, name="other"), recorded=2)
    assert newest(config(tmp_path, name="other", steps=1)) == 2


def test_checkpoints_without_a_run_folder_are_continued_only_if_asked_and_with_their_own_recipe(tmp_path):
    def settings(**more) -> RunConfig:
        return config(tmp_path / "new", **kept_in(tmp_path / "kept"), **more)

    first = begin(config(tmp_path, **kept_in(tmp_path / "kept")))
    refused(settings(), False, "the run of the checkpoints in `.*kept/mine` exists; add --resume")
    refused(settings(seed=5), True, "kept/mine` began with other settings: seed was")
    with open_run(settings(), resume=True) as run:
        assert run.recorded.run == first.recorded.run
    shutil.rmtree(tmp_path / "new")
    for step in (0, 2):
        (tmp_path / "kept" / "mine" / f"step_{step:06d}" / "recipe.yaml").write_text("- no recipe")
    refused(settings(), True, "no checkpoint in .*kept/mine can be used")


def test_two_runs_of_one_name_and_recipe_are_told_apart(tmp_path):
    kept = kept_in(tmp_path / "kept")
    begin(config(tmp_path / "one", **kept))
    begin(config(tmp_path / "two"))
    of_another = "the checkpoints in `.*kept/mine` belong to another run of the same name"
    refused(config(tmp_path / "two", **kept), True, of_another)

    settings = config(tmp_path / "two")
    with open_run(settings, resume=True) as run:
        shutil.rmtree(run.path / "checkpoints")
        shutil.copytree(tmp_path / "kept" / "mine", run.path / "checkpoints")
        with pytest.raises(UserError, match="belong to another run of the same name"):
            newest_checkpoint(run, run.recorded, run.checkpoints(settings.checkpoint))


def test_a_checkpoint_of_another_recipe_is_not_restored(tmp_path):
    """The folder has a run of seed 0; somebody has put in a checkpoint of a run of seed 1."""
    begin(config(tmp_path))
    other = begin(config(tmp_path / "other", seed=1))
    newer = tmp_path / "mine" / "checkpoints" / "step_000003"
    with open_run(config(tmp_path / "other", seed=1), resume=True) as run:
        seal(run, config(tmp_path / "other"), 3)
    shutil.copytree(other.path / "checkpoints" / "step_000003", newer)
    refused(config(tmp_path), True, "belong to another run of the same name")
    with open_run(config(tmp_path, name="third"), resume=False) as run:
        shutil.copytree(newer.parent, run.path / "checkpoints")
        with pytest.raises(UserError, match="step_000003` began with other settings: seed was 1 and is 0"):
            newest_checkpoint(run, run.recorded, run.checkpoints(config(tmp_path).checkpoint))


def test_an_identity_is_drawn_once_a_run_and_is_in_each_checkpoint(tmp_path):
    one, two = begin(config(tmp_path)), begin(config(tmp_path, name="other"))
    assert one.recorded.run != two.recorded.run
    with open_run(config(tmp_path, steps=9), resume=True) as again:
        assert again.recorded.run == one.recorded.run
    for file in (one.config_file, *(one.path / "checkpoints").glob("*/recipe.yaml")):
        assert read_recorded(file.read_text(), "").run == one.recorded.run


def test_one_driver_at_a_time_writes_to_a_folder_of_checkpoints(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "WAIT_S", 0)
    kept = kept_in(tmp_path / "kept")
    with open_run(config(tmp_path / "one", **kept), resume=False):
        with (
            pytest.raises(InUse, match=r"the folder of checkpoints `.*kept/mine` is in use"),
            open_run(config(tmp_path / "two", **kept), resume=True),
        ):
            pass
        with open_run(config(tmp_path / "two", name="other", **kept), resume=False):
            pass
    with open_run(config(tmp_path / "two", **kept), resume=False):
        pass


def test_checkpoints_may_lie_in_the_run_folder_itself(tmp_path):
    settings = config(tmp_path, **kept_in(tmp_path))
    begin(settings)
    assert newest(settings) == 2


@pytest.mark.parametrize("damage", ["missing", "empty", "zeros", "half", "almost whole", "no text"])
def test_a_torn_recipe_is_that_of_the_newest_checkpoint(tmp_path, damage):
    run = begin(config(tmp_path, seed=3))
    whole = run.config_file.read_bytes()
    torn = {
        "empty": b"",
        "zeros": bytes(len(whole)),
        "half": whole[: len(whole) // 2],
        "almost whole": whole[: whole.index(b"\n  run: ") + 1],
        "no text": b"\xff\xfe" + whole,
    }
    run.config_file.unlink()
    if damage in torn:
        run.config_file.write_bytes(torn[damage])
    refused(config(tmp_path, seed=5), True, "began with other settings: seed was")
    with open_run(config(tmp_path, seed=3), resume=True) as again:
        assert [note for note in again.notes if "is used instead of config.yaml" in note]
        assert again.config_file.read_bytes() == whole
    run.config_file.write_bytes(torn.get(damage, b""))
    assert run.read_config().seed == 3


def test_prompts_or_a_model_that_were_replaced_are_named_and_must_be_accepted(tmp_path):
    prompts, model = tmp_path / "prompts.txt", tmp_path / "model"
    model.mkdir()
    (model / "weights").write_bytes(b"one")
    prompts.write_text("a cat")

    def settings(**more) -> RunConfig:
        return config(tmp_path, policy={"model": str(model)}, data={"train": str(prompts)}, **more)

    run = begin(settings())
    prompts.write_text("a dog")
    refused(
        settings(),
        True,
        "the content of data.train has changed since .* began; restore the old content, or add --accept-changes",
    )
    (model / "weights").write_bytes(b"two")
    refused(settings(), True, "the content of data.train, policy.model has changed since")
    with open_run(settings(), resume=True, accept_changes=True) as again:
        assert again.notes == [f"the run `{run.path}` continues with changed content of data.train, policy.model"]
    with open_run(settings(), resume=True) as again:
        assert again.notes == []
    prompts.write_text("a cat")
    refused(settings(), True, "the content of data.train has changed since")


def test_a_run_folder_is_the_recipe_of_its_run_wherever_it_lies_now(tmp_path):
    with open_run(load_config("shapes", ["name=mine", f"output={tmp_path}/old", "learner.lr=5e-4"]), False) as run:
        began = run.recorded.config
    shutil.move(tmp_path / "old", tmp_path / "new")
    for place in (tmp_path / "new" / "mine", tmp_path / "new" / "mine" / "config.yaml"):
        config = load_config(str(place), ["steps=60"])
        assert (config.name, config.output, config.steps) == ("mine", str(tmp_path / "new"), 60)
        assert differences(began, config) == {
            "output": f"output was {tmp_path}/old and is {tmp_path}/new",
            "steps": "steps was 50 and is 60",
        }


def test_the_log_says_which_free_settings_a_resumed_run_changes(tmp_path):
    begin(config(tmp_path, steps=9))
    with open_run(config(tmp_path, steps=12), resume=True) as run:
        assert run.notes == [f"the run `{run.path}` continues with changed settings: steps was 9 and is 12"]


def test_the_log_names_what_rounds_otherwise(tmp_path):
    begin(config(tmp_path))
    with open_run(config(tmp_path, rollout={"micro_batch": 6, "workers": 2}), resume=True) as run:
        continues, rounds = run.notes
    assert continues.endswith("rollout.workers was 1 and is 2; rollout.micro_batch was 24 and is 6")
    assert rounds == (
        "the weights will differ in rounding from those of an unchanged run: rollout.micro_batch was 24 and is 6"
    )


@pytest.mark.parametrize("damage", ["half", "without its end", "missing"])
def test_a_run_folder_whose_recipe_is_torn_has_it_in_its_checkpoint(tmp_path, damage):
    run = begin(config(tmp_path, seed=3))
    whole = load_config(str(run.path))
    file, text = run.config_file, run.config_file.read_text()
    match damage:
        case "half":
            file.write_text(text[: len(text) // 2])
        case "without its end":
            file.write_text(text[: text.index("tempflow:")])
        case "missing":
            file.unlink()
    assert load_config(str(run.path)) == whole
    shutil.rmtree(run.path / "checkpoints")
    with pytest.raises(UserError, match=r"has no intact config\.yaml and no checkpoint with the recipe"):
        load_config(str(run.path))


def test_places_that_cannot_be_used_are_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    refused(
        config(tmp_path, output=str(tmp_path / "file")),
        False,
        r"output: `.*file/mine` cannot be used \(File exists: '.*file'\)",
    )
    kept = {"checkpoint": {"folder": str(tmp_path / "file")}}
    refused(config(tmp_path, **kept), False, "checkpoint.folder: `.*file` cannot be used")

    def away(self):
        raise OSError("When listing objects: Couldn't connect to server")

    monkeypatch.setattr(Checkpoints, "recipe", away)
    refused(config(tmp_path), False, "checkpoint.folder: `.*checkpoints` cannot be used .When listing objects")


def test_what_would_be_refused_at_the_restore_is_refused_before_anything_starts(tmp_path):
    run = begin(config(tmp_path, steps=9), recorded=5, sealed=(0, 2))
    before = files(run.path)
    refused(config(tmp_path, steps=3), True, r"has recorded step \d+, and its newest checkpoint is of step 2")
    for name in ("step_000000", "step_000002"):
        (run.path / "checkpoints" / name / "state.json").write_text("{}")
    damaged = files(run.path)
    refused(config(tmp_path, steps=9), True, "can be used")
    assert files(run.path) == damaged != before
