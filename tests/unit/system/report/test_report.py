"""The report's numbers against values worked out by hand, and whatever a stopped run may lack."""

import json
import math
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from matplotlib.figure import Figure
from PIL import Image

from services.base.errors import UserError
from services.http.images import data_url
from system.loop.pictures import small_image
from system.report.build import build_report, shown_sets
from system.report.canvas import power_of_ten, short, training_axis
from system.report.data import by_sampling_step, compared, paired_scores, read_run, set_scores
from system.report.figures.scores import curves, running_mean
from system.report.prompts import by_gain
from system.report.step_images import shown_steps

PROMPTS = ["a <script>alert(1)</script> & co", "a cat", 'two "dogs"', "a hole"]
CATEGORIES = ["<x>", "<x>", "$y$ & $", None]
BEFORE, AFTER = [0.0, 1.0, 0.0, 1.0], [1.0, 1.0, 0.0, np.nan]
HALF = 4.302653 * math.sqrt(1 / 3) / math.sqrt(3)
"""Of the differences 1, 0, 0: their variance (n − 1) is 1/3, and Student's t of 2 degrees of freedom is 4.302653."""


@pytest.fixture
def run(tmp_path):
    """A run folder of its own for one test."""
    return write_run(tmp_path)


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    """The report of a whole run."""
    return build_report(write_run(tmp_path_factory.mktemp("run"))).read_text()


def write_run(path):
    config = {
        "name": "mine & yours",
        "steps": 3,
        "policy": {"model": "some/model", "num_steps": 3},
        "plan": {"name": "trunk", "seeds": 4, "explorations": 6},
        "scorers": [{"name": "size", "weight": 1.0}, {"name": "judge", "weight": 0.0}],
        "tempflow": {"version": "0.1", "commit": None},
    }
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    lines = [{"step": 0, "eval/judge": 0.5, "eval/judge/<x>": 0.5, "nfe": 0}]
    for step in range(1, 4):
        lines.append(
            {
                "step": step,
                "elapsed_s": 50.0 * step,
                "reward/mean": step / 10,
                "reward/size/mean": step / 10,
                "branch/std": [0.1 * step, 0.2, None],
                "branch/noise_level": [0.7, 0.9, 0.1],
                "branch/weight": [0.875, 1.125, 0.0],
                "drift/mean": 1e-6,
                "drift/max": 1e-5,
                "ratio/max_deviation": 1e-4 * (step - 1),
                "ratio/clip_fraction": 0.25,
                "grad_norm": 1.0,
                "advantage/flat_groups": 0.1,
                "holes": step,
                "seconds/generate": 3.0,
                "seconds/score": 2.0,
                "seconds/update": 1.0,
                "seconds/step": 5.0,
                "idle/learner": 0.8,
                "nfe": step * 1000,
                "decodes": step * 100,
            }
        )
    write_lines(path, lines)
    (path / "eval").mkdir()
    for step, scores in ((0, BEFORE), (3, AFTER)):
        table = pa.table({"row": range(4), "prompt": PROMPTS, "category": CATEGORIES, "judge": scores})
        pq.write_table(table, path / "eval" / f"step_{step:06d}.parquet")
        folder = path / "samples" / f"step_{step:06d}"
        folder.mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (8, 8), (step * 50, i * 50, 0)).save(folder / f"{i:03d}.png")
    return path


def write_lines(run, lines):
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


class Page(HTMLParser):
    """The tags of a page, what they load, and the text of its cells, headings and paragraphs."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.loaded, self.ids, self.images_without_alt, self.text = [], [], [], 0, ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.append(tag)
        self.ids += [values["id"]] if "id" in values else []
        self.loaded += [values[key] for key in ("src", "href", "xlink:href", "action", "data") if key in values]
        self.images_without_alt += tag == "img" and not values.get("alt")

    def handle_data(self, data):
        self.text += data + "\n"


def test_differences_are_paired_and_holes_dropped(run):
    overall, y, x = paired_scores(read_run(run))
    assert (overall.pairs, overall.before, overall.after) == (3, pytest.approx(1 / 3), pytest.approx(2 / 3))
    assert (overall.difference, overall.half_interval) == (pytest.approx(1 / 3), pytest.approx(HALF))
    assert (x.category, x.pairs, x.difference, x.half_interval) == ("<x>", 2, 0.5, pytest.approx(12.706205 * 0.5))
    assert (y.category, y.pairs, y.difference) == ("$y$ & $", 1, 0.0)
    assert math.isnan(y.half_interval)


def test_prompts_are_paired_by_row_where_an_evaluation_has_more_of_them(run):
    path = run / "eval" / "step_000003.parquet"
    table = pq.read_table(path)
    pq.write_table(table.take([3, 2, 1, 0]), path)
    assert paired_scores(read_run(run))[0].difference == pytest.approx(1 / 3)
    pq.write_table(table.take([0, 1]), path)
    assert (paired_scores(read_run(run))[0].pairs, paired_scores(read_run(run))[0].difference) == (2, 0.5)


def test_the_page_shows_the_numbers(html):
    text = Page(html).text
    assert "0.333 → 0.667" in text
    assert f"+0.333 ± {HALF:.3f}" in text
    assert f"−{HALF - 1 / 3:.3f} to +{HALF + 1 / 3:.3f}" in text
    for fact in ("3 of 3", "3,000", "300", "2 min 30 s", "Trunk plan on some/model for the reward size"):
        assert fact in text
    assert "6 in all" in text
    assert "generate 60%, update 20%, other 20%" in text


def test_the_page_is_one_file_and_loads_nothing(html):
    page = Page(html)
    assert page.loaded
    assert all(target.startswith(("data:", "#")) for target in page.loaded)
    assert not re.search(r"url\((?!#)|@import", html)
    assert html.count("data:image/png;base64,") == 4 + 4  # before and after, and by step
    assert page.tags.count("svg") == 11 + 3, "the figures, and a line for each prompt without a hole"
    assert page.images_without_alt == 0
    assert len(page.ids) == len(set(page.ids))
    assert "nan" not in re.findall(r"[a-z]+", page.text.lower())


def test_what_users_write_is_text_not_markup(html):
    page = Page(html)
    assert "script" not in page.tags
    assert "x" not in page.tags
    assert "a &lt;script&gt;alert(1)&lt;/script&gt; &amp; co" in html
    assert "&lt;x&gt;" in html[html.index("<svg") :]


def test_the_same_run_gives_the_same_page(run, html):
    assert build_report(run).read_text() == html


def test_large_images_are_shrunk(run):
    for path in (run / "samples").rglob("*.png"):
        Image.new("RGB", (1024, 768), "teal").save(path)
    html = build_report(run).read_text()
    assert html.count("data:image/jpeg;base64,") == 4 + 4
    assert 'class="small"' not in html


def test_means_by_sampling_step_leave_out_what_was_not_drawn(run):
    means = by_sampling_step(read_run(run).steps, "branch/std")
    assert means[:2].tolist() == pytest.approx([0.2, 0.2])
    assert np.isnan(means[2])
    assert len(by_sampling_step(read_run(run).steps, "missing")) == 0


def test_a_run_that_has_only_begun_shows_where_it_starts(run):
    write_lines(run, read_run(run).lines[:1])
    (run / "eval" / "step_000003.parquet").unlink()
    page = Page(build_report(run).read_text())
    assert "nothing to compare yet" in page.text
    assert "0.500" in page.text
    assert "at step 0" in page.text
    assert page.text.count("No training step is recorded.") == 2
    assert page.tags.count("img") == 2 + 2


def test_lines_may_lack_any_key_and_the_folder_all_but_them(run):
    for path in (run / "eval").iterdir():
        path.unlink()
    (run / "config.yaml").unlink()
    (run / "metrics.jsonl").write_text(
        '{"step": 1}\n{"step": 2, "grad_norm": null, "branch/std": [null, null], "nfe": NaN}\n{"no": 1}\n{"step": 3'
    )
    text = Page(build_report(run).read_text()).text
    assert "No branch is recorded." in text
    assert "No pictures are recorded." in text
    assert "No score is recorded." in text
    assert text.count("Not recorded in this run.") == 7
    assert "The run has no config.yaml." in text


@pytest.mark.parametrize("parity", [0, 1])
def test_any_half_of_the_keys_may_be_missing_or_null(run, parity):
    lines = read_run(run).lines
    chosen = sorted({key for line in lines for key in line} - {"step"})[parity::2]
    nulls = [line | dict.fromkeys(chosen) for line in lines[:2]]
    write_lines(run, nulls + [{key: line[key] for key in line if key not in chosen} for line in lines[2:]])
    assert "</html>" in build_report(run).read_text()


def test_with_two_training_scorers_their_sum_is_shown_too(run):
    write_lines(run, [line | {"reward/judge/mean": 0.5} for line in read_run(run).lines])
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("weight: 0.0", "weight: 1.0"))
    assert [panel.title for panel in curves(read_run(run))] == [
        "Combined reward",
        "size, training reward",
        "judge, training reward",
    ]


def test_the_share_of_each_reward_in_the_advantage_is_drawn(run):
    write_lines(run, [line | {"reward/judge/mean": 0.5, "reward/size/share": 0.25} for line in read_run(run).lines])
    panel = curves(read_run(run))[-1]
    assert (panel.title, "size: mean 25%" in panel.alt) == ("Rewards in the advantage", True)


def test_warnings_are_shown_in_order(run):
    lines = read_run(run).lines
    lines[1]["warnings"], lines[3]["warnings"] = ["step 1: <b>first</b>"], ["step 3: second"]
    write_lines(run, lines)
    page = Page(build_report(run).read_text())
    assert page.text.index("step 1: <b>first</b>") < page.text.index("step 3: second")
    assert "warnings" in page.ids


def test_a_scorer_is_a_reward_a_gate_or_not_trained_on(run):
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["scorers"] = [
        {"name": "size", "weight": 0, "category_weights": {"x": 2}, "gate": {"score": "ocr.word", "min": 0.5}},
        {"name": "ocr", "weight": 0},
        {"name": "judge", "weight": 0, "gate": {"score": "other", "min": 0}},
        {"name": "other", "weight": 0},
    ]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert read_run(run).roles == {
        "size": "training reward",
        "ocr": "gate of a reward",
        "judge": "not trained on",
        "other": "not trained on",
    }


def test_what_was_zero_in_every_step_is_said_not_drawn(run):
    write_lines(run, [line | {"drift/mean": 0.0, "drift/max": 0.0, "holes": 0} for line in read_run(run).lines])
    text = Page(build_report(run).read_text()).text
    assert "exactly 0 in every step" in text
    assert "No score failed" in text


def test_a_folder_that_is_no_run_is_refused(run, tmp_path_factory):
    with pytest.raises(UserError, match="not a run"):
        build_report(tmp_path_factory.mktemp("empty"))
    run.joinpath("metrics.jsonl").write_text('\n{"cut": \n[]\n')
    with pytest.raises(UserError, match="has no readable line yet"):
        build_report(run)


def test_a_whole_run_leaves_nothing_out(run, html, caplog):
    assert "Left out" not in html
    build_report(run)
    assert not caplog.records


@pytest.mark.parametrize("damage", ["empty", "half", "zeros", "zeros at the end", "another"])
def test_what_is_torn_is_left_out_and_page_and_log_say_so(run, damage, caplog):
    table, picture = run / "eval" / "step_000003.parquet", run / "samples" / "step_000000" / "001.png"
    for path in (table, picture):
        whole = path.read_bytes()
        size = len(whole)
        torn = {
            "empty": b"",
            "half": whole[: size // 2],
            "zeros": bytes(size),
            "zeros at the end": whole[: size // 2] + bytes(size - size // 2),
            "another": b"something else",
        }
        path.write_bytes(torn[damage])
    page = Page(build_report(run).read_text())
    assert "Left out of this page" in page.text
    for said in (page.text, caplog.text):
        assert re.search(r"eval/step_000003\.parquet cannot be read \(.+\) and is left out\.", said)
        assert re.search(r"samples/step_000000/001\.png cannot be read \(.+\): picture 1 is left out\.", said)
    assert page.tags.count("img") == len(list(picture.parent.iterdir())) - 1


def test_text_of_a_table_that_is_no_text_is_torn_too(run):
    file = run / "eval" / "step_000003.parquet"
    table = pq.read_table(file)
    broken = pa.Array.from_buffers(pa.string(), 4, pa.array([b"\xff"] * 4, pa.binary()).buffers())
    pq.write_table(table.set_column(table.column_names.index("prompt"), "prompt", broken), file)
    assert "eval/step_000003.parquet cannot be read" in Page(build_report(run).read_text()).text


def test_a_table_of_something_else_is_left_out(run):
    pq.write_table(pa.table({"other": [1]}), run / "eval" / "step_000002.parquet")
    pq.write_table(pa.table({"other": [1]}), run / "eval" / "step_mine.parquet")
    text = Page(build_report(run).read_text()).text
    assert "eval/step_000002.parquet cannot be read (it has no column category, prompt, row) and is left out." in text
    assert "step_mine" not in text


def test_steps_whose_lines_are_torn_are_named(run, caplog):
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text(lines[0] + "\0" * 20 + "\n" + lines[2][:9] + "\n" + lines[3])
    assert "metrics.jsonl has no intact line for step 1–2." in Page(build_report(run).read_text()).text
    assert "metrics.jsonl has no intact line for step 1–2." in caplog.text


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\0", b"\0" * 50, b"name: [", b"- a list"])
def test_a_torn_recipe_is_no_reason_to_write_no_page(run, content):
    (run / "config.yaml").write_bytes(content)
    assert "A run without a readable recipe." in Page(build_report(run).read_text()).text


@pytest.mark.parametrize("steps", [[3], [2, 3]])
def test_the_axis_of_few_steps_has_a_mark_for_each_and_no_other(steps):
    axis = Figure().subplots()
    axis.plot(steps, [1.0] * len(steps))
    training_axis(axis, "drift")
    low, high = axis.get_xlim()
    assert [tick for tick in axis.get_xticks() if low <= tick <= high] == steps


def test_running_mean_shrinks_at_the_ends():
    assert running_mean([0, 3, 6, 9], 3).tolist() == [1.5, 3, 6, 7.5]


def test_counts_and_powers_are_short():
    assert [short(value) for value in (0, 950, 12_300, 3_420_000, 2e9)] == ["0", "950", "12k", "3.4M", "2.0G"]
    assert power_of_ten(-12) == "10⁻¹²"


def test_images_of_a_prompt_are_averaged_before_prompts_are_compared():
    """Two prompts of two images. Differences: 1 and 3 of the first, 0 and a hole of the second. Means: 2 and 0."""

    def table(scores: list[float]) -> pa.Table:
        return pa.table(
            {
                "row": [0, 0, 1, 1],
                "image": [0, 1, 0, 1],
                "prompt": ["a", "a", "b", "b"],
                "category": [None] * 4,
                "size": pa.array(scores, pa.float64()),
            }
        )

    (pair,) = compared(table([0.0, 0.0, 5.0, 5.0]), table([1.0, 3.0, 5.0, np.nan]), ["size"])
    assert (pair.pairs, pair.difference, pair.before, pair.after) == (2, 1.0, 2.5, 3.5)
    assert pair.half_interval == pytest.approx(12.706205 * math.sqrt(2) / math.sqrt(2))


def test_a_named_set_has_its_own_table_and_curve(run):
    (run / "eval" / "more").mkdir()
    for step, score in ((0, 0.25), (3, 0.75)):
        table = pa.table({"row": [0], "image": [0], "prompt": ["a"], "category": [None], "judge": [score]})
        pq.write_table(table, run / "eval" / "more" / f"step_{step:06d}.parquet")
    write_lines(run, [line | {"eval.more/judge": 0.5} for line in read_run(run).lines])
    read = read_run(run)
    (pair,) = set_scores(read)["more"]
    assert (pair.name, pair.before, pair.after) == ("judge", 0.25, 0.75)
    assert paired_scores(read)[0].name != "more"
    assert "judge of the set more" in [panel.title for panel in curves(read)]
    assert "The set more" in Page(build_report(run).read_text()).text


def test_the_curves_link_to_the_images_of_their_steps(run):
    """Steps 0 and 3 are evaluated. The training images of step 3 are kept, too."""
    images = [small_image(np.full((8, 8, 3), 60 * leaf, np.uint8)) for leaf in range(2)]
    rows = {"prompt_row": [5, 5], "leaf": [0, 1]}
    own = {"prompt": ["a <b>cat</b>"] * 2, "reward": [0.25, 0.75], "advantage": [-1.0, 1.0], "branch_step": [0, 0]}
    for folder, table in (("pictures", rows | {"image": images}), ("experience", rows | own)):
        (run / folder).mkdir(exist_ok=True)
        pq.write_table(pa.table(table), run / folder / "step_000003.parquet")
    html = build_report(run).read_text()
    page = Page(html)
    links = {href for href in page.loaded if href.startswith("#images-of-step-")}
    assert links == {"#images-of-step-0", "#images-of-step-3"}
    assert {href[1:] for href in links} <= set(page.ids)
    assert "a <b>cat</b> · reward 0.75 · advantage 1 · branch step 0" in page.text
    assert "<b>cat" not in html
    (run / "pictures" / "step_000003.parquet").write_bytes(b"torn")
    assert "pictures of step 3 cannot be read" in Page(build_report(run).read_text()).text


def test_a_long_run_shows_the_images_of_steps_spread_evenly(run):
    evals, samples = run / "eval", run / "samples"
    for step in range(1, 100):
        shutil.copy(evals / "step_000000.parquet", evals / f"step_{step:06d}.parquet")
        shutil.copytree(samples / "step_000000", samples / f"step_{step:06d}", dirs_exist_ok=True)
    assert shown_steps(read_run(run)) == [0, 11, 22, 33, 44, 55, 66, 77, 88, 99]


def write_set(run, name, evaluations):
    """Evaluations of a named set by step, each a score for each prompt, with a picture of each."""
    (run / "eval" / name).mkdir()
    for step, values in evaluations.items():
        rows = {"row": range(len(values)), "prompt": [f"{name} {i}" for i in range(len(values))]}
        table = pa.table({**rows, "category": pa.nulls(len(values), pa.string()), "judge": values})
        pq.write_table(table, run / "eval" / name / f"step_{step:06d}.parquet")
        folder = run / "samples" / f"step_{step:06d}" / name
        folder.mkdir(parents=True)
        for i in range(len(values)):
            Image.new("RGB", (8, 8), (step, i, 200)).save(folder / f"{i:03d}.png")


def section(html, name):
    """The section of a page with this id as its heading's."""
    return html.partition(f'<section aria-labelledby="{name}">')[2].partition("</section>")[0]


def test_a_named_set_shows_its_pictures_before_and_after_and_by_step(run):
    write_set(run, "more", {0: [0.5, 0.25], 2: [0.5, 0.5], 3: [0.25, 0.75]})
    html = build_report(run).read_text()
    uris = {}
    for step in (0, 2, 3):
        for i in range(2):
            content = (run / "samples" / f"step_{step:06d}" / "more" / f"{i:03d}.png").read_bytes()
            uris[step, i] = data_url(content)
    before_and_after = section(html, "pictures").partition("The set more")[2]
    assert [key for key, uri in uris.items() if uri in before_and_after] == [(0, 0), (0, 1), (3, 0), (3, 1)]
    by_step = section(html, "images")
    assert by_step.count("<p>The set more</p>") == 3
    assert "more 1 · judge 0.75" in by_step
    assert "Step 2" in by_step, "the set alone was evaluated then"


def test_a_run_without_default_prompts_shows_its_sets(run):
    shutil.rmtree(run / "eval")
    (run / "eval").mkdir()
    write_set(run, "more", {0: [0.5], 3: [0.75]})
    html = build_report(run).read_text()
    assert "more 0" in section(html, "pictures")
    assert "No pictures are recorded" not in html


def test_all_prompts_are_sorted_from_the_largest_gain_to_the_largest_loss(run):
    """Gains of 0.1, -0.2, 0.4, 0 and a hole; pictures are in the same order as the table."""
    write_set(run, "more", {0: [0.5, 0.5, 0.5, 0.5, 0.5], 3: [0.6, 0.3, 0.9, 0.5, None]})
    shown = section(build_report(run).read_text(), "pictures").partition("The set more")[2]
    pictures, _, table = shown.partition("<details")
    order = ["more 2", "more 0", "more 3", "more 1", "more 4"]
    assert re.findall(r'<td colspan="2">(more \d)</td>', pictures) == order
    assert re.findall(r'<th scope="row">(more \d)</th>', table) == order
    assert "All 5 prompts, from the largest gain in judge to the largest loss" in table
    changes = re.findall(r'<td class="(\w*)">([^<]*)</td>', table)
    assert changes == [("up", "+0.4"), ("up", "+0.1"), ("", "+0"), ("down", "−0.2"), ("", "–")]


def test_every_evaluation_is_in_the_line_of_a_prompt(run):
    write_set(run, "more", {0: [0.0, 1.0], 1: [0.5, None], 2: [1.0, 0.0], 3: [0.25, 0.5]})
    shown = section(build_report(run).read_text(), "pictures").partition("The set more")[2]
    assert "at all 4 evaluations" in shown
    lines = [points.split() for points in re.findall(r'<polyline points="([^"]*)"', shown)]
    assert lines == [["1,15.0", "22,8.0", "42,1.0", "63,11.5"], ["1,1.0", "42,15.0", "63,8.0"]]


def test_the_change_of_a_prompt_is_that_of_the_mean_over_its_images():
    def table(scores):
        return pa.table({"row": [7, 7, 9], "prompt": ["a", "a", "b"], "size": scores})

    first, second = by_gain({0: table([0.0, 2.0, 1.0]), 5: table([1.0, None, 4.0])}, ["size"], "size")
    assert (first.prompt, first.scores["size"], first.change("size")) == ("b", [1.0, 4.0], 3.0)
    assert (second.prompt, second.scores["size"], second.change("size")) == ("a", [1.0, 1.0], 0.0)


def test_prompts_are_sorted_by_the_score_that_was_trained_on(run):
    table = pa.table({"row": [0, 1], "prompt": ["a", "b"], "category": ["x", "x"], "judge": [0.0, 0.0], "size": [0, 0]})
    for step, judge, size in ((0, [0, 0], [0, 0]), (3, [1, 0], [0, 1])):
        own = table.set_column(3, "judge", pa.array(judge)).set_column(4, "size", pa.array(size))
        pq.write_table(own, run / "eval" / f"step_{step:06d}.parquet")
    assert [shown.sorted_by for shown in shown_sets(read_run(run))[0]] == ["size"]
    assert "largest gain in size" in build_report(run).read_text()
