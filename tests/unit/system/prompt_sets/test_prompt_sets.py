"""The shipped sets: each row is one that its scorer can use, and says what its prompt asks for."""

import re
from importlib.resources import files

import pytest

from services.scoring.geneval.rule import wanted_of
from services.scoring.ocr import Ocr, quoted
from system.loop.prompts import read_prompts
from system.miniature.world import caption, parse, split

NUMBERS = {"two": 2, "three": 3, "four": 4, "five": 5}
OBJECTS = set((files("services.scoring.geneval") / "object_names.txt").read_text().splitlines())


def rows_of(name: str) -> list[dict]:
    prompts = read_prompts(f"package:system.prompt_sets/{name}.jsonl")
    assert len(set(prompts.texts)) == len(prompts)
    return [{"prompt": prompts[i], **prompts.row(i)} for i in range(len(prompts))]


@pytest.mark.parametrize("name", ["counting", "colour", "position"])
def test_geneval_can_use_each_row_and_the_prompt_names_its_objects_in_their_colours(name):
    for row in rows_of(name):
        for need in wanted_of(row)["include"]:
            assert need["class"] in OBJECTS
            stem = {"person": "people", "bus": "bus"}.get(need["class"], need["class"])
            if "color" in need:
                stem = f"{need['color']} {stem}"
            assert stem in row["prompt"]


def test_counts_colours_and_places_are_those_of_the_prompt():
    for row in rows_of("counting"):
        (need,), (more,) = row["include"], row["exclude"]
        assert row["prompt"].startswith(row["category"])
        assert (need["count"], more["count"]) == (NUMBERS[row["category"]], NUMBERS[row["category"]] + 1)
    for row in rows_of("colour"):
        assert len(row["include"]) == {"one object": 1, "two objects": 2}[row["category"]]
    for row in rows_of("position"):
        first, second = row["include"]
        assert second["position"] == [row["category"], 0]
        assert re.match(rf"an? {second['class']} (to the )?{row['category']} an? {first['class']},", row["prompt"])


def test_texts_are_quoted_in_their_prompts():
    for row in rows_of("text"):
        Ocr.check_row(row)
        assert quoted(row["prompt"]) == row["text"]


def test_shapes_are_held_out_captions_of_the_miniature():
    held_out = {caption(scene) for scene in split("relation")[1]}
    for row in rows_of("shapes"):
        assert row["prompt"] in held_out
        assert parse(row["prompt"]).relation == row["category"]
