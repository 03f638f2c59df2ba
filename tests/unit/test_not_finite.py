"""NaN and infinity are holes with a reason, and never a plausible number: from the latent to the evaluation."""

import logging
from concurrent.futures import Future
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from actors.learner.monitor import Monitor
from actors.learner.settings import GrpoSettings
from actors.methods.awm import AwmSettings
from actors.methods.dgpo import DgpoSettings
from actors.methods.dpo import DpoSettings
from actors.methods.sft import SftSettings
from actors.policy.policy import Policy
from actors.policy.settings import FlowSDESettings
from actors.reward.scores import Scores, why_holes
from actors.rollout.images import ByteBudget, Images
from actors.rollout.plans import make_plan
from actors.rollout.plans.settings import TrunkSettings
from actors.rollout.results import Sampled
from actors.rollout.sampling import Sampling
from actors.rollout.settings import RolloutSettings
from actors.rollout.worker import Generator
from actors.trajectory import Task
from services.base.errors import UserError
from system.loop.evaluate import evaluate
from system.loop.heldout import read_sets
from system.recipe.load import load_config
from tests.helpers.exact_learners import SAMPLES, exact_learner, generated, gradient
from tests.helpers.learners import learner_of, tasks_of
from tests.helpers.scripted_pool import Handle, good, pool_of
from tests.helpers.tiny import tiny_settings

KERNEL = FlowSDESettings()
PLAN = make_plan(TrunkSettings(seeds=2, explorations=3), 5)


@pytest.fixture
def generator(sd3_folder) -> Generator:
    made = Generator(Policy(tiny_settings(sd3_folder), 0), KERNEL, RolloutSettings(micro_batch=8, decode_batch=4))
    made.load(made.policy.export(0))
    return made


def test_an_image_whose_pixels_or_latent_are_not_finite_is_known_and_its_neighbours_are_as_before(generator):
    task = Task(0, "a cat", (0, 0, 0), 0)
    _, whole, (_, finite_M, _) = generator.generate(task, PLAN)
    assert finite_M.all()
    decode, calls = generator.policy.family.decode, []

    def broken(latent_NZ):
        pixels = decode(latent_NZ)
        if not calls:
            pixels[1, 0, 3, 3] = torch.nan
            pixels[3, 2, 0, 0] = -torch.inf
        calls.append(1)
        return pixels

    generator.policy.family.decode = broken
    _, images, (_, finite_M, _) = generator.generate(task, PLAN)
    assert np.flatnonzero(~finite_M).tolist() == [1, 3]
    np.testing.assert_array_equal(images[finite_M], whole[finite_M])
    latent_MZ = torch.zeros(2, *generator.policy.family.latent_shape)
    latent_MZ[1, 0, 0, 0] = torch.inf
    generator.policy.family.decode = lambda latent_NZ: torch.zeros(len(latent_NZ), 3, 16, 16)
    assert generator.decode(latent_MZ, generator.policy.family)[1].tolist() == [True, False]


def test_a_model_of_nan_makes_no_finite_image(generator):
    with torch.no_grad():
        next(iter(generator.policy.transformer.parameters())).fill_(torch.nan)
    _, images, (_, finite_M, _) = generator.generate(Task(0, "a cat", (0, 0, 0), 0), PLAN)
    assert not images.any()
    assert not finite_M.any()
    _, finite_N = generator.sample(["a cat"], [(0, 0, 0, 0)], Sampling(16, 16, 5, 1.0))
    assert not finite_N.any()


def test_the_pool_makes_holes_of_them_whatever_a_scorer_says():
    scores = pool_of(a=Handle(good(1.0, 2.0))).score(None, ["x", "y"], ["a"], np.array([True, False])).result(10)
    np.testing.assert_array_equal(scores.by_scorer["a"], [1, np.nan])
    assert scores.not_finite == 1
    failed = Scores({}, errors={"b": "OSError: gone", "c": "scorer `c` returned text"})
    assert why_holes([scores, scores, failed]) == (
        "2 images: the model's latents or pixels are NaN or infinite; scorer `b`: OSError: gone; "
        "scorer `c`: returned text"
    )


def test_scorers_that_return_nan_without_a_reason_are_named():
    holes, good = np.array([1.0, np.nan]), np.ones(2)
    assert why_holes([Scores({"a": good, "b": holes}), Scores({"b": holes})]) == "NaN or infinity from `b`"


class Rollouts:
    """Makes evaluation images at once; those of the last prompts are not finite."""

    def __init__(self, finite: int) -> None:
        self.finite = finite

    def sample(self, prompts, addresses, sampling, weights):
        budget = ByteBudget(1)
        budget.reserve(1)
        finite_M = np.array([row < self.finite for _, _, row, _ in addresses])
        return resolved(Sampled(Images(None, 1, budget, np.copy), finite_M))


class Rewards:
    """Gives each image the score 1; `blind` scorers give none."""

    def __init__(self, *blind: str) -> None:
        self.blind = blind

    def score(self, images, prompts, names, finite_M, rows, group):
        scores = {name: np.where(finite_M & (name not in self.blind), 1.0, np.nan) for name in names}
        errors = {name: "OSError: away" for name in self.blind if name in names}
        return resolved(Scores(scores, errors=errors, not_finite=int((~finite_M).sum())))


def resolved(result):
    future = Future()
    future.set_result(result)
    return future


def evaluated(finite: int, *blind: str):
    overrides = ["eval.prompts=10", "eval.batch=4", "eval.grid=0", "scorers.0.name=reward"]
    config = load_config("shapes", overrides)
    roles = SimpleNamespace(rollouts=Rollouts(finite), rewards=Rewards(*blind))
    return evaluate(roles, config, read_sets(config), lambda: None)["heldout"]


def test_an_evaluation_leaves_out_what_is_not_finite_and_one_of_holes_alone_stops_the_run(caplog):
    assert evaluated(10).summary()["eval/reward"] == 1
    assert np.isnan(evaluated(3).table["reward"].to_numpy()).sum() == 7
    with pytest.raises(UserError, match=r"no held-out image has a score of `reward` \(10 images: the model's latents"):
        evaluated(0)
    with pytest.raises(UserError, match=r"`reward` \(scorer `reward`: OSError: away\)"):
        evaluated(10, "reward")
    with caplog.at_level(logging.WARNING):
        assert evaluated(10, "judge").summary()["eval_holes/judge"] == 10
        assert evaluated(3).summary()["eval_holes/reward"] == 7
    assert "10 of 10 held-out images have no score of `judge` (scorer `judge`: OSError: away)" in caplog.text
    assert "7 of 10 held-out images have no score of `reward` (7 images: the model's latents" in caplog.text


def test_an_evaluation_of_few_images_is_not_the_best():
    config = load_config("shapes", ["reward.max_hole_share=0.2", "scorers.0.name=reward", "scorers.0.weight=2"])
    assert evaluated(8).reward(config) == 2
    assert evaluated(7).reward(config) is None


def test_log_probs_of_nan_alone_are_drift_and_no_holes(sd3_folder):
    """Dropping such decisions would train on nothing, and say nothing."""
    ((decisions, advantage_NK),) = tasks_of(sd3_folder, 1)
    broken = replace(decisions, log_prob_NK=np.full_like(decisions.log_prob_NK, np.nan))
    with pytest.raises(UserError, match="rollout and learner disagree"):
        learner_of(sd3_folder).update([(broken, advantage_NK)])


@pytest.mark.parametrize("kl", [0.0, 0.03])
def test_a_decision_with_a_mean_of_nan_is_left_out_and_keeps_its_place_in_the_denominator(sd3_folder, kl):
    ((decisions, advantage_NK),) = tasks_of(sd3_folder, 1)
    learner = learner_of(sd3_folder, GrpoSettings(kl=kl))
    mean_NZ, log_prob_NK = decisions.mean_NZ.copy(), decisions.log_prob_NK.copy()
    mean_NZ[1].flat[0], log_prob_NK[1, 2] = np.nan, np.nan
    poisoned = replace(decisions, mean_NZ=mean_NZ, log_prob_NK=log_prob_NK)
    rest = np.delete(np.arange(len(decisions.step_N)), 1)
    without = replace(
        decisions,
        **{
            name: getattr(decisions, name)[rest]
            for name in ("step_N", "state_NZ", "mean_NZ", "log_prob_NK", "weight_N")
        },
        noise_NK=[decisions.noise_NK[n] for n in rest],
    )
    found = gradient(learner, [(poisoned, advantage_NK)])
    expected = gradient(learner_of(sd3_folder, GrpoSettings(kl=kl)), [(without, advantage_NK[rest])])
    share = without.weight_N.sum() / decisions.weight_N.sum()
    assert max(float(value.abs().max()) for value in expected.values()) > 0
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value * share, rtol=1e-5, atol=1e-9)


def test_an_image_of_nan_is_left_out_likewise(sd3_folder):
    objective = AwmSettings(kl=0.01, ema_weight=0.3)
    samples, advantage_M1 = generated(sd3_folder, SAMPLES, KERNEL)
    latent_MZ = samples.latent_MZ.copy()
    latent_MZ[2].flat[0] = np.inf
    poisoned = replace(samples, latent_MZ=latent_MZ)
    found = gradient(exact_learner(sd3_folder, objective, KERNEL, SAMPLES), [(poisoned, advantage_M1)])
    two = replace(samples, latent_MZ=samples.latent_MZ[:2])
    expected = gradient(exact_learner(sd3_folder, objective, KERNEL, SAMPLES), [(two, advantage_M1[:2])])
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value * 2 / 3, rtol=1e-8, atol=1e-14)


@pytest.mark.parametrize(
    "objective",
    [GrpoSettings(), AwmSettings(ema_weight=0), DpoSettings(), SftSettings(), DgpoSettings()],
    ids=lambda objective: objective.name,
)
def test_a_micro_batch_of_padding_is_finite_though_all_of_its_task_is_not(sd3_folder, objective):
    learner = exact_learner(sd3_folder, objective, KERNEL, TrunkSettings() if objective.name == "grpo" else SAMPLES)
    if objective.name == "grpo":
        item, _ = generated(sd3_folder, TrunkSettings(seeds=2, explorations=3), KERNEL)
        nan = {name: np.full_like(getattr(item, name), np.nan) for name in ("state_NZ", "mean_NZ", "log_prob_NK")}
    else:
        item, _ = generated(sd3_folder, SAMPLES, KERNEL)
        nan = {"latent_MZ": np.full_like(item.latent_MZ, np.nan)}
    loss = learner.objective.loss(learner.objective.idle(replace(item, **nan)), None)
    assert float(loss.total.detach()) == 0
    loss.total.backward()
    assert not any(parameter.grad.any() for parameter in learner.policy.parameters.values())


@pytest.mark.parametrize("delta", [float("nan"), float("inf"), 0.2])
def test_drift_that_is_not_a_number_is_no_small_drift(delta):
    monitor = Monitor(4, torch.device("cpu"))
    monitor.add_drift(torch.tensor([0, 2]), torch.tensor([[0.01], [0.01]]))
    monitor.check_drift(0.1)
    monitor.add_drift(torch.tensor([2]), torch.tensor([[delta]]))
    with pytest.raises(UserError, match="rollout and learner disagree"):
        monitor.check_drift(0.1)


def test_weights_that_are_not_finite_are_never_exported(sd3_folder):
    learner = learner_of(sd3_folder)
    with torch.no_grad():
        next(iter(learner.policy.parameters.values()))[0, 0] = torch.nan
    for export in (learner.export, learner.evaluated):
        with pytest.raises(UserError, match="policy version 0 has weights that are not finite"):
            export()


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("learner.lr=.inf", "learner.lr"),
        ("learner.betas=[.nan, 0.9]", "learner.betas.0"),
        ("kernel.noise_level=.nan", "kernel.noise_level"),
        ("scorers.0.weight=-.inf", "scorers.0.weight"),
        ("scorers.0.options.scale=.nan", "options contains a number that is not finite"),
    ],
)
def test_a_setting_that_is_not_finite_is_refused(override, named):
    with pytest.raises(UserError, match=named):
        load_config("shapes", [override])
