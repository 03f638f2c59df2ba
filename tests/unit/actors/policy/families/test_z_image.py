"""Z-Image: a row's velocity has the bits that it has beside any other rows, whatever the lengths of their captions."""

import pytest
import torch

from actors.policy.policy import Policy
from tests.helpers.families import FAMILIES
from tests.helpers.tiny import tiny_settings

PROMPTS = ["a red cat", "a much longer prompt of a dog", "x", "another long prompt of a tree"]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_row_does_not_depend_on_its_neighbours(dtype, tiny_folder):
    (case,) = (case for case in FAMILIES if str(case) == "ZImage")
    settings = tiny_settings(tiny_folder(case), guidance=3.0, dtype=dtype, **case.settings)
    family = Policy(settings, seed=0).family
    conditioning = family.encode(PROMPTS)
    lengths = conditioning["mask"].sum(1)
    assert lengths.min() <= 32 < lengths.max()  # captions are filled up to different multiples of 32
    x_NZ = torch.randn(4, *family.latent_shape, generator=torch.Generator().manual_seed(0))
    sigma_N = torch.tensor([0.9, 0.5, 0.3, 0.1])

    def velocity(rows: list[int]) -> torch.Tensor:
        with torch.no_grad():
            return family.velocity(x_NZ[rows], sigma_N[rows], {name: c[rows] for name, c in conditioning.items()})

    together = velocity([0, 1, 2, 3])
    for row in range(4):
        assert torch.equal(velocity([row] * 4)[0], together[row])
