"""Grammar, split and renderer of the shapes."""

import itertools

import numpy as np
import pytest

from system.miniature.world import COLOURS, SHAPES, all_scenes, alterations, caption, is_valid, parse, render, split

CATEGORIES = ("single", "relation")


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_caption_parses_back(category: str) -> None:
    for scene in all_scenes(category):
        assert parse(caption(scene)) == scene
        assert scene.category == category


@pytest.mark.parametrize("category", CATEGORIES)
def test_split_is_disjoint_and_complete(category: str) -> None:
    train, held_out = split(category)
    assert not set(train) & set(held_out)
    assert len(train) + len(held_out) == len(list(all_scenes(category)))
    assert min(len(train), len(held_out)) >= 40


def test_held_out_words_all_occur_in_train_captions() -> None:
    train, held_out = split("single")
    words = {word for scene in train for word in caption(scene).split()}
    assert {word for scene in held_out for word in caption(scene).split()} <= words


def test_held_out_is_how_known_pairs_are_combined() -> None:
    """Every colour with a shape is known from training; what is new is the background it stands on.

    A blue square has no new one: blue on blue is no scene.
    """
    train, held_out = (
        {(thing.colour, thing.shape) for scene in side for thing in scene.things} for side in split("single")
    )
    assert train == set(itertools.product(COLOURS, SHAPES))
    assert train - held_out == {("blue", "square")}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a red ring",
        "a small red ring on a red background",
        "a small red ring beside a large blue square on a white background",
        "a small red ring above a large red square on a white background",
        "a small blue ring on a blue background",
        "a small red ring on a white background ",
    ],
)
def test_malformed_caption_raises_one_sentence(text: str) -> None:
    with pytest.raises(ValueError, match=r"^The caption .*\.$"):
        parse(text)


def test_render_is_deterministic_and_random() -> None:
    scene = parse("a large red ring left of a small blue square on a white background")
    first, again, other = (render(scene, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.shape == (64, 64, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_alterations_differ_and_are_valid() -> None:
    scene = parse("a large red ring left of a small blue square on a white background")
    altered = alterations(scene)
    assert set(altered) == {"background", "size", "colour", "shape", "relation", "swap"}
    for scenes in altered.values():
        assert scenes
        assert all(other != scene and is_valid(other) for other in scenes)
