"""The rank correlation that judges cheap completions."""

import numpy as np
import pytest

from system.bench.completions import Signal, rank_correlations


def test_rank_correlations_by_hand():
    up, steps = np.array([[0.1, 0.2, 0.9, 5.0]]), (np.array([0]), [0])
    assert rank_correlations(up, up**3, *steps) == [pytest.approx(1)]
    assert rank_correlations(up, -up, *steps) == [pytest.approx(-1)]
    # ranks 1 2 3 4 against 1 3 2 4: 1 - 6 * 2 / (4 * 15)
    assert rank_correlations(up, np.array([[0, 2, 1, 3]]), *steps) == [pytest.approx(0.8)]
    # ranks 1 2 3 against 1.5 1.5 3
    assert rank_correlations(np.array([[1, 2, 3]]), np.array([[0, 0, 1]]), *steps) == [pytest.approx(np.sqrt(3) / 2)]


def test_groups_without_spread_are_left_out():
    full = np.array([[1.0, 2.0, 3.0], [1.0, 1.0, 1.0], [3.0, 2.0, 1.0]])
    cheap = np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    correlations = rank_correlations(full, cheap, np.array([0, 0, 1]), [0, 1])
    assert correlations == [pytest.approx(1), pytest.approx(-1)]
    assert np.isnan(rank_correlations(full[1:2], cheap[1:2], np.array([0]), [0])).all()


def test_signal_of_gradients_with_a_known_mean():
    """Task gradients of mean m and noise σ in D dimensions: signal ⟨m_plan, m_whole⟩, noise ‖m_plan‖² + D·σ²."""
    rng = np.random.default_rng(0)
    mean_BSD = np.zeros((2, 2, 50))
    mean_BSD[0, :, 0], mean_BSD[1, 0, 1], mean_BSD[1, 1, 1] = 0.5, 1.0, 0.8
    signal = Signal(2, 2, 50)
    for _ in range(3000):
        signal.add(mean_BSD + rng.normal(size=mean_BSD.shape) * 0.3)
    cost_SB = np.array([[10.0, 20.0], [5.0, 10.0]])
    # whole plan's mean (0.5, 1.0); by stride and number of steps
    along = np.array([[0.25, 1.25], [0.25, 1.05]])
    noise = np.array([[0.25, 1.25], [0.25, 0.89]]) + 50 * 0.09 * np.array([1, 2])
    expected = along**2 / (noise * cost_SB)
    np.testing.assert_allclose(signal.efficiency(cost_SB), expected / expected[0, -1], rtol=0.05)
