"""The script that draws the pictures before and after with the judge's verdict on each."""

import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from docs.before_after import draw, is_right
from services.base.errors import UserError
from system.report.pictures import BeforeAfter, Picture


def picture(step: int, verdict: float | None, grey: int = 0) -> Picture:
    content = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), grey, np.uint8)).save(content, "PNG")
    return Picture(step, content.getvalue(), True, {"judge": verdict})


def test_each_image_has_the_mark_of_its_verdict(tmp_path, monkeypatch):
    """Ten prompts: the images before are wrong, and after training every other one is right."""
    prompts = [BeforeAfter(f"prompt {i}", [picture(0, 0.0, 100), picture(9, float(i % 2), 200)]) for i in range(10)]
    saved = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: saved.append(figure))
    draw(tmp_path / "picture.png", prompts)
    shown = [axis for axis in saved[0].axes if axis.images]
    marks = [(int(axis.images[0].get_array()[0, 0, 0]), axis.texts[0].get_text()) for axis in shown]
    assert [mark for grey, mark in marks if grey == 100] == ["✗"] * 10
    assert [mark for grey, mark in marks if grey == 200] == ["✗", "✓"] * 5
    assert [axis.get_xlabel() for axis in shown if axis.get_xlabel()] == [f"prompt {i}" for i in range(10)]


def test_the_picture_is_written(tmp_path):
    draw(tmp_path / "picture.png", [BeforeAfter("a cat", [picture(0, 0.0), picture(9, 1.0)])])
    assert Image.open(tmp_path / "picture.png").size[0] > 900


@pytest.mark.parametrize(
    ("pictures", "said"),
    [([picture(0, 1.0)], "no pictures of two evaluations"), ([picture(0, None), picture(9, 1.0)], "no score `judge`")],
)
def test_what_cannot_be_marked_is_refused(tmp_path, pictures, said):
    with pytest.raises(UserError, match=said):
        draw(tmp_path / "picture.png", [BeforeAfter("a cat", pictures)])
    assert is_right(picture(0, 1.0))
