"""What an export may be asked for. No Torch, so that the command line's help is quick."""

from enum import Enum, StrEnum, auto

from services.base.errors import UserError


class Layout(StrEnum):
    """How the weights lie in the folder."""

    DIFFUSERS = "diffusers"
    """An adapter for `load_lora_weights`; the whole transformer, if every weight is trained."""
    PEFT = "peft"
    COMFYUI = "comfyui"
    MERGED = "merged"
    """The base's transformer with the adapter added to its weights, for diffusers."""


class Chosen(Enum):
    """Checkpoints that are named by what they are, not by their step."""

    BEST = auto()
    """The one with the best held-out reward."""
    LAST = auto()


def chosen_step(text: str, option: str) -> int | Chosen:
    """The checkpoint that a text names: `best`, `last` or a training step.

    Args:
        option: of the command line, for the message.

    Raises:
        UserError: it names none.
    """
    named = {"best": Chosen.BEST, "last": Chosen.LAST}
    if text in named:
        return named[text]
    if not text.isdecimal():
        raise UserError(f"{option}: `{text}` is not a step; give best, last or a whole number")
    return int(text)
