"""The Flow-SDE kernel and the noise weights against hand formulas and the published constants."""

import math

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

from actors.policy.kernels import CPS, Dance, FlowSDE, noise_weights
from actors.policy.settings import CPSSettings, DanceSettings, FlowSDESettings
from actors.policy.solvers import dpm_solver_2m, euler


def schedule(num_steps: int, shift: float = 3.0) -> torch.Tensor:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(num_steps)
    return scheduler.sigmas


def by_hand(x: float, v: float, sigmas: list[float], i: int, a: float) -> tuple[float, float]:
    sigma, dt = sigmas[i], sigmas[i + 1] - sigmas[i]
    g = a * math.sqrt(sigma / (1 - (sigmas[1] if sigma == 1 else sigma)))
    mean = x * (1 + g**2 / (2 * sigma) * dt) + v * (1 + g**2 * (1 - sigma) / (2 * sigma)) * dt
    return mean, g * math.sqrt(-dt)


@pytest.mark.parametrize("a", [0.3, 0.7, 1.2])
def test_mean_std_and_log_prob_follow_the_formulas(a):
    sigmas = schedule(10)
    kernel = FlowSDE(FlowSDESettings(noise_level=a), sigmas)
    torch.manual_seed(0)
    x, v, action = torch.randn(9, 2, 3), torch.randn(9, 2, 3), torch.randn(9, 4, 2, 3)
    step = torch.arange(9)
    mean, log_prob = kernel.mean(x, v, step), kernel.log_prob(action, kernel.mean(x, v, step), step)
    grid = sigmas.double().tolist()
    for i in range(9):
        for c in range(2):
            for w in range(3):
                expected, std = by_hand(float(x[i, c, w]), float(v[i, c, w]), grid, i, a)
                assert float(mean[i, c, w]) == pytest.approx(expected, abs=2e-6)
        assert float(kernel.std_T[i]) == pytest.approx(std, rel=1e-6)
        normal = torch.distributions.Normal(mean[i].double(), std)
        for k in range(4):
            assert float(log_prob[i, k]) == pytest.approx(
                float(normal.log_prob(action[i, k].double()).mean()), rel=1e-4
            )


def test_the_sde_keeps_the_marginal_of_a_straight_flow():
    """For x₀ = 0 the marginal at σ is N(0, σ²) and v = x/σ: one fine SDE step must keep it."""
    sigmas = torch.linspace(1, 0, 1001, dtype=torch.float64)
    kernel = FlowSDE(FlowSDESettings(noise_level=0.7), sigmas)
    i = 400
    x = torch.randn(200_000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * sigmas[i]
    step = torch.full((len(x),), i)
    noise = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    after = kernel.mean(x, x / sigmas[i], step) + kernel.std_T[i] * noise
    assert float(after.std()) == pytest.approx(float(sigmas[i + 1]), rel=5e-3)


def test_an_euler_step_is_diffusers_own():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(10)
    torch.manual_seed(0)
    x = ours = torch.randn(2, 4, 8, 8)
    for i, t in enumerate(scheduler.timesteps):
        v = torch.randn(2, 4, 8, 8)
        x = scheduler.step(v, t, x, return_dict=False)[0]
        ours = euler(ours, v, scheduler.sigmas[i], scheduler.sigmas[i + 1])
    assert torch.equal(x, ours)


def flux_sigmas(num_steps: int, mu: float) -> torch.Tensor:
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / num_steps, num_steps), mu=mu)
    return scheduler.sigmas


def qwen_sigmas(num_steps: int, tokens: int) -> torch.Tensor:
    """The schedule of Qwen-Image's own scheduler_config.json; μ runs from .5 at 256 tokens to .9 at 8192."""
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02)
    mu = 0.5 + (0.9 - 0.5) * (tokens - 256) / (8192 - 256)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / num_steps, num_steps), mu=mu)
    return scheduler.sigmas


@pytest.mark.parametrize(
    ("sigmas", "a", "constant", "weights"),
    [
        (schedule(10), 0.7, 2.2522, [1.577, 1.673, 1.208, 1.004, 0.882, 0.795, 0.719, 0.635, 0.508]),
        (flux_sigmas(10, 1.15), 0.9, 1.7260, [1.553, 1.643, 1.186, 0.987, 0.870, 0.788, 0.723, 0.661, 0.588]),
        (qwen_sigmas(10, 32 * 32), 1.2, 1.5329, [1.840, 1.852, 1.283, 1.019, 0.848, 0.717, 0.602, 0.487, 0.352]),
    ],
    ids=["sd3.5", "flux-1024px", "qwen-512px"],
)
def test_noise_weights_reproduce_the_published_constants(sigmas, a, constant, weights):
    std = FlowSDE(FlowSDESettings(noise_level=a), sigmas).std_T
    trained = list(range(9))
    assert 1 / float(std[trained].mean()) == pytest.approx(constant, abs=2e-4)
    ours = noise_weights(std, trained)
    assert ours[:9].tolist() == pytest.approx(weights, abs=1e-3)
    assert float(ours[9]) == 0
    assert float(ours[:9].mean()) == pytest.approx(1)


def random_step(sigmas: torch.Tensor, i: int) -> tuple[torch.Tensor, ...]:
    """A state, a velocity, three actions and the step, in float64."""
    torch.manual_seed(i)
    x, v = (torch.randn(1, 2, 3, dtype=torch.float64) for _ in range(2))
    return x, v, torch.randn(1, 3, 2, 3, dtype=torch.float64), torch.tensor([i])


@pytest.mark.parametrize("i", [0, 4, 8])
def test_dance_follows_its_own_formula_and_the_normal_density(i):
    sigmas = schedule(10).double()
    kernel = Dance(DanceSettings(noise_level=0.3), sigmas)
    x, v, action, step = random_step(sigmas, i)
    sigma, d_sigma = sigmas[i], sigmas[i + 1] - sigmas[i]
    score = -(x - (1 - sigma) * (x - sigma * v)) / sigma**2
    mean = x + v * d_sigma - 0.5 * 0.3**2 * score * d_sigma
    std = 0.3 * (-d_sigma).sqrt()
    torch.testing.assert_close(kernel.mean(x, v, step), mean)
    torch.testing.assert_close(kernel.std_T[i], std)
    density = torch.distributions.Normal(mean, std).log_prob(action[0]).flatten(1).mean(1)
    torch.testing.assert_close(kernel.log_prob(action, mean, step)[0], density)


@pytest.mark.parametrize("i", [0, 4, 8, 9])
def test_cps_follows_its_own_formula_and_its_surrogate(i):
    sigmas = schedule(10).double()
    kernel = CPS(CPSSettings(noise_level=0.8), sigmas)
    x, v, action, step = random_step(sigmas, i)
    following = sigmas[i + 1]
    std = following * math.sin(0.8 * math.pi / 2)
    clean, noise = x - sigmas[i] * v, x + (1 - sigmas[i]) * v
    mean = (1 - following) * clean + (following**2 - std**2).sqrt() * noise
    torch.testing.assert_close(kernel.mean(x, v, step), mean)
    torch.testing.assert_close(kernel.std_T[i], std)
    surrogate = -(action[0] - mean).square().flatten(1).mean(1)
    torch.testing.assert_close(kernel.log_prob(action, mean, step)[0], surrogate)
    other = mean + 0.1
    assert float(kernel.divergence(mean, other, step)) == pytest.approx(0.01)


def test_cps_keeps_the_noise_level_of_its_state():
    """With the true velocity of x = (1 − σ)·x₀ + σ·ε and fresh noise, the next state has the variance of σ'."""
    sigmas = schedule(10).double()
    kernel = CPS(CPSSettings(noise_level=0.5), sigmas)
    generator = torch.Generator().manual_seed(0)
    noise, fresh = (torch.randn(200_000, 1, dtype=torch.float64, generator=generator) for _ in range(2))
    step = torch.full((len(noise),), 5)
    after = kernel.mean(sigmas[5] * noise, noise, step) + kernel.std_T[5] * fresh
    assert float(after.std()) == pytest.approx(float(sigmas[6]), rel=5e-3)


def test_the_second_order_solver_is_diffusers_own():
    scheduler = DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++",
        solver_order=2,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        final_sigmas_type="zero",
        lower_order_final=True,
    )
    scheduler.set_timesteps(6)
    sigmas = scheduler.sigmas.double()
    assert float(sigmas[0]) < 1
    torch.manual_seed(0)
    x = ours = torch.randn(2, 3, 4, dtype=torch.float64)
    before = None
    for i, t in enumerate(scheduler.timesteps):
        v = torch.randn(2, 3, 4, dtype=torch.float64)
        x = scheduler.step(v, t, x, return_dict=False)[0]
        x0 = ours - sigmas[i] * v
        if before is None:
            ours, before = euler(ours, v, sigmas[i], sigmas[i + 1]), (x0, sigmas[i])
        elif sigmas[i + 1] == 0:
            ours = x0
        else:
            ours = dpm_solver_2m(ours, x0, before[0], sigmas[i], sigmas[i + 1], before[1])
            before = (x0, sigmas[i])
        torch.testing.assert_close(ours.float(), x.float(), rtol=1e-5, atol=1e-5)
