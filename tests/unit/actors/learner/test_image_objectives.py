"""The gradient of each objective on images against a float64 hand formula, and what holds of them all."""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch

from actors.learner.learner import Learner
from actors.learner.objectives.leaves import LEARNER_STREAM
from actors.learner.ranks import Ranks
from actors.learner.settings import EmaSettings, LearnerSettings
from actors.methods.awm import AwmSettings
from actors.methods.dgpo import DgpoSettings
from actors.methods.dpo import DpoSettings
from actors.methods.nft import NftSettings
from actors.methods.sft import SftSettings
from actors.policy.noise import noise
from actors.policy.policy import Policy
from actors.policy.settings import FlowSDESettings
from actors.rollout.plans.settings import SamplesSettings
from services.base.storage import Folder
from tests.helpers.exact_learners import (
    SAMPLES,
    STEPS,
    exact_learner,
    forward,
    generated,
    gradient,
    same,
    tensor,
)
from tests.helpers.learners import keep
from tests.helpers.tiny import tiny_settings


def hand_rows(learner, samples, advantage_M1, levels):
    """(x_t, x₀, ε, t, A) of each row, checked against the images, the addresses' noise and the schedule.

    Args:
        levels: the sampling steps that the noise levels of an image may come from, by hand.
    """
    rows = [(m, j) for m in range(len(samples.latent_MZ)) for j in range(len(levels))]
    sigmas = learner.policy.sigmas
    for micro in learner.objective.micro_batches(samples, advantage_M1):
        for row in range(micro.real):
            m, j = rows.pop(0)
            t = float(micro.time_N[row])
            assert t in [float(sigmas[i]) for i in levels[j]]
            x0 = tensor(samples.latent_MZ[m])
            drawn = noise([(*samples.address, m, LEARNER_STREAM, j)], x0.shape)
            torch.testing.assert_close(micro.image_NZ[row].double(), x0, rtol=0, atol=0)
            torch.testing.assert_close(micro.target_NZ[row].double(), drawn[0].double() - x0, rtol=1e-6, atol=1e-6)
            x = (1 - t) * x0 + t * drawn[0].double()
            torch.testing.assert_close(micro.x_NZ[row].double(), x, rtol=1e-6, atol=1e-6)
            assert float(micro.advantage_N[row]) == advantage_M1[m, 0]
            image, target = micro.image_NZ[row : row + 1].double(), micro.target_NZ[row : row + 1].double()
            yield micro.x_NZ[row : row + 1].double(), image, target + image, t, float(micro.advantage_N[row])
    assert not rows


def velocities(learner, x, t, conditioning):
    """v, v_ref, and v of each average."""
    policy, sigma = learner.policy, torch.tensor([t])
    v = forward(policy, x, sigma, conditioning)
    with torch.no_grad():
        with policy.base():
            others = {"reference": forward(policy, x, sigma, conditioning)}
        for name, average in learner.averages.items():
            with policy.holding(dict(average.shadow)):
                others[name] = forward(policy, x, sigma, conditioning)
    return v, others


def test_gradient_of_awm_is_that_of_the_hand_formula(sd3_folder):
    objective = AwmSettings(kl=0.02, ema_weight=0.5, noise_levels=3)
    samples, advantage = generated(sd3_folder, SAMPLES, FlowSDESettings())
    learner = exact_learner(sd3_folder, objective, FlowSDESettings(), SAMPLES)
    found = gradient(learner, [(samples, advantage)])
    conditioning = {name: tensor(rows) for name, rows in samples.conditioning.items()}
    total, count = 0.0, 0
    for x, x0, epsilon, t, a in hand_rows(learner, samples, advantage, [[0], [1], [2, 3]]):
        v, others = velocities(learner, x, t, conditioning)
        m = (v - (epsilon - x0)).square().mean()
        log_prob = -t * ((m + 1e-10) ** 0.25 - 1e-10**0.25) / 0.25
        ratio = (log_prob - log_prob.detach()).exp()
        loss = -max(-5.0, min(5.0, a)) / 5 * ratio
        loss = loss + 0.02 * (v - others["reference"]).square().mean() + 0.5 * (v - others["ema"]).square().mean()
        total, count = total + loss, count + 1
    (total / count).backward()
    assert count == 3 * 3
    same(found, learner.policy.parameters)


@pytest.mark.parametrize("beta", [1.0, 0.1])
def test_gradient_of_nft_is_that_of_the_hand_formula(sd3_folder, beta):
    objective = NftSettings(beta=beta, kl=1e-4, noise_levels=4)
    samples, advantage = generated(sd3_folder, SAMPLES, FlowSDESettings())
    learner = exact_learner(sd3_folder, objective, FlowSDESettings(), SAMPLES)
    old = {name: value.clone() for name, value in learner.averages["old"].shadow.items()}
    found = gradient(learner, [(samples, advantage)])
    learner.averages["old"].shadow = old
    conditioning = {name: tensor(rows) for name, rows in samples.conditioning.items()}
    total, count = 0.0, 0
    for x, x0, _, t, a in hand_rows(learner, samples, advantage, [[0], [1], [2], [3]]):
        v, others = velocities(learner, x, t, conditioning)
        share = min(1.0, max(0.0, a / 10 + 0.5))
        parts = []
        for velocity in (beta * v + (1 - beta) * others["old"], (1 + beta) * others["old"] - beta * v):
            difference = x - t * velocity - x0
            parts.append((difference.square() / difference.detach().abs().mean()).mean())
        loss = 5 * (share * parts[0] + (1 - share) * parts[1]) / beta
        total = total + loss + 1e-4 * (v - others["reference"]).square().mean()
        count += 1
    (total / count).backward()
    assert count == 3 * 4
    same(found, learner.policy.parameters)


def test_the_old_policy_of_nft_is_sampled_from_and_follows_slowly(sd3_folder):
    samples, advantage = generated(sd3_folder, SAMPLES, FlowSDESettings())
    policy = Policy(tiny_settings(sd3_folder), seed=0, parts="transformer")
    learner = Learner(policy, FlowSDESettings(), NftSettings(old_rate=0.2), LearnerSettings(lr=1e-2), [])
    before = learner.export().arrays
    learner.update([(samples, advantage)])
    first, current = learner.export().arrays, policy.arrays()
    for name, array in current.items():
        np.testing.assert_allclose(first[name], 0.2 * before[name] + 0.8 * array, atol=1e-6)
    learner.update([(samples, advantage)])
    second, later = learner.export().arrays, policy.arrays()
    for name, array in later.items():
        np.testing.assert_allclose(second[name], 0.4 * first[name] + 0.6 * array, atol=1e-6)


def chosen_rows(learner, samples, advantage_M1, sets, levels):
    """The noised rows of each set of images, set after set, built from the noise of the set's first image."""
    micros = list(learner.objective.micro_batches(samples, advantage_M1))
    assert {len(micro.x_NZ) for micro in micros} <= {learner.settings.micro_batch}
    rows = [(micro, row) for micro in micros for row in range(micro.real)]
    grid = learner.policy.sigmas.tolist()
    for images in sets:
        for j, steps in enumerate(levels):
            epsilon = tensor(
                noise([(*samples.address, images[0], LEARNER_STREAM, j)], samples.latent_MZ.shape[1:]).numpy()
            )
            drawn = []
            for image in images:
                micro, row = rows.pop(0)
                t, x0 = float(micro.time_N[row]), tensor(samples.latent_MZ[image : image + 1])
                assert t in [grid[i] for i in steps]
                torch.testing.assert_close(
                    micro.x_NZ[row : row + 1].double(), (1 - t) * x0 + t * epsilon, rtol=1e-6, atol=1e-6
                )
                target = micro.target_NZ[row : row + 1].double()
                torch.testing.assert_close(target, epsilon - x0, rtol=1e-6, atol=1e-6)
                drawn.append((t, micro.x_NZ[row : row + 1].double(), target))
            assert len({t for t, _, _ in drawn}) == 1
            yield drawn
    assert not rows


FOUR = SamplesSettings(seeds=4)
ADVANTAGES = np.array([0.5, -1.25, 1.75, -1.0])[:, None]
"""The third image is the best and the second the worst."""


@pytest.mark.parametrize(("copy_every", "other"), [(40, "copy"), (None, "reference")])
def test_gradient_of_dpo_is_that_of_the_hand_formula(sd3_folder, copy_every, other):
    """β is so large that σ is far from ½."""
    objective = DpoSettings(beta=800.0, copy_every=copy_every, noise_levels=3, share=0.8)
    samples, _ = generated(sd3_folder, FOUR, FlowSDESettings())
    learner = exact_learner(sd3_folder, objective, FlowSDESettings(), FOUR)
    found = gradient(learner, [(samples, ADVANTAGES)])
    conditioning = {name: tensor(rows) for name, rows in samples.conditioning.items()}
    total, inside, count = 0.0, [], 0
    for pair in chosen_rows(learner, samples, ADVANTAGES, [[2, 1]], [[0], [1], [2, 3]]):
        deltas = []
        for t, x, target in pair:
            v, others = velocities(learner, x, t, conditioning)
            deltas.append((v - target).square().mean() - (others[other] - target).square().mean())
        inside.append(-400.0 * (deltas[0] - deltas[1]))
        total, count = total + (1 + (-inside[-1]).exp()).log(), count + 1
    (total / count).backward()
    assert count == 3
    assert max(abs(value.item()) for value in inside) > 0.5
    same(found, learner.policy.parameters)


@pytest.mark.parametrize("kl", [0.0, 0.02])
def test_gradient_of_sft_is_that_of_the_hand_formula(sd3_folder, kl):
    objective = SftSettings(kl=kl, noise_levels=4, share=1.0)
    samples, _ = generated(sd3_folder, FOUR, FlowSDESettings())
    learner = exact_learner(sd3_folder, objective, FlowSDESettings(), FOUR)
    found = gradient(learner, [(samples, ADVANTAGES)])
    conditioning = {name: tensor(rows) for name, rows in samples.conditioning.items()}
    total, count = 0.0, 0
    for ((t, x, target),) in chosen_rows(learner, samples, ADVANTAGES, [[2]], [[0], [1], [2], [3, 4]]):
        v, others = velocities(learner, x, t, conditioning)
        total = total + (v - target).square().mean() + kl * (v - others["reference"]).square().mean()
        count += 1
    (total / count).backward()
    assert count == 4
    same(found, learner.policy.parameters)


@pytest.mark.parametrize(("seeds", "micro_batch"), [(4, 4), (3, 3), (3, 6), (2, 8)])
def test_gradient_of_dgpo_is_that_of_the_hand_formula(sd3_folder, seeds, micro_batch):
    """β is so large that σ is far from ½, and the clip so narrow that it cuts some gradients."""
    objective = DgpoSettings(beta=3000.0, clip_range=5e-5, kl=0.02, noise_levels=3, share=0.8)
    plan, advantages = SamplesSettings(seeds=seeds), ADVANTAGES[:seeds]
    samples, _ = generated(sd3_folder, plan, FlowSDESettings())
    settings = LearnerSettings(lr=1e-2, micro_batch=micro_batch)
    learner = exact_learner(sd3_folder, objective, FlowSDESettings(), plan, settings)
    found = gradient(learner, [(samples, advantages)])
    conditioning = {name: tensor(rows) for name, rows in samples.conditioning.items()}
    total, inside, cut = 0.0, [], []
    for group in chosen_rows(learner, samples, advantages, [list(range(seeds))], [[0], [1], [2, 3]]):
        losses, group_sum = [], 0.0
        for a, (t, x, target) in zip(advantages[:, 0], group, strict=True):
            v, others = velocities(learner, x, t, conditioning)
            m, m_ref, m_old = ((one - target).square().mean() for one in (v, others["reference"], others["old"]))
            group_sum = group_sum + 3000.0 * a * (m - m_ref).item() / seeds
            ratio = (m_old - m).exp().item()
            cut.append(ratio > 1 + 5e-5 if a > 0 else ratio < 1 - 5e-5)
            losses.append((a, m.detach() if cut[-1] else m, (v - others["reference"]).square().mean()))
        inside.append(group_sum)
        total = total + sum(a * m / (1 + np.exp(-group_sum)) + 0.02 * kl for a, m, kl in losses)
    (total / (3 * seeds)).backward()
    assert len(inside) == 3
    assert max(abs(value) for value in inside) > 0.5
    assert 0 < sum(cut) < len(cut)
    same(found, learner.policy.parameters)


def test_dgpo_compares_the_finite_images_in_one_micro_batch(sd3_folder):
    """The third of five images is not finite: the others are still compared at each noise level without it."""
    objective, plan = DgpoSettings(beta=3000.0, noise_levels=3), SamplesSettings(seeds=5)
    advantages = np.array([0.5, -1.25, 0.25, 1.75, -1.0])[:, None]
    samples, _ = generated(sd3_folder, plan, FlowSDESettings())
    broken = samples.latent_MZ.copy()
    broken[2] = np.nan
    settings = LearnerSettings(lr=1e-2, micro_batch=5)
    learner = exact_learner(sd3_folder, objective, FlowSDESettings(), plan, settings)
    micros = list(learner.objective.micro_batches(replace(samples, latent_MZ=broken), advantages))
    assert [(micro.real, micro.together, len(micro.x_NZ)) for micro in micros] == [(4, 4, 5)] * 3
    for micro in micros:
        assert len(set(micro.time_N.tolist())) == 1
        np.testing.assert_array_equal(micro.image_NZ[:4].numpy(), samples.latent_MZ[[0, 1, 3, 4]])
    found = gradient(learner, [(replace(samples, latent_MZ=broken), advantages)])
    assert all(value.isfinite().all() for value in found.values())
    assert not list(learner.objective.micro_batches(replace(samples, latent_MZ=broken * np.nan), advantages))


@pytest.mark.parametrize(
    "objective",
    [
        AwmSettings(guided=False, kl=0.02, ema_weight=0.5, noise_levels=3),
        NftSettings(guided=False, kl=0.02, noise_levels=3),
        DpoSettings(noise_levels=3),
        SftSettings(noise_levels=3),
        DgpoSettings(noise_levels=3),
    ],
    ids=lambda objective: objective.name,
)
def test_images_that_were_sampled_with_guidance_can_train_the_velocity_without(sd3_folder, objective):
    """The update is that of a policy without guidance, and costs what it costs there. That of the guided velocity
    differs, and costs twice as much."""

    def updated(guidance, settings):
        policy = Policy(tiny_settings(sd3_folder, guidance=guidance), 0, "transformer")
        learner = Learner(policy, FlowSDESettings(), settings, own, [])
        stats = learner.update([(samples, ADVANTAGES)] * 2)
        return policy.arrays(), stats.nfe

    samples, _ = generated(sd3_folder, FOUR, FlowSDESettings())
    negative = {f"negative_{name}": rows[::-1] + 1 for name, rows in samples.conditioning.items()}
    own = LearnerSettings(lr=1e-2, micro_batch=4, ema=EmaSettings())
    settings = objective.model_copy(update={"optimizer_steps": 2})
    plain, nfe = updated(1.0, settings)
    assert nfe == 2 * settings.task_passes(settings.rows(4, STEPS), stale=False)
    samples = replace(samples, conditioning=samples.conditioning | negative)
    found, found_nfe = updated(4.5, settings)
    guided, guided_nfe = updated(4.5, settings.model_copy(update={"guided": True}))
    assert (found_nfe, guided_nfe) == (nfe, 2 * nfe)
    for name, array in plain.items():
        np.testing.assert_array_equal(found[name], array)
    assert any((guided[name] != array).any() for name, array in plain.items())


@pytest.mark.parametrize(
    ("advantages", "pair"),
    [
        ([0.5, -1.25, 1.75, -1.0], [2, 1]),
        ([0.0, -1.25, 0.0, 1.25], [3, 1]),
        ([1.0, 1.0, -1.0, -1.0], [0, 2]),
        ([0.0, 0.0, 0.0, 0.0], None),
        ([0.0, 0.0, 1e-16, 0.0], None),
        ([np.inf, -1.25, 1.75, -np.inf], [2, 1]),
    ],
    ids=["in order", "holes", "ties", "equal or one scored", "equal but for rounding", "two of NaN"],
)
def test_dpo_pairs_the_best_image_with_the_worst(sd3_folder, advantages, pair):
    """±∞ stands for an image that is not finite, though it has an advantage."""
    samples, _ = generated(sd3_folder, FOUR, FlowSDESettings())
    latent_MZ, advantage_M1 = samples.latent_MZ.copy(), np.array(advantages)[:, None]
    latent_MZ[np.isinf(advantage_M1[:, 0])] = np.nan
    learner = exact_learner(sd3_folder, DpoSettings(noise_levels=2), FlowSDESettings(), FOUR)
    micros = list(learner.objective.micro_batches(replace(samples, latent_MZ=latent_MZ), advantage_M1.clip(-9, 9)))
    images = [micro.image_NZ[row].numpy() for micro in micros for row in range(micro.real)]
    assert len(images) == (4 if pair else 0)
    for n, image in enumerate(images):
        np.testing.assert_array_equal(image, samples.latent_MZ[pair[n % 2]])
    assert learner.objective.planned(samples) == 2


@pytest.mark.parametrize(
    ("objective", "rows"),
    [(DpoSettings(noise_levels=3), 6), (SftSettings(noise_levels=3), 3), (DgpoSettings(noise_levels=3), 12)],
    ids=["dpo", "sft", "dgpo"],
)
def test_a_prompt_without_a_best_image_keeps_its_place_in_the_denominator(sd3_folder, objective, rows):
    samples, _ = generated(sd3_folder, FOUR, FlowSDESettings())
    settings = LearnerSettings(lr=1e-2, micro_batch=4)
    alone = exact_learner(sd3_folder, objective, FlowSDESettings(), FOUR, settings)
    beside = exact_learner(sd3_folder, objective, FlowSDESettings(), FOUR, settings)
    expected = gradient(alone, [(samples, ADVANTAGES)])
    found = gradient(beside, [(samples, np.zeros((4, 1))), (samples, ADVANTAGES)])
    assert max(float(value.abs().max()) for value in expected.values()) > 0
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value / 2, rtol=1e-9, atol=1e-16)
    learner = Learner(Policy(tiny_settings(sd3_folder), 0, "transformer"), FlowSDESettings(), objective, settings, [])
    stats = learner.update([(samples, np.zeros((4, 1))), (samples, ADVANTAGES)])
    assert stats.nfe == rows * objective.passes == objective.task_passes(objective.rows(4, STEPS), stale=False)


@dataclass(frozen=True)
class Beside(Ranks):
    """A rank beside another one, which has `busy` micro-batches. Its sums are those of this rank alone."""

    busy: list[int] = field(default_factory=lambda: [0])

    def any(self, here, device):
        self.busy[0] -= 1
        return here or self.busy[0] >= 0


@pytest.mark.parametrize("advantages", [ADVANTAGES, 0 * ADVANTAGES], ids=["a pair", "no pair"])
@pytest.mark.parametrize(
    "objective",
    [DpoSettings(noise_levels=3), SftSettings(noise_levels=3), DgpoSettings(noise_levels=3)],
    ids=lambda objective: objective.name,
)
def test_a_sharded_rank_keeps_pace_with_padding_that_trains_nothing(sd3_folder, objective, advantages):
    """The other rank has four micro-batches. This one has one to three, or none, and runs padding."""
    samples, _ = generated(sd3_folder, FOUR, FlowSDESettings())
    alone = exact_learner(sd3_folder, objective, FlowSDESettings(), FOUR)
    expected = gradient(alone, [(samples, ADVANTAGES)])
    learner = exact_learner(sd3_folder, objective, FlowSDESettings(), FOUR)
    learner.policy.sharded, learner.ranks = True, Beside(busy=[4])
    backwards, accumulate = [], learner._accumulate
    learner._accumulate = lambda micro, *rest: (backwards.append(micro.real), accumulate(micro, *rest))
    found = gradient(learner, [(samples, advantages)])
    rows = objective.rows(4, STEPS) if advantages.any() else 0
    assert (len(backwards), sum(backwards)) == (4, rows)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value * bool(rows), rtol=1e-12, atol=0)


@pytest.mark.parametrize("objective", [DpoSettings(copy_every=2), SftSettings(copy_every=2)], ids=lambda o: o.name)
def test_dpo_and_sft_sample_from_a_copy_that_is_made_anew(sd3_folder, objective):
    samples, _ = generated(sd3_folder, FOUR, FlowSDESettings())
    policy = Policy(tiny_settings(sd3_folder), seed=0, parts="transformer")
    learner = Learner(policy, FlowSDESettings(), objective, LearnerSettings(lr=1e-2), [])
    sampled, trained = [learner.export().arrays], []
    for _ in range(4):
        learner.update([(samples, ADVANTAGES)])
        sampled.append(learner.export().arrays)
        trained.append(policy.arrays())
    for name in trained[0]:
        np.testing.assert_array_equal(sampled[1][name], sampled[0][name])
        np.testing.assert_array_equal(sampled[2][name], trained[1][name])
        np.testing.assert_array_equal(sampled[3][name], trained[1][name])
        np.testing.assert_array_equal(sampled[4][name], trained[3][name])
    assert any((trained[3][name] != trained[1][name]).any() for name in trained[0])


@pytest.mark.parametrize(
    "objective",
    [
        AwmSettings(),
        NftSettings(),
        DpoSettings(copy_every=2),
        DpoSettings(copy_every=None),
        SftSettings(copy_every=2),
        DgpoSettings(old_rate=0.2),
    ],
    ids=["awm", "nft", "dpo", "dpo from the base", "sft", "dgpo"],
)
def test_a_restored_learner_on_images_continues_bit_for_bit(sd3_folder, tmp_path, objective):
    samples, _ = generated(sd3_folder, FOUR, FlowSDESettings())

    def new():
        policy = Policy(tiny_settings(sd3_folder), seed=0, parts="transformer")
        settings = LearnerSettings(lr=1e-2, ema=EmaSettings(every=1))
        return Learner(policy, FlowSDESettings(), objective, settings, [])

    straight, broken = new(), new()
    for learner in (straight, broken):
        learner.update([(samples, ADVANTAGES)])
    keep(broken, tmp_path)
    again = new()
    again.restore(Folder.at(str(tmp_path)), 1)
    for learner in (straight, again):
        learner.update([(samples, ADVANTAGES)])
    for weights in ("export", "evaluated"):
        assert getattr(again, weights)().checksum == getattr(straight, weights)().checksum
        assert getattr(straight, weights)().checksum != getattr(new(), weights)().checksum
    assert straight.export().version == 2
