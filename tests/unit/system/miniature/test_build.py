"""The command that builds the assets, on the stage that trains nothing."""

import json

import pyarrow.parquet as pq
import pytest

from system.miniature import ASSETS
from system.miniature.build.__main__ import main


def test_a_stage_alone_writes_what_is_checked_in_and_records_its_figures(tmp_path):
    main(["--only", "prompts", "--out", str(tmp_path), "--threads", "1"])
    for name in ("train", "heldout"):
        made, kept = (pq.read_table(folder / "prompts" / f"{name}.parquet") for folder in (tmp_path, ASSETS))
        assert made.equals(kept)
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures == {"prompts": {"seed": 0, "threads": 1, "minutes": figures["prompts"]["minutes"]}}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures.json", "prompts"]


def test_an_unknown_stage_is_refused_with_the_known_ones(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--only", "vae,polices", "--out", str(tmp_path / "out")])
    known = "vae, policy, mislabel, contrast, preference, hps, prompts, card"
    assert f"unknown stages polices; the stages are {known}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
