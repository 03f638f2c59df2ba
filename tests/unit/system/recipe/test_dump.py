"""A resolved recipe as YAML: every default, and where each value came from."""

import pytest
import yaml

from services.base.yaml_text import load_yaml
from system.recipe.dump import dump_config, dump_with_sources
from system.recipe.load import load_config, load_with_sources, parse_config
from system.recipe.model import RunConfig


def test_every_default_is_printed_and_reads_back_equal(recipe):
    config = load_config(recipe())
    assert config.name == "mine"
    assert config.learner.lr == 3e-4
    assert parse_config(RunConfig, load_yaml(dump_config(config), "printed"), "printed") == config


def sources(text):
    """The comment of each line by its key, for keys that stand once."""
    lines = [line.rpartition("  # ") for line in text.splitlines()]
    return {value.partition(":")[0].strip(): source for value, _, source in lines if source}


@pytest.mark.parametrize("name", ["shapes_both", "sd35_geneval_8gpu", "flux_mixgrpo_flash"])
def test_comments_change_nothing_and_stand_in_one_column(name):
    config, where = load_with_sources(name)
    text = dump_with_sources(config, where)
    assert load_yaml(text, "printed") == load_yaml(dump_config(config), "printed")
    assert len({line.rindex("  # ") for line in text.splitlines() if "  # " in line}) == 1
    values = [line for line in dump_config(config).splitlines() if not line.rstrip().endswith(":")]
    assert text.count("  # ") == len(values)


def test_each_value_has_the_file_the_override_or_the_default_that_gave_it(tmp_path):
    (tmp_path / "big.yaml").write_text("rollout: {workers: 3}\n")
    mine = {"extends": "sd35_flow_grpo", "hardware": "big.yaml", "steps": 7, "log": {"tensorboard": True}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(mine | {"scorers": {"pickscore": {"replicas": 5}}}))
    text = dump_with_sources(
        *load_with_sources(str(tmp_path / "mine.yaml"), ["learner.ranks=2", "seed=0", "plan.seeds=12"])
    )
    found = sources(text)
    recipe, layer = str(tmp_path / "mine.yaml"), str(tmp_path / "big.yaml")
    assert (
        found
        | {
            "seed": "override",
            "ranks": "override",
            "seeds": "override",
            "workers": layer,
            "steps": recipe,
            "min": recipe,
            "max": recipe,
            "target": "default",
            "tensorboard": recipe,
            "wandb": "default",
            "alpha": "configs/models/sd35_medium.yaml",
            "shared_noise": "default",
            "kl": "actors/methods/flow_grpo.py",
            "optimizer_steps": "configs/models/sd35_medium.yaml",
            "processor": "configs/rewards/pickscore.yaml",
            "decay": "configs/sd35_pickscore.yaml",
            "lr": "configs/sd35_pickscore.yaml",
            "weight_decay": "default",
            "max_staleness": "default",
            "heldout": "configs/sd35_pickscore.yaml",
        }
        == found
    )
    assert text.startswith("name: mine ")


def test_a_value_that_was_replaced_has_no_source(tmp_path):
    """The trunk's seeds do not come from the file that set those of the chain."""
    (tmp_path / "mine.yaml").write_text("{extends: shapes_flow_grpo, plan: {name: window}}")
    found = sources(dump_with_sources(*load_with_sources(str(tmp_path / "mine.yaml"))))
    assert (found["seeds"], found["strategy"]) == ("default", "default")


def test_scorers_keep_their_sources_when_others_are_removed_or_added():
    overrides = ["scorers.pickscore=null", "scorers.judge.weight=1", "scorers.size={scorer: jpeg_size}"]
    config, where = load_with_sources("shapes", overrides)
    printed = dump_with_sources(config, where).partition("\nscorers:")[2]
    judge, size = printed.partition("name: size")[::2]
    assert "weight: 1.0" in judge
    assert [line.rpartition("# ")[2] for line in judge.splitlines() if "weight" in line] == ["override"]
    assert [line.rpartition("# ")[2] for line in judge.splitlines() if "scorer:" in line] == [
        "configs/rewards/miniature.yaml"
    ]
    assert [line.rpartition("# ")[2] for line in size.splitlines() if "scorer:" in line] == ["override"]


def test_long_texts_and_paths_with_line_breaks_stay_valid(tmp_path):
    folder = tmp_path / "two\nlines # \udc80"
    folder.mkdir()
    options = {"text": "many words # in a row " * 30, "lines": "a\nb: c\n", "none": {}, "deep": [{"a": [1, "2"]}, []]}
    scorer = {"name": "size", "scorer": "jpeg_size", "options": options}
    minimal = {"steps": 1, "policy": {"model": "m"}, "data": {"train": "p.txt"}, "scorers": [scorer]}
    (folder / "mine.yaml").write_text(yaml.safe_dump(minimal))
    config, where = load_with_sources(str(folder / "mine.yaml"))
    text = dump_with_sources(config, where)
    assert load_yaml(text, "printed") == load_yaml(dump_config(config), "printed")
    assert parse_config(RunConfig, load_yaml(text, "printed"), "printed") == config
