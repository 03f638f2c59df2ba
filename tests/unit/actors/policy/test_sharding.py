"""A transformer that two processes share: each reads its own rows, and both together hold what one would."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from actors.policy.policy import Policy
from actors.policy.settings import PolicySettings
from actors.policy.sharding import full, local, rows_here
from services.base.errors import UserError
from system.capacity.architecture import random_conditioning
from system.capacity.trace import Tracer
from tests.helpers.families import FAMILIES
from tests.helpers.ranks import SIZE
from tests.helpers.tiny import stir, tiny_settings

FULL = {"lora": None}
KINDS = pytest.mark.parametrize(
    "changes",
    [FULL, FULL | {"dtype": "bf16"}, {"dtype": "bf16"}],
    ids=["every weight", "every weight, bf16", "adapter, bf16"],
)
CASES = pytest.mark.parametrize("case", FAMILIES, ids=str)
FILE = "diffusion_pytorch_model.safetensors"


class Held(Tracer):
    """Counts the bytes of tensors that have data: not those on `meta`, nor shards behind a DTensor."""

    def _watch(self, storage) -> None:
        try:
            has_data = bool(storage.data_ptr())
        except RuntimeError:
            return
        if has_data:
            super()._watch(storage)


def tensors_of(policy: Policy) -> dict[str, Tensor]:
    """All that its transformer holds, by name."""
    transformer = policy.transformer
    return {**dict(transformer.named_parameters()), **dict(transformer.named_buffers())}


def velocity_of(policy: Policy) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    x_NZ = torch.randn(2, *policy.family.latent_shape, generator=generator)
    conditioning = {name: tensor.expand(2, *tensor.shape[1:]) for name, tensor in given(policy).items()}
    with torch.no_grad():
        return policy.family.velocity(x_NZ, torch.tensor([0.9, 0.4]), conditioning)


def given(policy: Policy) -> dict[str, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return random_conditioning(policy.family)


def load(_: int, settings: PolicySettings) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """The rows of this rank, everything gathered, and a velocity."""
    policy = Policy(settings, 0, "transformer", ranks=SIZE)
    tensors = {name: tensor.detach() for name, tensor in tensors_of(policy).items()}
    rows = {name: local(tensor).clone() for name, tensor in tensors.items()}
    whole = {name: full(tensor).clone() for name, tensor in tensors.items()}
    return rows, whole, velocity_of(policy)


@CASES
@KINDS
def test_two_ranks_hold_the_bits_of_one(case, changes, tiny_folder, together):
    settings = tiny_settings(tiny_folder(case), **(case.settings | changes))
    plain = Policy(settings, 0, "transformer")
    expected, velocity = tensors_of(plain), velocity_of(plain)
    for rank, (rows, whole, found) in enumerate(together(load, settings)):
        assert whole.keys() == expected.keys()
        for name, tensor in expected.items():
            shared = name in dict(plain.transformer.named_parameters()) and ".lora_" not in name
            master = shared and settings.lora is None
            assert whole[name].dtype == (torch.float32 if master else tensor.dtype)
            assert torch.equal(whole[name], tensor.to(whole[name].dtype)), name
            assert torch.equal(rows[name], whole[name].tensor_split(SIZE)[rank] if shared else whole[name])
        assert torch.equal(found, velocity)


def rows_of(rank: int, whole: Tensor) -> tuple[Tensor, Tensor]:
    tensor = distribute_tensor(whole, init_device_mesh("cpu", (SIZE,)), [Shard(0)])
    return whole[rows_here(tensor)], tensor.to_local()


@pytest.mark.parametrize("rows", [1, 2, 5, 6])
def test_the_rows_of_a_rank_are_those_of_its_shard(rows, together):
    for expected, found in together(rows_of, torch.arange(2.0 * rows).view(rows, 2)):
        assert torch.equal(expected, found)


def held(_: int, settings: PolicySettings, ranks: int) -> tuple[int, int, int]:
    """Bytes at the peak of a load beside the rows of a rank, of the largest tensor, and of all."""
    tracer = Held()
    with tracer:
        policy = Policy(settings, 0, "transformer", keeps_base=False, ranks=ranks)
    sizes = [tensor.numel() * tensor.itemsize for tensor in policy.transformer.parameters()]
    return tracer.trace.peak_bytes, max(sizes), sum(sizes)


@pytest.mark.parametrize("changes", [FULL, {}], ids=["every weight", "adapter"])
def test_a_rank_holds_one_whole_tensor_at_most(changes, tiny_folder, together):
    flux = FAMILIES[1]
    settings = tiny_settings(tiny_folder(flux), dtype="bf16", **flux.settings, **changes)
    for peak, largest, total in together(held, settings, SIZE):
        assert peak <= 2 * largest < total / 4
    peak, _, total = held(0, settings, 1)
    assert peak >= total  # the same count sees a model that is loaded as a whole


def test_files_of_a_model_in_several_parts(sd3_folder, tmp_path, together):
    folder = tmp_path / "model"
    shutil.copytree(sd3_folder, folder)
    SD3Transformer2DModel.from_pretrained(folder / "transformer").save_pretrained(
        tmp_path / "parts", max_shard_size="20KB"
    )
    shutil.rmtree(folder / "transformer")
    (tmp_path / "parts").rename(folder / "transformer")
    assert len(list((folder / "transformer").glob("*.safetensors"))) > 2
    (_, one, _), (_, parts, _) = (together(load, tiny_settings(path, **FULL))[0] for path in (sd3_folder, folder))
    assert all(torch.equal(tensor, parts[name]) for name, tensor in one.items())


def refused(_: int, settings: PolicySettings) -> str:
    try:
        Policy(settings, 0, "transformer", ranks=SIZE)
    except UserError as error:
        return str(error)
    return ""


def without(tensors: dict) -> dict:
    return {name: tensor for name, tensor in tensors.items() if name != "norm_out.linear.bias"}


def not_finite(tensors: dict) -> dict:
    return tensors | {"norm_out.linear.bias": torch.full_like(tensors["norm_out.linear.bias"], torch.nan)}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without, "policy.model: the files in `.*` lack the weight norm_out.linear.bias; copy them again"),
        (not_finite, "policy.model: `.*` holds NaN or infinity in norm_out.linear.bias; copy it again"),
    ],
)
def test_broken_files_are_named_on_each_rank(change, says, sd3_folder, tmp_path, together):
    folder = tmp_path / "model"
    shutil.copytree(sd3_folder, folder)
    file = folder / "transformer" / FILE
    save_file(change(load_file(file)), file, {"format": "pt"})
    for message in together(refused, tiny_settings(folder)):
        with pytest.raises(UserError, match=says):
            raise UserError(message)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_training_starts_from_the_transformer_of_an_earlier_run(dtype, sd3_folder, tmp_path, together):
    changes = FULL | {"dtype": dtype}
    earlier = Policy(tiny_settings(sd3_folder, **changes), 0)
    stir(earlier)
    earlier.save(tmp_path)
    (_, whole, _), _ = together(load, tiny_settings(sd3_folder, adapter=str(tmp_path), **changes))
    for name, parameter in earlier.parameters.items():
        assert torch.equal(whole[name], parameter.detach().float())


def saved(rank: int, settings: PolicySettings, folder: Path) -> None:
    policy = Policy(settings, 0, "transformer", ranks=SIZE)
    arrays = {name: full(parameter.detach()).numpy() for name, parameter in policy.parameters.items()}
    if not rank:
        policy.save(folder, arrays)


def test_a_saved_transformer_has_the_class_of_the_model(sd3_folder, tmp_path, together):
    together(saved, tiny_settings(sd3_folder, **FULL), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["_class_name"] == "SD3Transformer2DModel"
    read = SD3Transformer2DModel.from_pretrained(tmp_path)
    assert all(
        torch.equal(tensor, read.state_dict()[name])
        for name, tensor in SD3Transformer2DModel.from_pretrained(sd3_folder / "transformer").named_parameters()
    )
