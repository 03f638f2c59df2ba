"""The page of `tempflow eval` in a real browser: its filters and its order."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.helpers.browser import Page, browser, needs_browser
from tests.helpers.learners import random_adapter

pytestmark = needs_browser
PROMPTS = [("a red cat", "one"), ("two dogs", "two"), ("a hen", "one"), ("a fish and a dog", "two")]


@pytest.fixture
def made(recipe, sd3_folder, in_process, tmp_path):
    """A page of four prompts with the base and an adapter, and the difference of each prompt in the file's order."""
    rows = [json.dumps({"prompt": prompt, "category": category}) + "\n" for prompt, category in PROMPTS]
    (tmp_path / "own.jsonl").write_text("".join(rows))
    adapter = random_adapter(sd3_folder, tmp_path / "lora")
    done = in_process(
        *("eval", recipe, "--local", "--prompts", tmp_path / "own.jsonl", "--adapter", f"mine={adapter}"),
        *("--output", "a.parquet", "--page", "a.html"),
    )
    assert done.returncode == 0, done.stderr
    table = pq.read_table(tmp_path / "a.parquet")
    models, scores = np.array(table["model"].to_pylist()), table["size"].to_numpy()
    return tmp_path / "a.html", scores[models == "mine"] - scores[models == "base"]


def choose(page: Page, **values: str) -> None:
    """Give controls of the page new values, as a reader's input does."""
    for name, value in values.items():
        control = f"document.getElementById({json.dumps(name.replace('_', '-'))})"
        page.run(
            f"{control}.value = {json.dumps(value)}, "
            f"{control}.dispatchEvent(new Event('input', {{bubbles: true}})), null"
        )


def shown(page: Page) -> list[str]:
    """The prompts of the cards that are shown, in their order."""
    return page.run(
        "[...document.querySelectorAll('.prompt-card')].filter((c) => !c.hidden).map((c) => c.dataset.prompt)"
    )


def test_the_filters_and_the_order_do_what_they_say(made, tmp_path):
    file, gaps = made
    prompts = [prompt for prompt, _ in PROMPTS]
    with browser(tmp_path / "profile") as page:
        page.open(file.as_uri())
        page.wait("document.getElementById('count').textContent === '4 of 4 prompts'")
        assert shown(page) == prompts
        choose(page, model_a="mine", model_b="base", score="size", order="gain")
        assert shown(page) == [prompts[i] for i in np.argsort(-gaps, kind="stable")]
        choose(page, order="loss")
        assert shown(page) == [prompts[i] for i in np.argsort(gaps, kind="stable")]
        choose(page, order="file", category="two")
        assert shown(page) == ["two dogs", "a fish and a dog"]
        choose(page, prompt="FISH")
        assert shown(page) == ["a fish and a dog"]
        assert page.run("document.getElementById('count').textContent") == "1 of 4 prompts"
        middle = float(np.median(gaps))
        choose(page, category="", prompt="", low=str(middle))
        assert shown(page) == [prompt for prompt, gap in zip(prompts, gaps, strict=True) if gap >= middle]
        choose(page, low="", high=str(middle))
        assert shown(page) == [prompt for prompt, gap in zip(prompts, gaps, strict=True) if gap <= middle]
        assert page.errors == []
