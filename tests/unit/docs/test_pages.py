"""The reference pages say what the code says, and no page names a page or a file that does not exist."""

import re
from pathlib import Path

import pytest

from docs.build import PAGES, Page
from services.base.settings import Settings
from tests.helpers.paths import ROOT

DOCS = ROOT / "docs"
TEXTS = sorted([*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_reference_page_is_what_the_code_gives(path):
    assert path.read_text() == PAGES[path](), "run `make reference`"


def test_a_key_shows_its_kind_bounds_default_and_docstring():
    class Inner(Settings):
        share: float = 0.5
        """A share | of something."""

    class Outer(Settings):
        """What holds it."""

        count: int
        """How many."""
        inner: Inner | None = None

    page = "\n".join(Page(Outer).sections())
    assert "| `count` | whole number | required | How many. |" in page
    assert r"| `inner.share` | number | `0.5` | A share \| of something. |" in page


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_key_and_option_of_a_reference_page_is_explained(path):
    rows = re.findall(r"^\| `.*\|$", path.read_text(), re.MULTILINE)
    assert [row for row in rows if row.endswith("|  |")] == []


def headings(path: Path) -> set[str]:
    """The anchors of a page, as GitHub names them."""
    text = re.sub(r"^(```|~~~).*?^\1", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(path):
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", path.read_text()):
        name, _, anchor = target.partition("#")
        page = path.parent / name if name else path
        assert page.exists(), target
        assert not anchor or anchor in headings(page), target


@pytest.mark.parametrize("path", sorted(DOCS.rglob("*.md")), ids=lambda path: str(path.relative_to(DOCS)))
def test_every_page_links_the_glossary(path):
    assert path.name == "glossary.md" or "glossary.md" in path.read_text()


@pytest.mark.parametrize("path", sorted(DOCS.rglob("*.md")), ids=lambda path: str(path.relative_to(DOCS)))
def test_every_page_is_in_the_navigation(path):
    assert re.search(rf": {re.escape(str(path.relative_to(DOCS)))}$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_of_the_repository_that_a_page_names_exists(path):
    named = re.findall(r"`((?:actors|configs|deploy|services|system|tests)/[a-z0-9_/.]+\.[a-z]+)`", path.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []
