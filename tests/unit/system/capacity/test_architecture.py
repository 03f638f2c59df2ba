"""Known models have the sizes that are published, and any model is built by its shapes."""

import json

import pytest
import torch
from safetensors import safe_open

from actors.policy.families.registry import family_class
from actors.policy.policy import Policy
from services.base.errors import UserError
from services.base.paths import resolve_model
from system.capacity.architecture import (
    architecture,
    assemble,
    build_family,
    build_part,
    conditioning_shapes,
    known_models,
    parts,
    random_conditioning,
)
from system.recipe.load import load_config
from tests.helpers.families import FAMILIES
from tests.helpers.tiny import tiny_settings

BILLIONS = {
    "stabilityai/stable-diffusion-3.5-medium": {"transformer": 2.24, "text_encoder_3": 4.76},
    "black-forest-labs/FLUX.1-dev": {"transformer": 11.9, "text_encoder_2": 4.76},
    "Qwen/Qwen-Image": {"transformer": 20.4, "text_encoder": 8.29},
    "black-forest-labs/FLUX.2-dev": {"transformer": 32.2, "text_encoder": 24.0},
    "Qwen/Qwen-Image-2512": {"transformer": 20.4, "text_encoder": 8.29},
    "Qwen/Qwen-Image-2.1": {"transformer": 7.115, "text_encoder": 8.77},
    "black-forest-labs/FLUX.2-klein-4B": {"transformer": 3.88, "text_encoder": 4.02},
    "black-forest-labs/FLUX.2-klein-base-4B": {"transformer": 3.88, "text_encoder": 4.02},
    "black-forest-labs/FLUX.2-klein-9B": {"transformer": 9.08, "text_encoder": 8.19},
    "black-forest-labs/FLUX.2-klein-base-9B": {"transformer": 9.08, "text_encoder": 8.19},
    "Tongyi-MAI/Z-Image": {"transformer": 6.15, "text_encoder": 4.02},
    "Tongyi-MAI/Z-Image-Turbo": {"transformer": 6.15, "text_encoder": 4.02},
}
"""Parameters as published, in 10⁹."""


@pytest.mark.parametrize("model", known_models())
def test_known_models_have_the_published_sizes(model):
    folder = architecture(model)
    for part, billions in BILLIONS[model].items():
        assert sum(p.numel() for p in build_part(folder, part).parameters()) / 1e9 == pytest.approx(billions, rel=0.01)
    assert {"scheduler", *parts(folder)} == {path.name for path in folder.iterdir() if path.is_dir()}


@pytest.mark.parametrize(
    "recipe", ["sd35_pickscore", "flux_hpsv3", "qwen_pickscore", "qwen21_pickscore_8gpu", "shapes"]
)
def test_every_model_of_a_recipe_is_known(recipe):
    assert (architecture(load_config(recipe, []).policy.model) / "model_index.json").is_file()


def test_a_model_that_is_not_known_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match=r"someone/else.*FLUX\.1-dev"):
        architecture("someone/else")
    with pytest.raises(UserError, match="no text_encoder_3"):
        build_part(architecture("Qwen/Qwen-Image"), "text_encoder_3")


@pytest.mark.parametrize("case", FAMILIES, ids=str)
def test_a_local_model_is_built_by_its_shapes(case, tmp_path):
    folder = case.build(tmp_path / "model")
    settings = tiny_settings(folder, guidance=case.guidances[1], **case.settings)
    policy = Policy(settings, seed=0)
    assert build_family(settings, torch.device("cpu")).pipe.vae is None
    folder = architecture(settings.model)
    made = assemble(settings, {part: build_part(folder, part, torch.device("cpu")) for part in ("transformer", "vae")})
    assert type(made) is family_class(settings)
    assert made.latent_shape == policy.family.latent_shape
    assert torch.equal(made.sigmas(4), policy.family.sigmas(4))
    for part in ("transformer", "vae"):
        loaded = {name: tuple(p.shape) for name, p in getattr(build_pipe(settings), part).state_dict().items()}
        assert {name: tuple(p.shape) for name, p in getattr(made.pipe, part).state_dict().items()} == loaded
    encoded = policy.family.encode(["a cat"])
    assert conditioning_shapes(settings).keys() == encoded.keys()
    for name, tensor in random_conditioning(made).items():
        assert tensor.shape[2:] == encoded[name].shape[2:]
    x_NZ = torch.randn(2, *made.latent_shape)
    rows = {name: tensor.expand(2, *tensor.shape[1:]) for name, tensor in random_conditioning(made).items()}
    assert made.velocity(x_NZ, torch.full((2,), 0.5), rows).shape == x_NZ.shape
    assert made.decode(x_NZ).shape == (2, 3, settings.height, settings.width)


def build_pipe(settings):
    return family_class(settings).load(settings, settings.model, torch.device("cpu"), "all").pipe


def test_the_miniatures_text_has_the_length_that_its_encoders_give():
    settings = load_config("shapes", []).policy
    encoded = Policy(settings, seed=0).family.encode(["a red circle"])
    assert {name: tuple(tensor.shape) for name, tensor in encoded.items()} == conditioning_shapes(settings)


def test_the_miniatures_files_have_the_shapes_of_its_configuration():
    folder = architecture("package:system.miniature/assets/policy")
    assert str(folder) == resolve_model("package:system.miniature/assets/policy")
    for part in parts(folder):
        made = {name: list(tensor.shape) for name, tensor in build_part(folder, part).state_dict().items()}
        for path in (folder / part).glob("*.safetensors"):
            with safe_open(path, "np") as file:
                for name in file.keys():  # noqa: SIM118 (not a mapping)
                    assert made[name] == file.get_slice(name).get_shape()


def test_packaged_configurations_hold_shapes_alone():
    for path in architecture("Qwen/Qwen-Image").parent.parent.rglob("*"):
        if path.is_file():
            assert path.suffix == ".json"
            assert isinstance(json.loads(path.read_text()), dict)
