"""`tempflow init`: what it writes can be checked and trained at once, and nothing is overwritten."""

import pytest

from system.recipe.find import recipe_names
from system.recipe.load import load_config
from tests.helpers.run_folders import metrics

SMALL = ("steps=1", "plan.seeds=1", "data.prompts_per_step=1", "eval.prompts=2", "eval.every=1", "name=first")


def test_what_it_writes_trains_and_scores_with_the_own_reward(in_process, tmp_path):
    done = in_process("init", ".")
    assert done.returncode == 0, done.stderr
    assert "cd .; tempflow doctor recipe.yaml; tempflow train recipe.yaml" in done.stderr
    done = in_process("train", "recipe.yaml", "--local", *SMALL)
    assert done.returncode == 0, done.stderr
    first, last = metrics(tmp_path / "runs" / "first")
    assert 0 < first["eval/mine"] < 1
    assert last["reward/pickscore/mean"] > 0


@pytest.mark.parametrize("name", recipe_names())
def test_it_extends_every_recipe(in_process, tmp_path, name):
    assert in_process("init", "mine", "--recipe", name).returncode == 0
    config = load_config(str(tmp_path / "mine" / "recipe.yaml"))
    assert config.scorers[-1].name == "mine"
    assert len((tmp_path / "mine" / "prompts" / "train.txt").read_text().splitlines()) >= config.data.prompts_per_step


def test_nothing_is_overwritten_and_mistakes_are_one_sentence(in_process, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes").touch()
    done = in_process("init", "full")
    assert (done.returncode, done.stderr) == (
        2,
        "tempflow: `full` exists and is not an empty folder; name a new one\n",
    )
    done = in_process("init", "new", "--recipe", "shape")
    assert done.returncode == 2
    assert "tempflow has no recipe `shape`" in done.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("place", ["/proc/x", "/dev/null/x", "a" * 300])
def test_a_folder_that_cannot_be_made_is_one_sentence(in_process, place):
    done = in_process("init", place)
    assert done.returncode == 2
    assert done.stderr.startswith(f"tempflow: the folder `{place}` cannot be made (")
    assert done.stderr.endswith("); give another one\n")
