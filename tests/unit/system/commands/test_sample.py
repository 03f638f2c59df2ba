"""`tempflow sample`: the same images each time, and others with an adapter."""

import numpy as np
import pytest
from PIL import Image

from tests.helpers.learners import random_adapter


@pytest.fixture
def adapter(sd3_folder, tmp_path):
    return random_adapter(sd3_folder, tmp_path / "lora")


def test_sample_writes_the_same_images_each_time_and_others_with_an_adapter(recipe, adapter, in_process, tmp_path):
    def sample(folder, *arguments):
        done = in_process("sample", recipe, "--prompt", "a cat", "--prompt", "a dog", "--output", folder, *arguments)
        assert done.returncode == 0, done.stderr
        return [np.asarray(Image.open(path)) for path in sorted((tmp_path / folder).glob("*.png"))]

    first, again, adapted = sample("one"), sample("two"), sample("three", "--adapter", adapter)
    assert [image.shape for image in first] == [(16, 16, 3)] * 2
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(first, adapted, strict=True))
    assert in_process("sample", recipe, "--prompt", "x", "--adapter", "nowhere").returncode == 2
