"""The inputs of a recipe: the files and models that it names, and whether they have changed."""

from services.base.errors import UserError, first_line
from services.base.fingerprint import fingerprint_of
from system.recipe.model import RunConfig


def named_inputs(config: RunConfig) -> dict[str, str]:
    """Files and models by the key that names them. Every text among a scorer's options counts, as it may name one."""
    data, policy = config.data, config.policy
    named = {
        "data.train": data.train,
        "data.heldout": data.heldout,
        "policy.model": policy.model,
        "policy.adapter": policy.adapter,
        "objective.reference": config.objective.reference,
    }
    named |= {f"eval.sets.{name}.prompts": one.prompts for name, one in config.eval.sets.items()}
    for scorer in config.scorers:
        named |= {f"scorers.{scorer.name}.{key}": value for key, value in scorer.options.items()}
    return {key: value for key, value in named.items() if isinstance(value, str) and value}


def read_inputs(config: RunConfig) -> dict[str, str]:
    """Fingerprints of the inputs by key. Inputs that cannot be looked up on this machine are left out.

    Raises:
        UserError: an input cannot be read.
    """
    found = {}
    for key, name in named_inputs(config).items():
        try:
            found_now = fingerprint_of(name)
        except OSError as error:
            raise UserError(f"{key}: `{name}` cannot be read ({first_line(error)}); make it readable") from error
        if found_now is not None:
            found[key] = found_now
    return found


def changed_inputs(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """Keys whose fingerprint is known both before and now, and differs."""
    return [key for key in now if key in before and before[key] != now[key]]
