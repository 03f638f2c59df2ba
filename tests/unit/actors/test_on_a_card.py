"""Rollout and learner on a GPU that is not there: tensors of two devices never meet, and the numbers are the CPU's.

`tests/gpu/test_no_waiting.py` runs every family there; this file runs what a recipe can switch on.
"""

import numpy as np
import pytest

from actors.learner.learner import Learner
from actors.learner.settings import EmaSettings, GrpoSettings, LearnerSettings
from actors.methods.awm import AwmSettings
from actors.methods.dgpo import DgpoSettings
from actors.methods.dpo import DpoSettings
from actors.methods.flow_dppo import DppoSettings
from actors.methods.grpo_guard import GuardSettings
from actors.methods.nft import NftSettings
from actors.methods.sft import SftSettings
from actors.policy.policy import Policy
from actors.rollout.plans import make_plan
from actors.rollout.plans.settings import SamplesSettings, TrunkSettings
from actors.rollout.sampling import Sampling
from actors.rollout.settings import RolloutSettings
from actors.rollout.worker import SharedGenerator
from actors.trajectory import Task
from services.base.storage import Folder
from tests.helpers.families import FAMILIES
from tests.helpers.learners import KERNEL, keep
from tests.helpers.pretend_card import pretend_card
from tests.helpers.tiny import tiny_settings

TRUNK, IMAGES = make_plan(TrunkSettings(seeds=1, explorations=2), 4), make_plan(SamplesSettings(seeds=2), 4)
TASK = Task(0, "a red cat", (0, 0, 0), 0)
CHECKPOINTED = {"gradient_checkpointing": True, "dtype": "bf16"}
CASES = [
    (GrpoSettings(kl=0.01, optimizer_steps=2), TRUNK, {"lora": None, "dtype": "bf16"}),
    (GuardSettings(optimizer_steps=2), TRUNK, CHECKPOINTED),
    (DppoSettings(epochs=2), TRUNK, CHECKPOINTED),
    (AwmSettings(kl=0.01, ema_weight=0.1, noise_levels=2), IMAGES, CHECKPOINTED),
    (NftSettings(kl=0.01, noise_levels=2), IMAGES, {}),
    (DpoSettings(copy_every=1, noise_levels=2), IMAGES, CHECKPOINTED),
    (DpoSettings(copy_every=None, noise_levels=2), IMAGES, {"lora": None}),
    (SftSettings(kl=0.01, copy_every=2, noise_levels=2), IMAGES, {}),
    (DgpoSettings(noise_levels=2), IMAGES, CHECKPOINTED),
]
"""Objective, plan and settings of the policy."""


@pytest.fixture(scope="module")
def tiny(tiny_folder):
    return tiny_folder(FAMILIES[0])


def trained(model, device: str, folder, objective, plan, policy) -> list[np.ndarray]:
    """What two updates with a resume between them give, and the images before and after, of a model that two roles
    share, with everything that a recipe can switch on."""
    settings = LearnerSettings(
        lr=1e-2, micro_batch=2, max_drift=10, max_staleness=1, optimizer="adamw_offload", ema=EmaSettings(every=1)
    )
    rollout = RolloutSettings(
        micro_batch=4, decode_batch=4, offload_text_encoders=True, merge_adapter=policy.get("lora", True) is not None
    )
    experience, found = None, []
    for version in range(2):
        own = Policy(tiny_settings(model, device=device, num_steps=4, guidance=4.5, **policy), 0)
        generator = SharedGenerator(own, KERNEL, rollout)
        learner = Learner(own, KERNEL, objective, settings, plan.trained_steps)
        if version:
            learner.restore(Folder.at(str(folder)), version)
        generator.load(learner.export())
        if experience is None:
            experience, images, _ = generator.generate(TASK, plan)
            found.append(images)
        shape = experience.log_prob_NK.shape if plan.trained_steps else (2, 1)
        learner.update([(experience, np.random.default_rng(0).normal(size=shape))] * 2, behaviour=0)
        keep(learner, folder)
        found += learner.export().arrays.values()
        generator.load(learner.evaluated())
        found.append(generator.sample(["a dog"], [(0, 9, 9)], Sampling(16, 16, 3, 4.5, base_after=0.5))[0])
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0].name)
def test_what_a_recipe_can_switch_on_runs_on_a_card_and_gives_the_numbers_of_the_cpu(tiny, tmp_path, case):
    for device in ("here", "there"):
        (tmp_path / device).mkdir()
    here = trained(tiny, "cpu", tmp_path / "here", *case)
    with pretend_card() as card:
        there = trained(tiny, "cuda", tmp_path / "there", *case)
    assert card.waits
    assert len(here) == len(there)
    for one, other in zip(here, there, strict=True):
        assert np.array_equal(one, other)
