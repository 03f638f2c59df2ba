"""Cards: the paper figures, and a measured card that takes their place."""

import json
from dataclasses import asdict

import pytest

from services.base.errors import UserError
from system.capacity.cards import CARDS, Card, is_called


def test_cards_on_paper_reach_one_share_of_their_peaks():
    assert CARDS["H100"] == Card("H100", 84.9, 650, 48, 250, 450, 2.7, "9.0")
    assert CARDS["A100-80"].matmul_bf16_tflops == pytest.approx(650 * 312 / 989, abs=0.5)
    assert CARDS["H200"].memory_tb_per_s == pytest.approx(2.7 * 4.8 / 3.35, abs=0.01)
    assert {"H100", "H200", "A100-40", "A100-80", "A40", "RTX-A6000", "L40S", "RTX-4090", "B200"} <= set(CARDS)
    assert {card.source for card in CARDS.values()} == {"on paper"}


def measured(tmp_path, **changes):
    card = {key: value for key, value in asdict(CARDS["H100"]).items() if key != "measured"}
    path = tmp_path / "gpu.json"
    path.write_text(json.dumps({"card": card | changes, "forward": []}))
    return path


def test_a_measured_card_is_read(tmp_path):
    card = Card.measured_in(measured(tmp_path, name="NVIDIA H100 80GB HBM3", matmul_bf16_tflops=702.5))
    assert card.matmul_bf16_tflops == 702.5
    assert card.measured
    assert card.source == "measured"
    assert card.memory_bytes == 84.9e9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"watts": 700}, "watts"),
        ({"memory_gb": 0}, "memory_gb is 0"),
        ({"memory_tb_per_s": float("nan")}, "memory_tb_per_s"),
        ({"matmul_fp32_tflops": True}, "matmul_fp32_tflops"),
        ({"name": 3}, "name is 3"),
    ],
)
def test_a_wrong_card_is_refused(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        Card.measured_in(measured(tmp_path, **changes))


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"card": []}', '{"card": {"name": "x"}}'])
def test_other_files_are_refused(tmp_path, text):
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"other\.json"):
        Card.measured_in(path)
    with pytest.raises(UserError, match=r"absent\.json"):
        Card.measured_in(tmp_path / "absent.json")


@pytest.mark.parametrize(
    ("full", "name", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", "H100", True),
        ("NVIDIA H200", "H100", False),
        ("NVIDIA GH200 480GB", "H200", False),
        ("NVIDIA A100-SXM4-40GB", "A100-40", True),
        ("NVIDIA A100 80GB PCIe", "A100-40", False),
        ("NVIDIA GeForce RTX 4090", "RTX-4090", True),
        ("NVIDIA L40S", "l40s", True),
        ("NVIDIA L40", "L40S", False),
        ("NVIDIA A40", "A40", True),
        ("NVIDIA RTX A4000", "A40", False),
        ("NVIDIA RTX A6000", "RTX-A6000", True),
        ("NVIDIA RTX 6000 Ada Generation", "RTX-6000-Ada", True),
        ("NVIDIA RTX A6000", "RTX-6000-Ada", False),
        ("NVIDIA L40S", "-", False),
    ],
)
def test_a_card_is_known_by_a_part_of_its_full_name(full, name, expected):
    assert is_called(full, name) is expected
