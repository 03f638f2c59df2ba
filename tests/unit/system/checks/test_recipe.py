"""Checks of a recipe: what each accepts, and the sentence with which it refuses."""

import json
import socket

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from actors.policy.policy import Policy
from actors.policy.trained import LORA_FILE
from actors.rollout.plans import make_plan
from services.base.errors import UserError
from system.checks import recipe
from system.checks.checks import By, refuse
from system.recipe.load import load_config
from tests.helpers.tiny import tiny_settings


@pytest.mark.parametrize(
    ("overrides", "command", "refused"),
    [
        (["policy.device=cuda"], By.TRAIN, r"rollout\.num_gpus and learner\.num_gpus = 0"),
        (["policy.device=cuda", "rollout.num_gpus=1"], By.TRAIN, r"but learner\.num_gpus = 0"),
        (["policy.device=cuda", "rollout.num_gpus=1"], By.EVAL, None),
        (["policy.device=cuda"], By.EVAL, r"but rollout\.num_gpus = 0"),
        (["policy.device=cuda", "rollout.num_gpus=1", "placement=colocated"], By.TRAIN, None),
        (["policy.device=cuda", "learner.num_gpus=1", "placement=colocated", "rollout.workers=1"], By.TRAIN, None),
        (
            ["policy.device=cuda", "learner.num_gpus=1", "placement=colocated"],
            By.TRAIN,
            r"the workers beyond learner\.ranks",
        ),
        (["scorers.0.options.device=gpu"], By.TRAIN, r"options\.device `gpu`: it must be auto, cpu, cuda or cuda:N"),
        (["policy.device=cuda", "placement=colocated"], By.TRAIN, r"the workers beyond learner\.ranks"),
        (["policy.device=cuda", "placement=colocated", "rollout.workers=1"], By.TRAIN, r"and learner\.num_gpus = 0"),
        (["policy.device=auto"], By.TRAIN, None),
        (["scorers.0.options.device=cuda"], By.EVAL, r"scorer `pickscore`: options\.device is cuda but num_gpus is 0"),
        (["scorers.0.options.device=cuda", "scorers.0.num_gpus=0.1"], By.EVAL, None),
    ],
)
def test_a_role_that_is_to_use_a_gpu_must_ask_for_one(monkeypatch, overrides, command, refused):
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")  # whose nodes may have the GPUs
    monkeypatch.setattr("system.checks.machine.check_start", lambda: None)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    config = load_config("shapes", overrides)
    if refused is None:
        refuse(config, command)
    else:
        with pytest.raises(UserError, match=refused):
            refuse(config, command)


def test_each_scorer_is_tried():
    with socket.create_server(("127.0.0.1", 0)) as closed:
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}"
    far = {"name": "far", "scorer": "remote", "options": {"url": nobody, "scorer": "size"}}
    config = load_config("shapes", [f"scorers=[{{name: size, scorer: jpeg_size}}, {json.dumps(far)}]"])
    size, lost = recipe.scores(config)
    assert (size.level, size.what) == ("ok", "score of size")
    assert "for a grey image; loaded in" in size.says
    assert (lost.level, nobody in lost.says) == ("problem", True)


@pytest.mark.parametrize("key", ["policy.adapter", "objective.reference"])
def test_an_adapter_that_is_torn_or_not_finite_is_refused(key, sd3_folder, tmp_path):
    Policy(tiny_settings(sd3_folder), seed=0).save(tmp_path)
    lora = tiny_settings(sd3_folder).lora
    config = load_config(
        "shapes",
        [
            f"policy.model={sd3_folder}",
            f"policy.lora={{rank: {lora.rank}, alpha: {lora.alpha}}}",
            "objective.kl=0.1",
            f"{key}={tmp_path}",
        ],
    )
    assert [(finding.level, finding.what) for finding in recipe.adapters(config)] == [("ok", key)]
    file = tmp_path / LORA_FILE
    arrays = load_file(file)
    next(iter(arrays.values()))[0, 0] = np.nan
    save_file(arrays, file)
    with pytest.raises(UserError, match=rf"^{key}: .* holds NaN or infinity"):
        list(recipe.adapters(config))
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(UserError, match="is torn or not a safetensors file"):
        list(recipe.adapters(config))


class Count:
    """A scorer that reads the column `count`."""

    columns = ("count",)

    @staticmethod
    def check_row(row):
        if row["count"] < 1:
            raise ValueError(f"asks for {row['count']} objects")

    def __call__(self, images_NHWC, prompts, rows):
        return np.array([row["count"] for row in rows])


class Rank:
    """A scorer that compares images."""

    groupwise = True

    def __call__(self, images_NHWC, prompts):
        return np.zeros(len(prompts))


def counting(tmp_path, *rows: dict, name: str = "p.jsonl", weight: float = 1):
    file = tmp_path / name
    file.write_text("".join(json.dumps({"prompt": "a", **row}) + "\n" for row in rows))
    scorers = [
        {"name": "size", "scorer": "jpeg_size"},
        {"name": "count", "scorer": f"{__name__}:Count", "weight": weight},
    ]
    return load_config("shapes", [f"data.train={file}", "data.prompts_per_step=1", f"scorers={json.dumps(scorers)}"])


def test_a_prompt_file_without_a_column_that_a_scorer_reads_is_refused_at_the_start(tmp_path):
    with pytest.raises(
        UserError, match=r"scorer `count` reads the column `count`, which `\S+p\.jsonl` does not have; add"
    ):
        refuse(counting(tmp_path, {"other": 1}), By.LOCAL)
    train, heldout = recipe.prompts(counting(tmp_path, {"other": 1}, weight=0))
    assert train.level == "ok", "it is not trained on"
    assert "scorer `count` reads the column `count`" in heldout.says
    with pytest.raises(UserError, match=r"cannot use `\S+p\.jsonl`, line 2: the row asks for 0 objects; correct it"):
        refuse(counting(tmp_path, {"count": 1}, {"count": 0}), By.DRY_RUN)
    train, _ = recipe.prompts(counting(tmp_path, {"count": 1}, {"count": None}, {}))
    assert train.level == "ok", "single rows without a value are holes"


def test_the_doctor_scores_with_the_first_prompt_whose_row_can_be_used(tmp_path):
    _, counted = recipe.scores(counting(tmp_path, {"other": 1}, {"count": 3}))
    assert (counted.level, "Count: 3 for a grey image" in counted.says) == ("ok", True)


def test_a_groupwise_scorer_needs_requests_as_large_as_a_task():
    scorers = [{"name": "rank", "scorer": f"{__name__}:Rank", "request_images": 4}]
    config = load_config("shapes", [f"scorers={json.dumps(scorers)}"])
    (finding,) = recipe.scorers(config)
    leaves = make_plan(config.plan, config.policy.num_steps).leaves
    assert finding.level == "problem"
    assert finding.says.endswith(f"in one request; set scorers.0.request_images to at least {leaves}")
    enough = load_config("shapes", [f"scorers={json.dumps([{**scorers[0], 'request_images': leaves}])}"])
    assert [finding.level for finding in recipe.scorers(enough)] == ["ok"]


class WinRate(Rank):
    """A scorer whose mean says nothing."""

    relative = True


@pytest.mark.parametrize(
    ("weight", "settings", "level", "why"),
    [
        (1, ["eval.images_per_prompt=99"], "ok", "WinRate"),  # more than request_images, but they are not compared
        (1, ["eval.patience=2", "eval.best=size"], "ok", "WinRate"),
        (0, [], "problem", "so its mean says nothing; give it a weight to train on it, or remove it"),
        (1, ["eval.best=win"], "problem", "so its mean says nothing; set eval.best to another scorer"),
        (1, ["eval.best=win.margin"], "problem", "set eval.best to another scorer"),
        (1, ["eval.patience=2"], "problem", "eval.patience would never end the run; set eval.best to another scorer"),
    ],
)
def test_the_mean_of_a_relative_scorer_chooses_nothing(weight, settings, level, why):
    win = {"name": "win", "scorer": f"{__name__}:WinRate", "weight": weight, "request_images": 96}
    scorers = [win, {"name": "size", "scorer": "jpeg_size", "weight": 0 if weight else 1}]
    finding, _ = recipe.scorers(load_config("shapes", [f"scorers={json.dumps(scorers)}", *settings]))
    assert (finding.level, finding.says.endswith(why)) == (level, True), finding.says


def test_so_does_one_of_weight_0_that_opens_a_gate():
    gate = {"name": "rank", "scorer": f"{__name__}:Rank", "weight": 0, "request_images": 4}
    gated = {"name": "size", "scorer": "jpeg_size", "gate": {"score": "rank", "min": 0}}
    config = load_config("shapes", [f"scorers={json.dumps([gate, gated])}"])
    leaves = make_plan(config.plan, config.policy.num_steps).leaves
    says = [finding.says for finding in recipe.scorers(config)]
    assert says[0].endswith(f"compares all {leaves} images of a task in one request; set scorers.0.request_images to "
                            f"at least {leaves}")  # fmt: skip
