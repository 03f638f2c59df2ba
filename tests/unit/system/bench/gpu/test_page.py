"""The page and the Markdown say how each part ended, and hold what was found as text."""

import re

import pytest

from system.bench.gpu.forward import THROUGHPUT
from system.bench.gpu.page import cell, write_page, write_tables
from system.bench.gpu.parts import PARTS
from system.bench.gpu.record import Check, Findings, State, Table

ROW = {"model": "flux-dev", "dtype": "bf16", "work": "sampling"}
RESULTS = {
    "card": Findings("NVIDIA <H100>", False, "0.1 abc", State.PASSED, 12.0, notes=["One row was left out."]),
    "parity": Findings("NVIDIA <H100>", False, "0.1 abc", State.FAILED, 3.0, [Check("FluxPipeline", False, "|Δ| > 1")]),
    "ratio": Findings("NVIDIA <H100>", False, "0.1 abc", State.FAILED, 3.0, traceback="RuntimeError: <CUDA>"),
    "forward": Findings(
        "NVIDIA <H100>",
        False,
        "0.1 abc",
        State.PASSED,
        3.0,
        tables=[
            Table(
                THROUGHPUT,
                [
                    {**ROW, "latents": 1, "NFE/s": 13.02},
                    {**ROW, "latents": 2, "NFE/s": 26.0},
                    {**ROW, "latents": 4, "note": "out of memory"},
                ],
            )
        ],
    ),
}


@pytest.fixture
def page(tmp_path) -> str:
    write_page(RESULTS, tmp_path / "gpu.html")
    return (tmp_path / "gpu.html").read_text()


def test_the_page_has_every_part_and_how_it_ended(page):
    states = dict(re.findall(r'<h2 id="(\w+)">[^<]*<span class="state[^"]*">([^<]*)</span>', page))
    assert states == dict.fromkeys(PARTS, "not run yet") | {name: str(one.state) for name, one in RESULTS.items()}
    assert "<h1>NVIDIA &lt;H100&gt;</h1>" in page
    assert "Passed: card, forward; failed: parity, ratio; not run yet:" in page
    assert "RuntimeError: &lt;CUDA&gt;" in page
    assert '<td class="down">FAILED</td><td>|Δ| &gt; 1</td>' in page
    assert "There is no GPU here" not in page


def test_the_page_needs_no_network_and_draws_the_throughput(page):
    assert not re.search(r"(src|href)=.?https?:", page)
    assert page.count("<svg") == 1


def test_markdown_has_the_same_cells_and_a_bar_ends_none(tmp_path):
    write_tables(RESULTS, tmp_path / "gpu.md")
    text = (tmp_path / "gpu.md").read_text()
    assert text.startswith("## NVIDIA <H100>\n")
    assert "| flux-dev | bf16 | sampling | 1 | 13.02 | – |" in text
    assert "| flux-dev | bf16 | sampling | 4 | – | out of memory |" in text
    bars = Findings("x", False, "", State.PASSED, tables=[Table("t", [{"|Δ|": 1}])])
    write_tables({"card": bars}, tmp_path / "bars.md")
    assert r"| \|Δ\| |" in (tmp_path / "bars.md").read_text()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (True, "yes"),
        (0.0, "0"),
        (1234.5678, "1,235"),
        (-2e-7, "−2.0e−07"),
        (10**7, "10,000,000"),
        ("a", "a"),
    ],
)
def test_a_cell_has_four_digits(value, text):
    assert cell(value) == text
