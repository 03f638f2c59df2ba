"""Text encoders that visit the GPU. Here the CPU takes its place, and the tensors there are copies."""

import pytest
import torch

from actors.policy.embeddings import Embeddings
from actors.policy.offload import Offloaded
from actors.policy.policy import Policy
from tests.helpers.families import FAMILIES
from tests.helpers.tiny import tiny_settings


class Counter(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 2).requires_grad_(False)
        self.register_buffer("steps", torch.tensor([4]))


def test_parameters_and_buffers_are_there_while_they_work_and_are_never_copied_back():
    model = Counter()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    offloaded = Offloaded([model], torch.device("cpu"))
    home = [tensor.data_ptr() for tensor in model.state_dict().values()]
    for _ in range(2):
        with offloaded.visiting():
            for name, tensor in model.state_dict().items():
                assert tensor.equal(before[name])
                tensor.zero_()
        assert [tensor.data_ptr() for tensor in model.state_dict().values()] == home
        assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())


def test_they_leave_when_the_work_fails():
    model = Counter()
    offloaded, home = Offloaded([model], torch.device("cpu")), model.layer.weight.data_ptr()
    with pytest.raises(KeyError), offloaded.visiting():
        raise KeyError(model.layer.weight.data_ptr() != home)
    assert model.layer.weight.data_ptr() == home


@pytest.mark.parametrize("case", FAMILIES, ids=str)
def test_embeddings_do_not_depend_on_it(case, tiny_folder):
    policies = [Policy(tiny_settings(tiny_folder(case), **case.settings), 0) for _ in range(2)]
    usual, offloaded = (
        Embeddings(policy.family, 2**20, offload=offload)(["a cat", "a dog"])
        for policy, offload in zip(policies, (False, True), strict=True)
    )
    assert usual.keys() == offloaded.keys()
    assert all(usual[name].equal(offloaded[name]) for name in usual)
