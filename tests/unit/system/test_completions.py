"""The rank correlation that judges cheap completions."""

import numpy as np
import pytest

from system.bench.completions import _by_step, spearman


def test_spearman_by_hand():
    up = np.array([0.1, 0.2, 0.9, 5.0])
    assert spearman(up, up**3) == pytest.approx(1)
    assert spearman(up, -up) == pytest.approx(-1)
    # ranks 1 2 3 4 against 1 3 2 4: 1 - 6 * 2 / (4 * 15)
    assert spearman(up, np.array([0, 2, 1, 3])) == pytest.approx(0.8)
    # ranks 1 2 3 against 1.5 1.5 3
    assert spearman(np.array([1, 2, 3]), np.array([0, 0, 1])) == pytest.approx(np.sqrt(3) / 2)


def test_groups_without_spread_are_left_out():
    full = np.array([[1.0, 2.0, 3.0], [1.0, 1.0, 1.0], [3.0, 2.0, 1.0]])
    cheap = np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    assert _by_step(full, cheap, np.array([0, 0, 1]), [0, 1]) == [pytest.approx(1), pytest.approx(-1)]
    assert np.isnan(_by_step(full[1:2], cheap[1:2], np.array([0]), [0])).all()
