"""The recipes that come with tempflow: each fits on the hardware that it names, and pads next to nothing."""

import re

import pytest

from actors.policy.families.family import Family
from actors.policy.families.flux import Flux
from actors.policy.families.flux2 import Flux2, Flux2Klein
from actors.policy.families.qwen_image import QwenImage
from actors.policy.families.qwen_image21 import QwenImage21
from actors.policy.families.sd3 import SD3
from actors.policy.families.z_image import ZImage
from actors.rollout.plans import make_plan
from system.capacity.counts import live_rows, trained_rows
from system.capacity.estimate import MOST_PADDING
from system.manifests.infra import Nodes, load_infra
from system.manifests.sizing import pods, ranks, replicas, workers
from system.recipe.find import recipe_names
from system.recipe.load import load_config, load_with_sources
from system.recipe.model import RunConfig
from tests.helpers.paths import ROOT

NODE = load_infra(ROOT / "deploy" / "kuberay" / "eight_gpus.infra.yaml").workers
HARDWARE = re.compile(r"^# Hardware: (?:(\d) nodes? of (\d) GPUs?(?: of 80 GB)?|(\d) CPU cores)\.", re.MULTILINE)
FAMILIES: dict[str, type[Family]] = {
    "stabilityai/stable-diffusion-3.5-medium": SD3,
    "black-forest-labs/FLUX.1-dev": Flux,
    "black-forest-labs/FLUX.2-dev": Flux2,
    "black-forest-labs/FLUX.2-klein-base-4B": Flux2Klein,
    "Qwen/Qwen-Image": QwenImage,
    "Tongyi-MAI/Z-Image": ZImage,
    "Qwen/Qwen-Image-2.1": QwenImage21,
}
MINIATURES = [name for name in recipe_names() if name.startswith("shapes")]
REAL = [name for name in recipe_names() if name not in MINIATURES]


def hardware(name: str) -> tuple[int, Nodes]:
    """The nodes that the hardware layer of a recipe names, and how many."""
    text = load_with_sources(name)[1]["rollout", "workers"].read_text()
    ((count, gpus, cores),) = HARDWARE.findall(text)
    return (1, Nodes(cpus=int(cores))) if cores else (int(count), NODE.model_copy(update={"gpus": int(gpus)}))


def nodes_asked(config: RunConfig, nodes: Nodes, most: bool) -> int:
    return pods([*workers(config, most), *ranks(config), *replicas(config.scorers, most)], nodes)


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_fits_on_the_hardware_that_it_names(name):
    config = load_config(name)
    count, nodes = hardware(name)
    assert nodes_asked(config, nodes, most=False) == nodes_asked(config, nodes, most=True) == count


def test_one_worker_more_does_not_fit():
    count, nodes = hardware("sd35_pickscore")
    assert nodes_asked(load_config("sd35_pickscore", ["rollout.workers=9"]), nodes, most=False) > count


@pytest.mark.parametrize("name", REAL)
def test_as_many_workers_fit_on_a_node_as_it_has_gpus(name):
    """Ray chooses a node by the sum of its GPUs: ten workers of 0.75 would go to a node of 8, but not nine of 0.9."""
    config = load_config(name)
    alone = config.placement == "colocated" and config.rollout.workers == config.learner.ranks == 1
    assert alone or config.rollout.num_gpus == config.learner.num_gpus > NODE.gpus / (NODE.gpus + 1)


@pytest.mark.parametrize("name", REAL)
def test_micro_batches_are_full(name):
    config = load_config(name)
    plan = make_plan(config.plan, config.policy.num_steps)
    size = config.rollout.micro_batch // FAMILIES[config.policy.model].forwards(config.policy)
    rows_by_step = live_rows(plan)
    assert sum(rows_by_step) == plan.nfe
    padding = sum(-rows % size for rows in rows_by_step) / plan.nfe
    assert padding <= MOST_PADDING
    if config.plan.name == "trunk" and config.plan.seeds == 4:
        assert padding == 0
    assert plan.leaves % config.rollout.decode_batch == 0
    assert trained_rows(config, plan) % config.learner.micro_batch == 0
