"""Settings of the plans."""

from typing import Annotated, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from actors.rollout.plans.plan import Solver
from services.base.settings import Listed, Settings, name_or


class _PlanSettings(Settings):
    """What every plan says of itself; each adds its `name`."""

    gives: ClassVar[Literal["decisions", "images"]] = "decisions"
    """What the learner can train on."""

    name: str

    @property
    def leaves_per_action(self) -> int:
        """How many times one action is completed."""
        return 1

    @property
    def has_baselines(self) -> bool:
        """Whether an action also owns the image that its state gives without it."""
        return False

    def check_group(self, group: str) -> None:
        """Refuse an advantage.group in which nothing is compared, or what cannot be.

        Raises:
            ValueError: names the group, the reason and the fix.
        """
        if group == "seed":
            raise ValueError(self._no_siblings("prompt"))

    def _no_siblings(self, instead: str) -> str:
        return (
            f"advantage.group = seed compares the branches of one state, and plan.name = {self.name} has none; "
            f"set advantage.group to {instead}"
        )


class TrunkSettings(_PlanSettings):
    """A deterministic trunk a seed, and at its steps K stochastic branches completed by ODE."""

    name: Literal["trunk"] = "trunk"
    seeds: int = Field(4, ge=1)
    """Initial noises a prompt, each with a trunk of its own."""
    explorations: int = Field(6, ge=1)
    """K, the branches drawn at one step of one trunk."""
    branch_steps: int | None = Field(None, ge=1)
    """Branch at the first so many steps only; at all but the last if not given."""
    strata: int | None = Field(None, ge=1)
    """Branch at so many of these steps, drawn anew for each task: one from each of `strata` runs of neighbouring steps.
    A step counts 1/p in the loss."""
    strides: Listed[Annotated[float, Field(ge=1)]] = Field((1.0,), min_length=1)
    """Each action is completed once for each of these, in steps of so many grid steps."""
    solver: Solver = "euler"
    """The solver of the completions; `dpm2` is DPM-Solver++ of second order."""

    @property
    def leaves_per_action(self) -> int:
        """An action is completed once for each stride."""
        return len(self.strides)

    def check_group(self, group: str) -> None:
        """A group needs at least two branches, unless it spans all steps of a prompt."""
        compared = self.explorations * (1 if group == "seed" else self.seeds)
        if group != "prompt" and compared < 2:
            raise ValueError(
                f"advantage.group = {group} compares {compared} branch with itself; set plan.explorations to at least 2"
            )


class ChainSettings(_PlanSettings):
    """Every step is stochastic, and all but the last may be trained on the final image's reward."""

    name: Literal["chain"] = "chain"
    seeds: int = Field(24, ge=2)
    """Trajectories a prompt (the group size)."""
    shared_noise: bool = False
    """All trajectories of a prompt start from one noise."""
    trained_share: float = Field(1.0, gt=0, le=1)
    """Share of the steps that is trained, drawn anew for each training step."""


class WindowSettings(_PlanSettings):
    """Stochastic in a window of steps, deterministic elsewhere."""

    name: Literal["window"] = "window"
    seeds: int = Field(12, ge=2)
    """Trajectories a prompt (the group size)."""
    shared_noise: bool = False
    """All trajectories of a prompt start from one noise."""
    size: int = Field(4, ge=1)
    """Steps of the window."""
    strategy: Literal["progressive", "decay", "random"] = "progressive"
    """`progressive`: the window slides by `shift` after every `every` training steps, and starts over at the end;
    `decay`: ever sooner beyond step `decay_from`; `random`: drawn anew for each training step."""
    within: int | None = Field(None, ge=1)
    """The window lies within the first so many steps; within all but the last if not given."""
    every: int = Field(25, ge=1)
    """Training steps after which the window slides."""
    shift: int = Field(1, ge=1)
    """Steps by which the window slides."""
    decay_from: int = Field(13, ge=0)
    """The step from which the window of `decay` slides sooner."""
    decay_rate: float = Field(0.1, ge=0)
    """How fast the training steps between two slides of `decay` become fewer."""
    stride: float = Field(1.0, ge=1)
    """After the window, in steps of so many grid steps."""
    solver: Solver = "euler"
    """The solver after the window; `dpm2` is DPM-Solver++ of second order."""
    baselines: bool = False
    """Complete each state of the window by ODE too: the image without the action, and without those after it."""

    @property
    def has_baselines(self) -> bool:
        """The recipe says so."""
        return self.baselines


class TreeSettings(_PlanSettings):
    """A tree whose edges are all stochastic; every node is compared within its depth."""

    name: Literal["tree"] = "tree"
    splits: Listed[int] = Field((0, 3, 6, 9), min_length=1)
    """Steps at which each trajectory splits."""
    width: int = Field(2, ge=2)
    """Children at a split."""
    pruned_depths: int = Field(0, ge=0)
    """So many neighbouring steps are sampled but not trained. They begin at the last trained step and slide one step
    towards the root after each training step."""

    def check_group(self, group: str) -> None:
        """Nodes are compared within their depth alone."""
        if group == "seed":
            raise ValueError(self._no_siblings("prompt_step"))
        if group == "prompt":
            raise ValueError(
                "advantage.group = prompt compares nodes of all depths of a tree; set advantage.group to prompt_step"
            )


class SamplesSettings(_PlanSettings):
    """Deterministic images, for objectives that train on images instead of decisions."""

    gives = "images"

    name: Literal["samples"] = "samples"
    seeds: int = Field(24, ge=2)
    """Images a prompt (the group size)."""


PlanSettings = Annotated[
    Annotated[TrunkSettings, Tag("trunk")]
    | Annotated[ChainSettings, Tag("chain")]
    | Annotated[WindowSettings, Tag("window")]
    | Annotated[TreeSettings, Tag("tree")]
    | Annotated[SamplesSettings, Tag("samples")],
    Discriminator(name_or("trunk")),
]
