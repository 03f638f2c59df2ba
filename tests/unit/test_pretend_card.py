"""The GPU that is not there refuses what a GPU refuses, and notes what waits for one."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from tests.helpers.pretend_card import CARD, pretend_card


@pytest.fixture
def card():
    with pretend_card() as card:
        yield card
    assert not torch.cuda.is_available() or torch.cuda.get_device_name() != "a GPU that is not there"


@pytest.mark.usefixtures("card")
def test_a_tensor_is_where_it_was_made_or_moved():
    made = torch.ones(2, 3, device="cuda")
    with torch.device("cuda"):
        layer = torch.nn.Linear(3, 2)
    for there in (made, made[0], made.mT, made + 1, torch.zeros_like(made), made.to(torch.bfloat16), layer.weight):
        assert there.device == CARD
        assert there.is_cuda
    assert torch.ones(2).to(made).device == CARD
    for here in (torch.ones(2), made.cpu(), made.to("cpu"), torch.empty_like(made, device="cpu")):
        assert here.device == torch.device("cpu")
    assert layer(made).sum().backward() is None
    assert layer.weight.grad.device == CARD
    assert torch.equal(layer.weight.grad.cpu(), torch.full((2, 3), 2.0))


@pytest.mark.usefixtures("card")
@pytest.mark.parametrize(
    "mixed",
    [
        lambda there, here: there @ here,
        lambda there, here: there + here,
        lambda there, here: torch.cat([there, here]),
        lambda there, here: there.sum() + here,
        lambda there, here: here[there.long()],
        lambda there, here: checkpoint(lambda one: (one * 1) @ here, there, use_reentrant=False),
    ],
)
def test_an_operator_takes_no_tensors_of_two_devices(mixed):
    there, here = torch.ones(2, 2, device="cuda", requires_grad=True), torch.ones(2, 2)
    with pytest.raises(RuntimeError, match="at least two devices"):
        mixed(there, here)
    mixed(there, here.to("cuda"))


@pytest.mark.usefixtures("card")
def test_a_tensor_of_the_card_is_no_array():
    with pytest.raises(TypeError, match=r"Use Tensor\.cpu"):
        torch.ones(2, device="cuda").numpy()
    assert torch.ones(2, device="cuda").cpu().numpy().sum() == 2


@pytest.mark.parametrize(
    ("work", "count"),
    [
        (lambda there: there * 2 + torch.tensor(1.0), 0),
        (lambda there: torch.ones(2).to("cuda", non_blocking=True) + there, 0),
        (lambda there: torch.ones(2).to("cuda") + there, 1),
        (lambda there: there.cpu(), 1),
        (lambda there: float(there[0]), 1),
        (lambda there: there.tolist(), 1),
        (lambda there: there[there > 0], 1),
        (lambda there: there[torch.tensor([0])], 1),
        (lambda there: there.nonzero(), 1),
        (lambda there: torch.ones(2).copy_(there), 1),
    ],
)
def test_what_waits_is_noted(card, work, count):
    there = torch.ones(2, device="cuda")
    work(there)
    assert len(card.waits) == count, card.waits
