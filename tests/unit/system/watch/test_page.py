"""The page in a real browser: what it shows of a run, while the run is running, and of hostile text."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from system.watch.reader import Reader
from system.watch.server import PageServer
from tests.helpers.browser import Page, browser, needs_browser
from tests.helpers.watched_runs import HOSTILE, line, write_config, write_line, write_run, write_step

pytestmark = needs_browser


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def watching(page, request) -> Iterator:
    """Opens the page of a run folder."""
    servers: list[PageServer] = []

    def open_page(run: Path, path: str = "") -> Page:
        server = PageServer(Reader(run), 0)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        page.open("about:blank")
        page.wait("location.href === 'about:blank'")
        page.errors.clear()
        page.resize(1300, 900)
        page.open(server.url + path)
        page.wait("document.body.dataset.ready")
        return page

    yield open_page
    for server in servers:
        server.shutdown()
        server.server_close()


def texts(page: Page, selector: str) -> list[str]:
    return page.run(f"[...document.querySelectorAll('{selector}')].map((e) => e.textContent)")


def shown_sections(page: Page) -> set[str]:
    return set(page.run("[...document.querySelectorAll('section')].filter((s) => !s.hidden).map((s) => s.id)"))


def test_a_run_is_shown_whole(watching, tmp_path):
    page = watching(write_run(tmp_path / "mine"))
    assert shown_sections(page) == {"scores", "images", "tree", "groups", "prompts", "heldout", "roles", "health"} - {
        "health"
    }
    assert texts(page, "h1") == ["mine"]
    assert "steps2 of 3" in texts(page, "#facts div")
    assert [title.split(" · ")[0] for title in texts(page, "#scores h3")] == ["Training reward", "Held-out score"]
    assert texts(page, "#step option") == ["1", "2"]
    # Prompt 7 has 12 leaves and pictures of 4. At step 2 the best of these is the third of the first fork.
    assert page.wait("[...document.querySelectorAll('.gallery img')].filter((i) => i.naturalWidth === 16).length === 4")
    assert texts(page, ".gallery .score")[0] == "0.4"
    assert len(texts(page, "#trunks button")) == 2
    assert page.run("document.querySelectorAll('#tree image').length") == 4
    assert texts(page, "#tree text").count("not kept") == 2
    assert page.run("document.querySelectorAll('#ends tbody tr').length") == 8
    assert len(texts(page, "#history tbody tr")) == 2
    page.resize(1300, 6000)  # images below the window are loaded when they are scrolled to
    assert page.wait("[...document.querySelectorAll('#heldout img')].filter((i) => i.naturalWidth === 16).length === 2")
    assert page.errors == []


def test_hostile_captions_stay_text(watching, tmp_path):
    page = watching(write_run(tmp_path / "mine"))
    assert texts(page, "#caption") == [HOSTILE]
    assert page.run("document.title") == "mine · tempflow watch"
    assert page.run("document.querySelectorAll('img[src=x]').length") == 0
    assert page.errors == []


@pytest.mark.parametrize("width", [360, 800, 1300])
def test_nothing_is_wider_than_the_window(watching, tmp_path, width):
    page = watching(write_run(tmp_path / "mine"))
    page.resize(width, 900)
    assert page.run("document.documentElement.scrollWidth") <= width


def test_new_steps_appear_by_themselves(watching, tmp_path):
    run = tmp_path / "mine"
    write_config(run)
    page = watching(run)
    assert shown_sections(page) == set()
    assert page.run("document.getElementById('empty').hidden") is False
    write_line(run, line(0))
    write_line(run, line(1))
    write_step(run, 1)
    page.wait("document.getElementById('step').value === '1'")
    write_line(run, line(2, warnings=["step 2: <b>the watcher falls</b>"]))
    write_step(run, 2)
    page.wait("document.getElementById('step').value === '2'")
    assert "step 2: <b>the watcher falls</b>" in texts(page, "#warnings li")[0]
    assert page.errors == []


@pytest.mark.parametrize("steps", [1, 3])
def test_the_axes_are_named_and_end_at_the_last_step(watching, tmp_path, steps):
    page = watching(write_run(tmp_path / "mine", steps=steps))
    shown = texts(page, "#scores figure:first-of-type .chart text[text-anchor=middle]")
    assert shown == [*map(str, range(1, steps + 1)), "training step"]
    assert "std of the rewards in a group" in texts(page, "#histogram text")


def test_a_click_on_a_curve_shows_the_images_of_its_step(watching, tmp_path):
    page = watching(write_run(tmp_path / "mine", steps=3))
    assert page.run("document.getElementById('step').value") == "3"
    page.run(
        "(() => { const chart = document.querySelector('#scores .chart'), box = chart.getBoundingClientRect();"
        "chart.dispatchEvent(new MouseEvent('click', { clientX: box.left + 60, clientY: box.top + 50 })); })()"
    )
    page.wait("document.querySelector('#images-note').textContent.startsWith('Of step 1,')")
    assert page.run("location.hash") == "#step=1"
    assert page.run("document.getElementById('follow').checked") is False


def test_an_address_names_a_step(watching, tmp_path):
    page = watching(write_run(tmp_path / "mine", steps=3), "#step=2")
    assert page.wait("document.querySelector('#images-note').textContent").startswith("Of step 2,")


def test_a_run_that_resumes_from_an_earlier_step_is_shown_as_it_is_now(watching, tmp_path):
    run = write_run(tmp_path / "mine", steps=3)
    page = watching(run)
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:2]))
    for folder in ("experience", "pictures"):
        for step in (2, 3):
            (run / folder / f"step_{step:06d}.parquet").unlink()
    page.wait("document.getElementById('step').value === '1'")
    assert "steps1 of 3" in texts(page, "#facts div")
    assert page.errors == []


def test_a_server_that_has_ended_is_said(page, tmp_path):
    server = PageServer(Reader(write_run(tmp_path / "mine")), 0)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    page.open(server.url)
    page.wait("document.body.dataset.ready")
    server.shutdown()
    server.server_close()
    page.wait("!document.getElementById('trouble').hidden")
    assert "does not answer" in texts(page, "#trouble")[0]
