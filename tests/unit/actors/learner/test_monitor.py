"""An update's statistics over several ranks, against sums and maxima worked out by hand."""

import torch

from actors.learner.monitor import Monitor

CPU = torch.device("cpu")


class Ranks:
    """Two ranks in one process: adds, or takes the larger of, what the other rank holds; counts its collectives."""

    def __init__(self, other: Monitor | None) -> None:
        self.other, self.calls, self.heard = other, [], []

    def sum(self, tensor):
        self._combine("sum", tensor, torch.add)

    def max(self, tensor):
        self._combine("max", tensor, torch.maximum)

    def _combine(self, kind, tensor, combine):
        self.calls.append(kind)
        self.heard.append(tensor.clone())
        if self.other is not None:
            tell = Ranks(None)
            self.other.shared(tell)
            tensor.copy_(combine(tensor, tell.heard[tell.calls.index(kind)]))


def collected(ratios, clipped, steps, deltas, nfe) -> Monitor:
    monitor = Monitor(4, CPU)
    monitor.add_nfe(nfe)
    monitor.add_loss(torch.tensor(ratios[0]), torch.tensor(ratios[0] / 2))
    monitor.add_ratio(torch.tensor([ratios]), torch.tensor([clipped]))
    monitor.add_drift(torch.tensor(steps), torch.tensor(deltas).unsqueeze(1))
    return monitor


def test_ranks_share_all_statistics_in_one_collective_of_each_kind():
    here = collected([1.0, 1.5], [False, True], [0, 2], [0.1, -0.4], 2**25 + 1)
    there = collected([0.25], [False], [2], [0.2], 2)
    ranks = Ranks(there)
    whole = here.shared(ranks)
    assert ranks.calls == ["sum", "max"]
    stats = whole.stats(2, 0.0, 1.0, 0.5, 3.0)
    assert stats.nfe == 2**25 + 3, "float32 would have lost the one"
    assert stats.ratio_mean == (1.0 + 1.5 + 0.25) / 3
    assert stats.clip_fraction == 1 / 3
    assert stats.ratio_max_deviation == 0.75
    assert stats.loss == 2 * stats.kl == (1.0 + 0.25) / 2, "the mean over two optimizer steps"
    torch.testing.assert_close(
        torch.tensor(stats.drift_mean), torch.tensor([0.1, torch.nan, 0.3, torch.nan]), equal_nan=True
    )
    torch.testing.assert_close(
        torch.tensor(stats.drift_max), torch.tensor([0.1, torch.nan, 0.4, torch.nan]), equal_nan=True
    )


def test_what_was_shared_does_not_change_with_what_is_collected_later():
    monitor = collected([1.5], [True], [0], [0.1], 3)
    first = monitor.shared(Ranks(collected([1.0], [False], [0], [0.1], 1)))
    monitor.add_ratio(torch.tensor([[9.0]]), torch.tensor([[True]]))
    assert float(first.maxima.deviation) == 0.5
    assert int(monitor.sums.count) == 2
