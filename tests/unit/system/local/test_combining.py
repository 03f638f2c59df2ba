"""A gate, a clip, a scale and category weights in runs of the miniature, against formulas over the experience log."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.helpers.run_folders import metrics

CATEGORIES = ("fits", "small", "both")
"""Of the three prompts. PickScore trains the first, the size of the image the second, and both the third."""
WEIGHTS = {"pickscore": {"fits": 1.5, "small": 0, "both": 1.5}, "size": {"fits": 0, "small": 2, "both": 0.5}}
BOUND, OTHERWISE, CLIP, SCALE, EPSILON = 1.4, -1.0, (0.2, 0.7), 3.0, 0.1
SCORERS = [
    {
        "name": "pickscore",
        "scorer": "pickscore",
        "options": {"model": "package:system.miniature/assets/reward"},
        "weight": 1.5,
        "category_weights": {"small": 0},
        "clip": CLIP,
        "gate": {"score": "size", "min": BOUND, "otherwise": OTHERWISE},
    },
    {"name": "size", "scorer": "jpeg_size", "weight": 0, "category_weights": {"small": 2, "both": 0.5}, "scale": SCALE},
]
TINY = (
    "steps=1", "policy.num_steps=4", "plan.branch_steps=2", "plan.seeds=1", "plan.explorations=4",
    "data.prompts_per_step=3", "data.heldout=null", "rollout.workers=1", f"advantage.epsilon={EPSILON}",
)  # fmt: skip


@pytest.mark.parametrize("rule", ["raw", "group_norm", "gdpo"])
def test_recorded_advantages_and_metrics_are_those_of_the_formulas(rule, in_process, tmp_path):
    captions = ("a red circle", "two blue squares", "a green triangle")
    rows = [{"prompt": text, "category": category} for text, category in zip(captions, CATEGORIES, strict=True)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = (f"data.train={tmp_path / 'prompts.jsonl'}", f"output={tmp_path / 'runs'}")
    rewards = (f"scorers={json.dumps(SCORERS)}", f"reward.combine={rule}")
    done = in_process("train", "shapes", "--local", "name=gated", *TINY, *files, *rewards)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "gated"
    table = pq.read_table(run / "experience" / "step_000001.parquet")
    check_step(rule, {name: table[name].to_numpy() for name in table.column_names}, metrics(run)[1])


def check_step(rule: str, column: dict[str, np.ndarray], line: dict) -> None:
    """Compare a step with the formulas, for which the log has the scores as the scorers returned them."""
    category = np.array(CATEGORIES)[column["prompt_row"]]
    pickscore, size = column["reward/pickscore"], column["reward/size"]
    asked = category != "small"
    np.testing.assert_array_equal(np.isnan(pickscore), ~asked, "a scorer is asked where it has a weight")
    assert not np.isnan(size).any(), "the size opens the gate also where it has no weight"
    is_open = size >= BOUND
    for case in (is_open, ~is_open, is_open & (pickscore < CLIP[0]), is_open & (pickscore > CLIP[1])):
        assert (asked & case).any(), "the step has no example of a case"

    gated = np.where(asked, np.where(is_open, np.clip(pickscore, *CLIP), OTHERWISE), 0)
    counted = {"pickscore": gated, "size": SCALE * size}
    weights = {name: np.array([by_category[c] for c in category]) for name, by_category in WEIGHTS.items()}
    weighted = {name: weights[name] * counted[name] for name in counted}
    reward = weighted["pickscore"] + weighted["size"]
    np.testing.assert_allclose(column["reward"], reward, rtol=1e-12)
    assert line["reward/mean"] == pytest.approx(reward.mean())
    assert line["reward/pickscore/mean"] == pytest.approx(pickscore[asked].mean())
    assert line["reward/size/mean"] == pytest.approx(size.mean())
    assert (line["reward/pickscore/holes"], line["reward/size/holes"], line["holes"]) == (0, 0, 0)

    places = np.stack([column[name] for name in ("prompt_row", "seed", "branch_step")], axis=1)
    groups = [np.flatnonzero((places == place).all(axis=1)) for place in np.unique(places, axis=0)]
    assert {len(group) for group in groups} == {4}
    parts = {name: np.zeros(len(reward)) for name in counted}
    for group in groups:
        for name, part in parts.items():
            if rule == "raw":
                centred = weighted[name][group] - weighted[name][group].mean()
                part[group] = centred / (reward[group].std() + EPSILON)
            else:
                score = counted[name][group]
                part[group] = weights[name][group] * (score - score.mean()) / (score.std() + EPSILON)
    advantage = parts["pickscore"] + parts["size"]
    if rule == "gdpo":
        advantage = advantage / (np.sqrt((advantage**2).mean()) + EPSILON)
    assert np.abs(advantage).max() < 5, "no advantage is clipped"
    np.testing.assert_allclose(column["advantage"], advantage, rtol=1e-9, atol=1e-12)

    sizes = {name: np.abs(part).mean() for name, part in parts.items()}
    for name, part in sizes.items():
        assert line[f"reward/{name}/share"] == pytest.approx(part / sum(sizes.values()))
        flat = [len(set(counted[name][group])) == 1 for group in groups if weights[name][group[0]]]
        assert line[f"reward/{name}/flat_groups"] == pytest.approx(np.mean(flat))
