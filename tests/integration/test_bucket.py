"""Checkpoints in a bucket: a job whose run folder is lost goes on from them."""

import shutil

import pytest

from services.base.storage import Folder
from tests.helpers.run_folders import adapter, metrics
from tests.helpers.s3 import bucket

__all__ = ["bucket"]


@pytest.mark.slow
def test_a_run_whose_folder_is_lost_goes_on_from_the_bucket_with_the_same_bits(recipe, tempflow, tmp_path, bucket):
    in_bucket = f"checkpoint.folder={bucket}"
    runs = tmp_path / "runs"
    for arguments in (["name=whole"], ["name=kept", in_bucket, "steps=2"]):
        done = tempflow("train", recipe, *arguments)
        assert done.returncode == 0, done.stderr
    shutil.rmtree(runs / "kept")

    begun = tempflow("train", recipe, "name=kept", in_bucket)
    assert begun.returncode == 2
    assert "kept` exists; add --resume" in begun.stderr
    other = tempflow("train", recipe, "name=kept", in_bucket, "seed=1", "--resume")
    assert other.returncode == 2
    assert "began with other settings: seed was" in other.stderr

    again = tempflow("train", recipe, "name=kept", in_bucket, "--resume")
    assert again.returncode == 0, again.stderr
    newest = Folder.at(bucket) / "kept" / "step_000004"
    assert newest.read("trained.safetensors") == adapter(runs / "whole")
    assert [line["step"] for line in metrics(runs / "kept")] == [2, 3, 4]
