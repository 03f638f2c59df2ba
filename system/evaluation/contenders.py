"""What `tempflow eval` compares: the base model, adapters and checkpoints, each with the way that it samples."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from actors.policy.weights import Arrays
from actors.rollout.sampling import Sampling
from services.base.errors import UserError
from system.export.choices import Chosen, chosen_step
from system.recipe.model import RunConfig

BASE = "base"
NAMED = re.compile(r"([A-Za-z0-9][\w.-]*)=(.+)")


@dataclass(frozen=True)
class Contender:
    """Weights and a way to sample with them."""

    name: str
    """The name in tables and on the page."""
    read: Callable[[], Arrays] | None
    """Reads the trained weights under the policy's names; None for the base model."""
    sampling: Sampling


def contenders_of(
    config: RunConfig,
    adapters: Sequence[str],
    checkpoints: Sequence[str],
    base_after: Sequence[float],
    against: str | None = None,
) -> list[Contender]:
    """The base model, then each adapter and checkpoint for each share of `base_after`.

    The others are compared with the first.

    Args:
        adapters: each `[NAME=]FOLDER`.
        checkpoints: each `[NAME=]RUN[@STEP]`, where STEP is `best`, `last` or a number; `last` if it is left out.
        base_after: the shares of the sampling steps after which the base model takes over.
        against: the name of the contender that comes first; None for the base model.

    Raises:
        UserError: weights are missing or do not fit the model, no contender is named `against`, or two contenders
            have one name.
    """
    sampling = config.eval_sampling
    found = [Contender(BASE, None, replace(sampling, base_after=0.0))]
    trained = [_adapter(config, text) for text in adapters] + [_checkpoint(config, text) for text in checkpoints]
    for name, read in trained:
        for share in base_after or (1.0,):
            said = name if share == 1 else f"{name} (base after {share:g})"
            found.append(Contender(said, read, replace(sampling, base_after=share)))
    names = [one.name for one in found]
    if len(set(names)) < len(names):
        twice = max(names, key=names.count)
        raise UserError(f"two models are named `{twice}`; name one of them, as in --adapter other=FOLDER")
    if against is not None and against not in names:
        raise UserError(f"--against: no model is named `{against}`; name one of {', '.join(names)}")
    return sorted(found, key=lambda one: one.name != (against or BASE))


def _adapter(config: RunConfig, text: str) -> tuple[str, Callable[[], Arrays]]:
    from actors.policy.trained import check_trained, read_trained

    name, path = _named(text)
    folder, lora = Path(path), config.policy.lora
    check_trained(config.policy, folder, "--adapter")

    def read() -> Arrays:
        return read_trained(folder, lora, "--adapter")

    return name or "/".join(folder.resolve().parts[-2:]), _reading_once(read, config)


def _checkpoint(config: RunConfig, text: str) -> tuple[str, Callable[[], Arrays]]:
    from actors.policy.arrays import to_arrays
    from system.export.weights import find_weights

    name, rest = _named(text)
    path, at, step = rest.rpartition("@")
    run, chosen = (Path(path), chosen_step(step, "--checkpoint")) if at else (Path(rest), Chosen.LAST)
    found = find_weights(run, chosen, average=True)
    theirs, ours = found.config.policy, config.policy
    if (theirs.model, theirs.lora) != (ours.model, ours.lora):
        raise UserError(
            f"--checkpoint: `{run}` trained another model, or an adapter of another kind (policy.lora); evaluate it "
            f"with its own recipe: tempflow eval {run}"
        )

    def read() -> Arrays:
        return to_arrays(found.read())

    return name or f"{run.resolve().name}@{found.step}", _reading_once(read, config)


def _reading_once(read: Callable[[], Arrays], config: RunConfig) -> Callable[[], Arrays]:
    """Read an adapter now, so that a damaged one is refused before anything is evaluated, and keep it.

    A whole transformer is read when its turn comes: several of them may not fit into memory.
    """
    if config.policy.lora is None:
        return read
    arrays = read()
    return lambda: arrays


def _named(text: str) -> tuple[str, str]:
    """The name and the path of `[NAME=]PATH`."""
    if (match := NAMED.fullmatch(text)) and not Path(text).exists():
        return match[1], match[2]
    return "", text
