"""GenEval's rule by hand."""

import pytest

from services.scoring.geneval.rule import Object as Seen
from services.scoring.geneval.rule import confident, official_verdict, overlap, partial_credit, relations

LEFT, RIGHT = (0, 40, 20, 60), (70, 40, 90, 60)


def asked(*include, tag="position", exclude=()):
    return {"tag": tag, "include": list(include), "exclude": list(exclude)}


def both(wanted, found):
    return official_verdict(wanted, found), partial_credit(wanted, found)


def test_counts():
    three = asked({"class": "cup", "count": 3}, tag="counting", exclude=[{"class": "cup", "count": 4}])
    cups = [Seen(LEFT)] * 5
    assert both(three, {"cup": cups[:3]}) == (1, 1)
    assert both(three, {"cup": cups[:2]}) == (0, pytest.approx(2 / 3))
    assert both(three, {"cup": cups[:4]}) == (0, pytest.approx(2 / 3)), "one too many"
    assert both(three, {}) == (0, 0)
    at_least = asked({"class": "cup", "count": 1})
    assert both(at_least, {"cup": cups[:2]}) == (1, 0), "the official rule asks for at least as many"


def test_colours():
    red = asked({"class": "cup", "count": 1, "color": "red"}, tag="colors")
    assert both(red, {"cup": [Seen(LEFT, "red")]}) == (1, 1)
    assert both(red, {"cup": [Seen(LEFT, "blue")]}) == (0, 0.5)
    assert both(red, {"cup": [Seen(LEFT, "blue"), Seen(RIGHT, "red")]}) == (0, 0), "only the most certain one counts"
    assert both(red, {}) == (0, 0)


def test_places():
    wanted = asked({"class": "dog", "count": 1}, {"class": "cup", "count": 1, "position": ["left of", 0]})
    assert both(wanted, {"dog": [Seen(RIGHT)], "cup": [Seen(LEFT)]}) == (1, 1)
    assert both(wanted, {"dog": [Seen(LEFT)], "cup": [Seen(RIGHT)]}) == (0, pytest.approx(2 / 3))
    assert both(wanted, {"cup": [Seen(LEFT)]}) == (0, pytest.approx(1 / 3)), "no dog to be left of"


def test_relations_have_a_slack_of_a_tenth_of_both_sizes():
    assert relations(Seen(LEFT), Seen(RIGHT)) == {"left of"}
    assert relations(Seen(RIGHT), Seen(LEFT)) == {"right of"}
    assert relations(Seen((0, 0, 20, 20)), Seen((50, 50, 70, 70))) == {"left of", "above"}
    assert relations(Seen((0, 0, 20, 20)), Seen((3, 0, 23, 20))) == set()
    assert relations(Seen((0, 0, 20, 20)), Seen((0, 0, 20, 20))) == set()


def test_thresholds_and_the_most_certain_first():
    seen = [{"class": "cup", "score": score, "box": LEFT, "color": str(score)} for score in (0.2, 0.5, 0.95)]
    assert [o.color for o in confident(seen, asked())["cup"]] == ["0.95", "0.5"]
    assert [o.color for o in confident(seen, asked(tag="counting"))["cup"]] == ["0.95"]
    many = [{"class": "cup", "score": 0.9, "box": LEFT}] * 20
    assert len(confident(many, asked())["cup"]) == 16


def test_suppression_is_off_as_in_geneval_and_keeps_the_most_certain():
    boxes = [(0, 0, 9, 9), (0, 0, 9, 4), (0, 0, 9, 9), (50, 50, 59, 59)]
    seen = [{"class": "cup", "score": 0.9 - i / 10, "box": box} for i, box in enumerate(boxes)]
    assert len(confident(seen, asked())["cup"]) == 4
    assert [o.box for o in confident(seen, asked(), max_overlap=0.9)["cup"]] == [boxes[0], boxes[1], boxes[3]]
    assert [o.box for o in confident(seen, asked(), max_overlap=0.5)["cup"]] == [boxes[0], boxes[3]]
    assert overlap(Seen(boxes[0]), Seen(boxes[1])) == 0.5, "10 x 5 of 10 x 10 pixels: the last ones belong to the box"
    assert overlap(Seen(boxes[0]), Seen(boxes[3])) == 0
