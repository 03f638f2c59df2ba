"""The memory of each process of a run on its GPU, from the recipe alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod

import torch

from actors.policy.families.family import DTYPES
from actors.policy.families.registry import family_class
from actors.policy.settings import PolicySettings
from actors.rollout.plans import Plan, make_plan
from system.capacity.architecture import architecture, conditioning_shapes
from system.capacity.cards import GB, Card
from system.capacity.packing import Ask, fewest, nodes_of, pack
from system.capacity.passes import (
    decode_pass,
    largest_block_bytes,
    latent_shape,
    learner_pass,
    part_sizes,
    rollout_pass,
    text_encoders,
    trained_parameters,
)
from system.capacity.scorers import Reward, reward_of
from system.recipe.model import RunConfig

FP32_BYTES = 4
ADAM_MOMENTS = 2
CONTEXT_BYTES = 1.0 * GB
"""What CUDA and its libraries take in each process, an assumption."""
SCORER = "scorer "
"""What the role of a reward model begins with; its name follows."""
USABLE = 0.95
"""Share of a card's memory that can be filled: the rest is lost to fragments of the allocator, an assumption."""


@dataclass(frozen=True)
class Process:
    """The memory of one process on its GPU: what it always holds, and what each of its phases takes for a time."""

    role: str
    """`rollout`, `learner`, `colocated`, `scorer NAME`, or `local` for all of them in one."""
    count: int
    gpus: float
    """GPUs that one of them asks for."""
    held: dict[str, float]
    """Bytes by what they are."""
    phases: dict[str, float] = field(default_factory=dict)
    """Bytes at the peak of each phase. Phases follow each other, so that the largest counts."""

    @property
    def peak_bytes(self) -> float:
        return sum(self.held.values()) + max(self.phases.values(), default=0.0)

    @property
    def phase(self) -> str:
        """The phase with the peak."""
        return max(self.phases, key=lambda name: self.phases[name], default="")

    def share_bytes(self, card: Card) -> float:
        """Its share of a card's memory: that of the fraction of a GPU that it asks for, or all."""
        return card.memory_bytes * min(1.0, self.gpus or 1.0)

    def fits(self, card: Card) -> bool:
        """Whether it fits its share of the card."""
        return self.peak_bytes + CONTEXT_BYTES <= USABLE * self.share_bytes(card)

    def least_share(self, card: Card) -> float:
        """The smallest share of a card that it fits; more than 1 if it does not fit the card."""
        return (self.peak_bytes + CONTEXT_BYTES) / (USABLE * card.memory_bytes)


def local_policy(config: RunConfig) -> PolicySettings:
    """The policy's settings, its model being the folder that holds its shapes."""
    return config.policy.model_copy(update={"model": str(architecture(config.policy.model))})


def shards_trained(config: RunConfig) -> bool:
    """Whether each rank of the learner holds a part of what is trained, not all of it; an adapter stays whole."""
    return config.learner.shard and config.policy.lora is None


def own_parameters(config: RunConfig) -> float:
    """The trained numbers that one rank holds."""
    return trained_parameters(local_policy(config)) / (config.learner.ranks if shards_trained(config) else 1)


def forwards_per_row(policy: PolicySettings) -> int:
    """Rows of the model for one velocity: 2 with classifier-free guidance."""
    return family_class(policy).forwards(policy)


def first_plan(config: RunConfig) -> Plan:
    """The plan of a task. Where steps are drawn, that of the first draw."""
    return make_plan(config.plan, config.policy.num_steps)


def experience_bytes(config: RunConfig) -> float:
    """Bytes of what one task gives the learner: states and means, or final latents, in fp32, and text embeddings."""
    plan, policy = first_plan(config), local_policy(config)
    arrays = 2 * plan.decisions if plan.trained_steps else plan.leaves
    text = conditioning_shapes(policy).values()
    text_bytes = DTYPES[policy.dtype].itemsize * sum(prod(shape) for shape in text)
    return float(FP32_BYTES * arrays * prod(latent_shape(policy)) + text_bytes)


def processes(config: RunConfig) -> list[Process]:
    """Every kind of process of a run that computes with a model or has a GPU, in the order of its placement group.

    Raises:
        UserError: the shapes of the policy's model are not known.
    """
    policy = local_policy(config)
    rollout, learner = config.rollout, config.learner
    generates, learns = _rollout_phases(config, policy), _learner_phases(config, policy)
    shared = _base(policy, 1.0)
    both: list[Process]
    if config.placement == "colocated":
        held = shared | _decoders(config, policy) | _trained(config, policy) | _sampled(policy)
        gpus = max(rollout.num_gpus, learner.num_gpus)
        both = [Process("colocated", learner.ranks, gpus, held, generates | learns)]
        alone = rollout.workers - learner.ranks
    else:
        share = 1 / learner.ranks if learner.shard else 1.0
        held = _base(policy, share, sharded=learner.shard) | _trained(config, policy)
        both = [Process("learner", learner.ranks, learner.num_gpus, held, learns)]
        alone = rollout.workers
    if alone:
        held = shared | _decoders(config, policy) | _adapter(policy)
        workers = Process("rollout", alone, rollout.num_gpus, held, generates)
        both = [*both, workers] if config.placement == "colocated" else [workers, *both]
    return both + list(_scorers(config))


def local_process(config: RunConfig) -> Process:
    """The one process of `tempflow train --local`: a generator, a learner of one rank and a replica of each scorer.

    They take turns. If any of them asks for a GPU, all of them use it.

    Raises:
        UserError: the shapes of the policy's model are not known.
    """
    roles = processes(config)
    if config.placement == "colocated":
        roles = [one for one in roles if one.role != "rollout"]  # its learner's process generates, too
    held: dict[str, float] = {}
    phases: dict[str, float] = {}
    for one in roles:
        own = one.held if not one.role.startswith(SCORER) else {f"{one.role}'s weights": one.held["weights"]}
        for name, num_bytes in own.items():
            held[name] = held.get(name, 0.0) + num_bytes
        for name, num_bytes in one.phases.items():
            phases[name] = max(phases.get(name, 0.0), num_bytes)
    return Process("local", 1, max((one.gpus for one in roles), default=0), held, phases)


def _base(policy: PolicySettings, share: float, sharded: bool = False) -> dict[str, float]:
    trains_all = sharded and policy.lora is None
    dtype = torch.float32 if trains_all else DTYPES[policy.dtype]
    return {"transformer": share * part_sizes(policy.model, "transformer", dtype)[1]}


def _adapter(policy: PolicySettings) -> dict[str, float]:
    if policy.lora is None:
        return {}
    return {"adapter": float(trained_parameters(policy) * DTYPES[policy.dtype].itemsize)}


def _sampled(policy: PolicySettings) -> dict[str, float]:
    """The weights that a colocated worker samples from, beside those that it trains."""
    return {"sampled weights": float(trained_parameters(policy) * DTYPES[policy.dtype].itemsize)}


def _base_copy(config: RunConfig, dtype: str) -> dict[str, float]:
    """The base that a learner without an adapter keeps for the loss to compare with."""
    if config.policy.lora is not None or not config.objective.compares_with_reference:
        return {}
    return {"base for comparison": own_parameters(config) * DTYPES[dtype].itemsize}


def _trained(config: RunConfig, policy: PolicySettings) -> dict[str, float]:
    """All that a learner keeps for the trained parameters."""
    count, learner, whole = trained_parameters(policy), config.learner, shards_trained(config)
    sets = len(config.objective.weight_sets(learner.ema))
    fp32 = FP32_BYTES * own_parameters(config)
    held = {"gradients": fp32}
    if learner.optimizer == "adamw":
        held["Adam"] = ADAM_MOMENTS * fp32
    if policy.dtype != "fp32" and not whole:
        held["fp32 masters"] = fp32
    if sets:
        held["weight sets"] = sets * fp32
    if learner.max_staleness:
        held["past versions"] = float(learner.max_staleness * count * DTYPES[policy.dtype].itemsize)
    return held | _adapter(policy) | _base_copy(config, "fp32" if whole else policy.dtype)


def _decoders(config: RunConfig, policy: PolicySettings) -> dict[str, float]:
    held = {"VAE": float(part_sizes(policy.model, "vae", DTYPES[policy.vae_dtype])[1])}
    if not config.rollout.offload_text_encoders:
        held["text encoders"] = float(sum(num_bytes for _, num_bytes in text_encoders(policy).values()))
    return held


def rollout_rows(config: RunConfig, policy: PolicySettings) -> int:
    """Velocities of one micro-batch of the sampler."""
    return max(1, config.rollout.micro_batch // forwards_per_row(policy))


def sampling(config: RunConfig, policy: PolicySettings) -> PolicySettings:
    """The policy as it samples: without the layers of an adapter that is merged into the base."""
    return policy.model_copy(update={"lora": None}) if config.rollout.merge_adapter else policy


def learned_policy(config: RunConfig, policy: PolicySettings) -> PolicySettings:
    """The policy as the loss computes it: without classifier-free guidance if the objective trains without."""
    return policy if config.objective.trains_guided else family_class(policy).without_guidance(policy)


def compared(config: RunConfig) -> int:
    """Forwards without a gradient that the loss of a row needs beside its own forward and backward."""
    return config.objective.passes - 3


def _rollout_phases(config: RunConfig, policy: PolicySettings) -> dict[str, float]:
    plan, one = first_plan(config), prod(latent_shape(policy)) * FP32_BYTES
    latents = plan.leaves * one + 2 * experience_bytes(config)  # recorded, and once more where they are put together
    phases = {
        "sampling": latents + rollout_pass(sampling(config, policy), rollout_rows(config, policy)).peak_bytes,
        "decoding": latents + decode_pass(policy, config.rollout.decode_batch).peak_bytes,
    }
    heldout = config.eval_sampling.of(policy).model_copy(update={"num_steps": policy.num_steps})
    if config.eval_sets and heldout != policy:
        images = config.eval.batch * prod(latent_shape(heldout)) * FP32_BYTES
        rows = rollout_rows(config, heldout)
        phases["sampling held-out images"] = images + rollout_pass(sampling(config, heldout), rows).peak_bytes
        phases["decoding held-out images"] = images + decode_pass(heldout, config.rollout.decode_batch).peak_bytes
    if config.rollout.offload_text_encoders:
        phases["encoding text"] = float(sum(num_bytes for _, num_bytes in text_encoders(policy).values()))
    return phases


def _learner_phases(config: RunConfig, policy: PolicySettings) -> dict[str, float]:
    learned = learned_policy(config, policy)
    peak = learner_pass(learned, config.learner.micro_batch, bool(compared(config))).peak_bytes
    if config.learner.shard:
        peak += 2 * largest_block_bytes(policy.model, DTYPES[policy.dtype])  # the one that runs, and the next
    sums = config.learner.ranks > 1 and not shards_trained(config)
    if config.learner.optimizer != "adamw" and not sums:
        return {"learning": peak}  # one parameter after the other takes its step
    # Ranks sum all gradients in one buffer; then AdamW makes the root of the second moment beside it.
    return {"learning": peak, "optimizer step": FP32_BYTES * own_parameters(config)}


def _scorers(config: RunConfig) -> Iterator[Process]:
    for scorer in config.scorers:
        found: Reward = reward_of(scorer, config.policy)
        if (found.num_bytes or scorer.num_gpus) and not config.reward.app:
            role = SCORER + scorer.name
            held, phases = {"weights": found.num_bytes}, {"scoring": found.activation_bytes}
            yield Process(role, scorer.replicas.max, scorer.num_gpus, held, phases)


def asks(found: list[Process]) -> tuple[list[Ask], list[Ask]]:
    """What each process asks for: those of the placement group, and the replicas of scorers."""
    each = [Ask(one.role, 0, one.gpus) for one in found for _ in range(one.count)]
    group = [ask for ask in each if not ask.role.startswith(SCORER)]
    return group, [ask for ask in each if ask.role.startswith(SCORER)]


def _cards(config: RunConfig) -> list[list[str]]:
    """The roles that meet on each GPU, if there are as many GPUs as the recipe needs."""
    group, replicas = asks(processes(config))
    return pack(group, replicas, nodes_of(fewest(group, replicas))).cards


def shared_scorers(config: RunConfig) -> set[str]:
    """The scorers that share GPUs with processes that generate, by name."""
    shared = [roles for roles in _cards(config) if {"rollout", "colocated"} & set(roles)]
    return {role.removeprefix(SCORER) for roles in shared for role in roles if role.startswith(SCORER)}


def reward_gpus(config: RunConfig) -> int:
    """GPUs that have replicas of scorers alone."""
    return sum(bool(roles) and all(role.startswith(SCORER) for role in roles) for roles in _cards(config))
