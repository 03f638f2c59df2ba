"""The learner: exact ratios, the gradient of K separate forwards, resume, and what it refuses."""

import numpy as np
import pytest
import torch

from actors.learner.objectives.objective import clipped_surrogate
from actors.learner.settings import DecaySettings, EmaSettings, GrpoSettings, LearnerSettings
from actors.learner.weight_sets import WeightSet
from actors.methods.flow_dppo import DppoSettings
from actors.policy.kernels import FlowSDE
from actors.policy.policy import Policy
from actors.rollout.settings import RolloutSettings
from actors.rollout.worker import Generator
from actors.trajectory import Task
from services.base.errors import UserError
from services.base.storage import Folder
from tests.helpers.actions import actions_of
from tests.helpers.learners import KERNEL, PLAN, keep, learner_of, random_adapter, tasks_of


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("guidance", [1.0, 4.5])
@pytest.mark.parametrize("micro_batch", [1, 3, 8, 64])
@pytest.mark.parametrize("optimizer_steps", [1, 2])
def test_ratio_is_exactly_one_before_the_first_optimizer_step(
    sd3_folder, dtype, guidance, micro_batch, optimizer_steps
):
    changes = {"dtype": dtype, "guidance": guidance}
    batch = tasks_of(sd3_folder, **changes)
    learner = learner_of(
        sd3_folder,
        GrpoSettings(optimizer_steps=optimizer_steps),
        LearnerSettings(lr=1e-2, micro_batch=micro_batch, max_drift=1),
        **changes,
    )
    stats = learner.update(batch)
    assert stats.first_ratio_deviation == 0.0
    assert (stats.ratio_max_deviation == 0.0) == (optimizer_steps == 1)
    assert stats.grad_norm > 0
    elements = sum(parameter.numel() for parameter in learner.policy.parameters.values())
    clipped = min(stats.grad_norm, learner.settings.max_grad_norm)
    assert stats.grad_rms == pytest.approx(clipped / elements**0.5)


def test_later_minibatches_compare_with_the_policy_before_the_first_step(sd3_folder):
    """With two optimizer steps, the second minibatch's old log-probs are those of the untouched policy."""
    batch = tasks_of(sd3_folder)
    learner = learner_of(sd3_folder, GrpoSettings(optimizer_steps=2))
    objective = learner.objective
    untouched = [objective.old(micro) for micro in objective.micro_batches(*batch[1])]
    seen = []
    surrogate = objective.surrogate

    def spy(micro, mean_NZ, old):
        seen.append(old.clone())
        return surrogate(micro, mean_NZ, old)

    objective.surrogate = spy
    learner.update(batch)
    half = len(seen) // 2
    assert all(torch.equal(a, b) for a, b in zip(seen[half:], untouched, strict=True))


@pytest.mark.parametrize("settings", [GrpoSettings(epochs=2, optimizer_steps=2), DppoSettings(epochs=2)], ids=str)
def test_every_epoch_compares_with_the_policy_before_the_first_step(sd3_folder, settings):
    """Each minibatch is used once in an epoch, with the old values of the untouched policy."""
    batch = tasks_of(sd3_folder)
    learner = learner_of(sd3_folder, settings, LearnerSettings(lr=1e-2, max_drift=1))
    objective, seen = learner.objective, []
    untouched = [objective.old(micro) for item in batch for micro in objective.micro_batches(*item)]
    surrogate = objective.surrogate

    def spy(micro, mean_NZ, old):
        seen.append((old.clone(), mean_NZ.detach().clone()))
        return surrogate(micro, mean_NZ, old)

    objective.surrogate = spy
    stats = learner.update(batch)
    assert all(torch.equal(old, same) for (old, _), same in zip(seen, untouched * 2, strict=True))
    assert not any(torch.equal(a, b) for (_, a), (_, b) in zip(seen, seen[len(untouched) :], strict=False))
    rows = sum(len(item.step_N) for item, _ in batch)
    assert stats.nfe == settings.task_passes(rows, stale=False)
    assert stats.first_ratio_deviation == 0.0 < stats.ratio_max_deviation
    assert learner.version == 1
    assert {int(state["step"]) for state in learner.optimizer.state.values()} == {2 * settings.optimizer_steps}


def test_the_kl_term_compares_with_the_reference_that_the_recipe_names(sd3_folder, tmp_path):
    """The KL divergence of two Normals of one variance is symmetric, and that of a policy from itself is exactly 0."""
    other = random_adapter(sd3_folder, tmp_path)
    batch, lr = tasks_of(sd3_folder), LearnerSettings(lr=1e-12, max_drift=100)
    held_to_it = GrpoSettings(kl=0.1, reference=str(other))
    away = learner_of(sd3_folder, held_to_it, lr)
    before = away.export().checksum
    found = away.update(batch)
    mirrored = learner_of(sd3_folder, GrpoSettings(kl=0.1), lr, adapter=str(other)).update(batch)
    assert found.kl == pytest.approx(mirrored.kl, rel=1e-4)
    assert found.kl > 1e-3
    assert learner_of(sd3_folder, held_to_it, lr, adapter=str(other)).update(batch).kl == 0.0
    assert learner_of(sd3_folder, held_to_it, lr).export().checksum == before, "the reference is not what is trained"


@pytest.mark.parametrize("more", [1, -1])
def test_old_values_that_do_not_match_the_micro_batches_are_refused(sd3_folder, more):
    """They would be taken for "the weights still are the old ones", or for those of another micro-batch."""
    batch = tasks_of(sd3_folder)
    learner = learner_of(sd3_folder, GrpoSettings(optimizer_steps=2))
    micro_batches, asked = learner.objective.micro_batches, []

    def changing(item, advantage_NK):
        asked.append(item)
        micros = list(micro_batches(item, advantage_NK))
        second_time = sum(one is item for one in asked) == 2
        return iter([*micros, micros[0]] if second_time and more > 0 else micros[:more] if second_time else micros)

    learner.objective.micro_batches = changing
    with pytest.raises(ValueError, match=r"zip\(\) argument 2 is (shorter|longer) than argument 1"):
        learner.update(batch)


def test_gradient_of_one_forward_equals_k_separate_forwards_in_float64(sd3_folder):
    """∂L of one shared forward against autograd through one row an action, as the references compute it."""
    batch = tasks_of(sd3_folder, count=1)
    decisions, advantage_NK = batch[0]
    objective = GrpoSettings(clip_range=1e-4, kl=0.03)
    learner = learner_of(sd3_folder, objective)
    policy = learner.policy
    policy.transformer.double()
    policy.family.dtype = torch.float64
    policy.sigmas = policy.sigmas.double()
    learner.kernel = learner.objective.kernel = FlowSDE(KERNEL, policy.sigmas)
    learner.objective.weight_T = learner.objective.weight_T.double()
    forwards = []

    def velocity(x, sigma, cond):
        """As the family's own, which returns fp32 for the sampler; the oracle wants every bit."""
        forwards.append(len(x))
        return policy.transformer(
            hidden_states=x.double(),
            timestep=sigma * 1000,
            encoder_hidden_states=cond["prompt"],
            pooled_projections=cond["pooled"],
            return_dict=False,
        )[0]

    policy.family.velocity = velocity
    with torch.no_grad():
        for parameter in policy.parameters.values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    gradients = {}

    def capture():
        gradients.update({name: p.grad.clone() for name, p in policy.parameters.items()})
        return 0.0

    learner.optimizer_step = capture
    learner.update([(decisions, advantage_NK)])

    for parameter in policy.parameters.values():
        parameter.grad = None
    n, k = decisions.log_prob_NK.shape
    action_NKZ = actions_of(decisions, learner.kernel)
    assert n <= sum(forwards) < n * k, "the update makes one forward for each decision, and one of the base"
    cond = {name: torch.from_numpy(rows).double() for name, rows in decisions.conditioning.items()}
    total = 0.0
    for row in range(n):
        for j in range(k):
            x = torch.from_numpy(decisions.state_NZ[row : row + 1]).double()
            step = torch.tensor([decisions.step_N[row]])
            mean = learner.kernel.mean(x, policy.family.velocity(x, policy.sigmas[step], cond), step)
            with torch.no_grad(), policy.base():
                reference = learner.kernel.mean(x, policy.family.velocity(x, policy.sigmas[step], cond), step)
            std = learner.kernel.std_T[step]
            action = torch.from_numpy(action_NKZ[row : row + 1, j]).double()
            log_prob = torch.distributions.Normal(mean, std).log_prob(action).mean()
            ratio = (log_prob - log_prob.detach()).exp()
            advantage = float(np.float32(advantage_NK[row, j]))
            weight = learner.objective.weight_T[step][0]
            loss = -weight * advantage * ratio + 0.03 * ((mean - reference) ** 2 / (2 * std**2)).mean()
            total = total + loss / (n * k)
    total.backward()
    for name, parameter in policy.parameters.items():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-9, atol=1e-15)


def test_micro_batch_size_does_not_change_the_update(sd3_folder):
    batch = tasks_of(sd3_folder)
    results = []
    for size in (1, 5, 16):
        learner = learner_of(sd3_folder, GrpoSettings(kl=0.1), LearnerSettings(lr=1e-2, micro_batch=size))
        learner.update(batch)
        results.append(learner.policy.arrays())
    for name in results[0]:
        np.testing.assert_allclose(results[1][name], results[0][name], atol=2e-5)
        np.testing.assert_allclose(results[2][name], results[0][name], atol=2e-5)


def test_clipped_surrogate_by_hand():
    log_prob = torch.tensor([[0.3, -0.3, 0.3, -0.3]], dtype=torch.float64, requires_grad=True)
    advantage = torch.tensor([[2.0, 2.0, -2.0, -2.0]], dtype=torch.float64)
    loss, clipped = clipped_surrogate(log_prob.exp(), advantage, 0.2)
    up, down = np.exp(0.3), np.exp(-0.3)
    assert loss[0].tolist() == pytest.approx([-2 * 1.2, -2 * down, 2 * up, 2 * 0.8])
    assert clipped[0].tolist() == [True, False, False, True]
    loss.sum().backward()
    assert log_prob.grad[0].tolist() == pytest.approx([0, -2 * down, 2 * up, 0])


def test_advantage_zero_leaves_the_policy_where_it_is(sd3_folder):
    batch = [(decisions, np.zeros_like(advantage)) for decisions, advantage in tasks_of(sd3_folder)]
    learner = learner_of(sd3_folder, settings=LearnerSettings(lr=1e-2, weight_decay=0))
    before = learner.export().checksum
    learner.update(batch)
    assert learner.export().checksum == before
    assert learner.version == 1


@pytest.mark.parametrize("ema", [None, EmaSettings(every=1)])
def test_restored_learner_continues_bit_for_bit(sd3_folder, tmp_path, ema):
    batch = tasks_of(sd3_folder)
    settings = LearnerSettings(lr=1e-2, ema=ema, max_drift=10)
    learner = learner_of(sd3_folder, settings=settings)
    learner.update(batch)
    keep(learner, tmp_path)
    learner.update(batch)
    again = learner_of(sd3_folder, settings=settings)
    again.restore(Folder.at(str(tmp_path)), 1)
    assert again.version == 1
    again.update(batch)
    assert again.export().checksum == learner.export().checksum
    assert again.evaluated().checksum == learner.evaluated().checksum
    assert (again.evaluated().checksum == again.export().checksum) == (ema is None)


class SlowSettings(GrpoSettings):
    """Samples from one weight set and evaluates another, under names that nothing else knows."""

    def weight_sets(self, ema):
        sampled = WeightSet("sampled_one", "training_step", lambda n: 0.5, frozenset({"sampling"}))
        every_other = WeightSet("evaluated_one", "optimizer_step", lambda n: 0.25, frozenset({"evaluation"}), every=2)
        return sampled, every_other


def test_weight_sets_are_kept_as_the_objective_declares_them(sd3_folder, tmp_path):
    learner = learner_of(sd3_folder, SlowSettings(optimizer_steps=3), LearnerSettings(lr=1e-2, max_drift=10))
    start, batch = learner.policy.arrays(), tasks_of(sd3_folder, count=3)
    learner.update(batch)
    first = learner.policy.arrays()
    sampled, evaluated = learner.export().arrays, learner.evaluated().arrays
    learner.update(batch, behaviour=1)
    second = learner.policy.arrays()
    assert any((first[name] != start[name]).any() for name in start)
    for name in start:
        np.testing.assert_allclose(sampled[name], 0.5 * start[name] + 0.5 * first[name], atol=1e-7)
        again = 0.5 * sampled[name] + 0.5 * second[name]
        np.testing.assert_allclose(learner.export().arrays[name], again, atol=1e-7)
    assert learner.averages["sampled_one"].steps == 2, "once for each training step"
    assert learner.averages["evaluated_one"].steps == 6, "once for each optimizer step"
    assert any((evaluated[name] != start[name]).any() for name in start), "the second optimizer step moved it"
    assert {"sampled_one.safetensors", "evaluated_one.safetensors"} <= set(learner.files())
    keep(learner, tmp_path)
    restored = learner_of(sd3_folder, SlowSettings(optimizer_steps=3), LearnerSettings(lr=1e-2, max_drift=10))
    restored.restore(Folder.at(str(tmp_path)), 2)
    assert restored.export().checksum == learner.export().checksum
    assert restored.evaluated().checksum == learner.evaluated().checksum != learner.export().checksum


def test_the_learning_rate_falls_with_the_version_and_a_restored_learner_knows_where_it_was(sd3_folder, tmp_path):
    falling = LearnerSettings(lr=1e-2, max_drift=10, lr_decay=DecaySettings(steps=4, to=0.5))
    assert [falling.rate(version) for version in (0, 1, 2, 4, 9)] == pytest.approx([1e-2, 8.75e-3, 7.5e-3, 5e-3, 5e-3])
    batch = tasks_of(sd3_folder)
    settings = LearnerSettings(lr=1e-2, max_drift=10, lr_decay=DecaySettings(steps=2))
    learner = learner_of(sd3_folder, settings=settings)
    constant = learner_of(sd3_folder, settings=LearnerSettings(lr=1e-2, max_drift=10))
    for one in (learner, constant):
        one.update(batch)
    assert learner.export().checksum == constant.export().checksum
    keep(learner, tmp_path)
    for one in (learner, constant):
        one.update(batch)
    again = learner_of(sd3_folder, settings=settings)
    again.restore(Folder.at(str(tmp_path)), 1)
    again.update(batch)
    assert again.export().checksum == learner.export().checksum != constant.export().checksum
    arrays = learner.export().arrays
    learner.update(batch)
    assert all(np.array_equal(array, arrays[name]) for name, array in learner.export().arrays.items())


def of_version(learner, version):
    """Decisions sampled from the weights that the learner exports for a version."""
    generator = Generator(Policy(learner.policy.settings, 0), KERNEL, RolloutSettings(micro_batch=8))
    generator.load(learner.export(version))
    decisions, *_ = generator.generate(Task(0, "a prompt", (0, version, 0), version), PLAN)
    return [(decisions, np.random.default_rng(version).normal(size=decisions.log_prob_NK.shape))]


def test_a_stale_update_compares_with_the_version_that_generated(sd3_folder):
    """Two versions behind, the ratio is exp(log p now − log p of the rollout), and there is no drift."""
    learner = learner_of(sd3_folder, settings=LearnerSettings(lr=1e-2, micro_batch=8, max_staleness=2))
    for version in range(2):
        learner.update(of_version(learner, version))
    ((decisions, advantage),) = batch = of_version(learner, 0)
    micro = next(learner.objective.micro_batches(decisions, advantage))
    now_NK = learner.objective.old(micro)[: micro.real].numpy()
    ratio_NK = np.exp(now_NK - decisions.log_prob_NK)
    stats = learner.update(batch, behaviour=0)
    assert max(stats.drift_mean[:4]) < 1e-5
    assert stats.ratio_max_deviation == pytest.approx(abs(ratio_NK - 1).max(), rel=1e-3)
    assert stats.ratio_max_deviation > 1e-3
    assert stats.nfe == 4 * PLAN.decisions


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_last_versions_are_kept_and_survive_a_restart(sd3_folder, tmp_path, dtype):
    settings = LearnerSettings(lr=1e-2, max_staleness=2, max_drift=10)
    learner = learner_of(sd3_folder, settings=settings, dtype=dtype)
    exported = [learner.export(0).checksum]
    for version in range(4):
        learner.update(of_version(learner, max(0, version - 2)), behaviour=max(0, version - 2))
        exported.append(learner.export().checksum)
    assert [learner.export(version).checksum for version in (2, 3, 4)] == exported[2:]
    assert learner.export(3).version == 3
    with pytest.raises(RuntimeError, match=r"asked for policy version 1, holding \[2, 3, 4\]"):
        learner.export(1)
    keep(learner, tmp_path)
    again = learner_of(sd3_folder, settings=settings, dtype=dtype)
    again.restore(Folder.at(str(tmp_path)), 4)
    batch = of_version(again, 2)
    assert [again.export(version).checksum for version in (2, 3, 4)] == exported[2:]
    for one in (learner, again):
        one.update(batch, behaviour=2)
    assert again.export().checksum == learner.export().checksum


def test_drift_above_the_bound_stops_the_run(sd3_folder):
    (decisions, advantage), *_ = tasks_of(sd3_folder)
    decisions.log_prob_NK[:] += 0.2
    with pytest.raises(UserError, match="max_drift"):
        learner_of(sd3_folder).update([(decisions, advantage)])


def test_drift_is_reported_by_step(sd3_folder):
    batch = tasks_of(sd3_folder)
    stats = learner_of(sd3_folder).update(batch)
    assert len(stats.drift_mean) == 5
    assert np.isnan(stats.drift_mean[4])
    assert max(stats.drift_mean[:4]) < 1e-4
    assert stats.nfe == 3 * 2 * PLAN.decisions
