"""Evaluates each contender on the same prompts and noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from system.evaluation.contenders import Contender
from system.loop.evaluate import Watcher, evaluate
from system.loop.evaluation import Evaluation
from system.loop.heldout import HeldOut
from system.loop.stop import StopFlag
from system.recipe.model import RunConfig

if TYPE_CHECKING:
    from actors.policy.settings import PolicySettings
    from actors.policy.weights import Arrays, Exported, Weights
    from system.loop.roles import Roles

    Started = tuple[Roles, Callable[[Weights], Exported]]
    """The roles, and how weights are handed to them."""

Results = dict[str, dict[str, Evaluation]]
"""The evaluation of each set by name, for each contender by name."""


def evaluate_all(
    config: RunConfig,
    contenders: Sequence[Contender],
    sets: Sequence[HeldOut],
    local: bool,
    watcher_of: Callable[[str], Watcher | None],
) -> Results:
    """Evaluate each contender on each set.

    Args:
        local: in this process instead of on Ray.
        watcher_of: what gets the images of a contender, by its name.
    """
    results: Results = {}
    with StopFlag() as stop, (_local_roles if local else _ray_roles)(config, stop) as (roles, exported):
        for one in contenders:
            weights = exported(_as_a_learner_sends(one.read(), config.policy)) if one.read else None
            results[one.name] = evaluate(
                roles, config, sets, stop.check, weights, one.sampling, watch=watcher_of(one.name)
            )
    return results


def _as_a_learner_sends(arrays: Arrays, policy: PolicySettings) -> Weights:
    """Weights from a file as version 0, in the compute dtype."""
    from actors.policy.arrays import to_arrays, to_tensor
    from actors.policy.families.family import DTYPES
    from actors.policy.weights import Weights, checksum

    sent = to_arrays({name: to_tensor(array).to(DTYPES[policy.dtype]) for name, array in arrays.items()})
    return Weights(0, checksum(sent), sent)


@contextmanager
def _ray_roles(config: RunConfig, stop: StopFlag) -> Iterator[Started]:
    import ray

    from actors.policy.weights import Exported
    from system.launch.cluster import connect
    from system.launch.roles import RayRoles

    def exported(weights: Weights) -> Exported:
        return Exported((ray.put(weights.arrays),), weights.label)

    with TemporaryDirectory(prefix="tempflow-eval-") as logs, ExitStack() as stack:
        stack.callback(ray.shutdown)
        with stop.deferred("Ray"):
            connect()
        with stop.starting():
            roles = stack.enter_context(RayRoles(config, [], Path(logs), learns=False))
        yield roles, exported


@contextmanager
def _local_roles(config: RunConfig, stop: StopFlag) -> Iterator[Started]:
    from actors.policy.weights import Exported
    from system.local.roles import LocalRoles

    def exported(weights: Weights) -> Exported:
        return Exported((weights.arrays,), weights.label)

    yield LocalRoles(config, [], stop.check, learns=False), exported
