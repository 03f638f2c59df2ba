"""Where Ray places processes on GPUs, by hand. tests/integration/test_packing.py asks Ray itself."""

import pytest

from system.capacity.packing import Ask, Packing, fewest, nodes_of, pack


def packed(group: list[float], replicas: list[float], nodes: list[int]) -> Packing:
    return pack([Ask("worker", 0, gpus) for gpus in group], [Ask("scorer", 0, gpus) for gpus in replicas], nodes)


@pytest.mark.parametrize(
    ("group", "replicas", "nodes", "unplaced"),
    [
        ([0.75] * 12, [], [12], None),
        ([0.75] * 16, [], [12], 0.75),  # 12 GPUs by the sum, and a quarter is left on each of the 12
        ([0.75] * 16, [], [8, 8], 0.75),  # the first node gets ten by the sum
        ([0.9] * 16, [0.1] * 16, [8, 8], None),
        ([0.9] * 16, [0.1] * 17, [8, 8], 0.1),
        ([0.5] * 5 + [1.0] * 9, [], [12], None),
        ([0.6, 0.6, 0.4, 0.4], [], [2], None),
        ([0.4, 0.4, 0.6, 0.6], [], [2], 0.6),  # both small ones are on the first card
        ([2.0, 1.0], [0.5, 0.5], [4], None),
        ([2.0, 0.5], [], [2], 0.5),
        ([1.0] * 7, [0.3, 0.7], [8], None),
        ([0.5, 0.7], [0.3, 0.5], [2], None),  # the first replica has the rest of the second card
        ([1.0] * 7, [0.6, 0.6], [8], 0.6),
        ([0.0] * 9, [0.0], [], None),
    ],
)
def test_processes_have_a_place_if_cards_have_room(group, replicas, nodes, unplaced):
    found = packed(group, replicas, nodes).unplaced
    assert (found.gpus if found else None) == unplaced


def test_a_fraction_is_on_the_card_with_least_left():
    assert packed([0.75] * 2, [0.1] * 3, [2]).cards == [["worker", "scorer", "scorer"], ["worker", "scorer"]]
    assert packed([0.9] * 2, [0.1] * 2, [2]).cards == [["worker", "scorer"]] * 2


def test_replicas_are_spread_over_nodes():
    assert packed([1.0] * 2, [1.0] * 2, [2, 2]).cards == [["worker"], ["worker"], ["scorer"], ["scorer"]]
    assert packed([], [0.5] * 2, [1, 1]).cards == [["scorer"], ["scorer"]]


def test_nodes_are_full_but_for_the_last():
    assert [nodes_of(gpus) for gpus in (0, 3, 8, 12, 16)] == [[], [3], [8], [8, 4], [8, 8]]


def test_the_fewest_gpus_that_have_a_place_for_all():
    def asked(*gpus: float) -> list[Ask]:
        return [Ask("worker", 0, share) for share in gpus]

    assert fewest(asked(*[0.9] * 8), asked(*[0.1] * 8)) == 8
    assert fewest(asked(0.6, 0.6, 0.6), []) == 3
    assert fewest([], asked(*[0.3] * 10)) == 4  # three on each card
    assert fewest(asked(*[0.75] * 16), []) == 12  # no number has a place for all
    assert fewest([], []) == 0
