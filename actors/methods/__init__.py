"""Methods, one file each. A method gives the defaults of a recipe with `method: NAME`.

Each file defines `METHOD`: the plan, kernel, advantage rule and objective of the method, with the published settings.
The file's docstring names the paper, the weight sets, the cost, the refused settings and the deviations. No other code
names a method: the files are found by listing this folder. They do not import PyTorch, so that a recipe can be checked
without it.
"""

import difflib
import pkgutil
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import Discriminator, Tag

from actors.learner.settings import AdvantageSettings, EmaSettings, GrpoSettings, ObjectiveSettings
from actors.policy.settings import KernelSettings
from actors.rollout.plans.settings import PlanSettings
from services.base.errors import UserError
from services.base.settings import Settings, name_or

DEFAULT_METHOD = "tempflow"


@dataclass(frozen=True)
class Method:
    """A choice of plan, kernel, advantage rule and objective."""

    plan: PlanSettings
    kernel: KernelSettings
    """The kernel is not used if the plan has no stochastic step."""
    advantage: AdvantageSettings
    objective: ObjectiveSettings
    ema: EmaSettings | None = None
    """The moving average of the weights that the method needs; None if it needs none."""
    micro_batch: int | None = None
    """Rows of a micro-batch of the learner, where the objective does not take every number."""

    @property
    def defaults(self) -> dict[str, dict[str, Any]]:
        """The keys of a recipe that the method sets. The recipe's own values take precedence."""
        given = {key: _given(getattr(self, key)) for key in ("plan", "kernel", "advantage", "objective")}
        learner: dict[str, Any] = {} if self.ema is None else {"ema": self.ema.model_dump(mode="json")}
        if self.micro_batch is not None:
            learner["micro_batch"] = self.micro_batch
        return given | ({"learner": learner} if learner else {})


def _given(settings: Settings) -> dict[str, Any]:
    """The values that a method sets, and the `name` that they belong to."""
    return settings.model_dump(mode="json", include={*settings.model_fields_set, "name"})


def method_names() -> list[str]:
    """The names of all methods in alphabetical order."""
    return list(METHODS)


def find_method(name: str) -> Method:
    """A method by the name of its file.

    Raises:
        UserError: there is no such method. The message suggests the nearest name.
    """
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, 1)
        raise UserError(f"no method `{name}`; {f'did you mean `{near[0]}`?' if near else f'there are {list(METHODS)}'}")
    return METHODS[name]


def method_file(name: str) -> Path:
    """The file of a method.

    Raises:
        UserError: there is no such method. The message suggests the nearest name.
    """
    find_method(name)
    return Path(__file__).with_name(f"{name}.py")


METHODS: dict[str, Method] = {
    file.name: import_module(f"{__name__}.{file.name}").METHOD
    for file in sorted(pkgutil.iter_modules(__path__), key=lambda file: file.name)
}

if TYPE_CHECKING:
    AnyObjective = ObjectiveSettings
else:
    _OBJECTIVES = dict.fromkeys([GrpoSettings, *(type(method.objective) for method in METHODS.values())])
    AnyObjective = Annotated[
        Union[tuple(Annotated[kind, Tag(kind.model_fields["name"].default)] for kind in _OBJECTIVES)],  # noqa: UP007
        Discriminator(name_or("grpo")),
    ]
    """The objectives of all methods, distinguished by `name`."""
