"""Weights in buckets: every array once, in order, and none larger than it may be."""

import pytest

from actors.policy.weights import bucketed


@pytest.mark.parametrize(
    ("sizes", "most", "buckets"),
    [
        ([], 4, [""]),
        ([1, 2, 1], 4, ["abc"]),
        ([1, 2, 2], 4, ["ab", "c"]),
        ([9, 1, 9], 4, ["a", "b", "c"]),
        ([4, 4, 1, 3], 4, ["a", "b", "cd"]),
    ],
)
def test_buckets_are_filled_in_turn(sizes, most, buckets):
    named = dict(zip("abcd", sizes, strict=False))
    assert bucketed(named, most) == [list(bucket) for bucket in buckets]
