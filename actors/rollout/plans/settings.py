"""Settings of the plans."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from actors.rollout.plans.plan import Solver
from services.base.settings import Listed, Settings, name_or


class _PlanSettings(Settings):
    """The base of all plans' settings. Each plan sets its own `name`."""

    gives: ClassVar[Literal["decisions", "images"]] = "decisions"
    """The kind of data that the plan gives the learner."""

    name: str

    @property
    def leaves_per_action(self) -> int:
        """The number of leaves that one action is completed to."""
        return 1

    @property
    def has_baselines(self) -> bool:
        """Whether an action also owns its baseline: the image that its state leads to without the action."""
        return False

    def check_group(self, group: str) -> None:
        """Refuse an advantage.group that compares nothing, or compares actions that are not comparable.

        Raises:
            ValueError: the group is refused. The message names the group, the reason and the fix.
        """
        if group == "seed":
            raise ValueError(self._no_siblings("prompt"))

    def _no_siblings(self, instead: str) -> str:
        return (
            f"advantage.group = seed compares the branches of one state, but plan.name = {self.name} has none; "
            f"set advantage.group to {instead}"
        )


class TrunkSettings(_PlanSettings):
    """One deterministic trunk per seed. At its steps, K stochastic branches are drawn and completed by ODE."""

    name: Literal["trunk"] = "trunk"
    seeds: int = Field(4, ge=1)
    """Initial noises per prompt. Each has its own trunk."""
    explorations: int = Field(6, ge=1)
    """K, the number of branches drawn at one step of one trunk."""
    branch_steps: int | None = Field(None, ge=1)
    """How many of the first steps branch. If not given, all steps except the last branch."""
    strata: int | None = Field(None, ge=1)
    """Branch at only this many of these steps, drawn anew for each task. The steps are divided into `strata` ranges of
    neighbouring steps, and one step is drawn from each. The loss weights a step of probability p by 1/p."""
    strides: Listed[Annotated[float, Field(ge=1)]] = Field((1.0,), min_length=1)
    """Each action is completed once per stride. A stride is the number of grid steps in one step of the completion."""
    first_strides: Listed[Annotated[float, Field(ge=1)]] | None = None
    """The strides of the branches of the first step, as many as `strides`; if not given, those of `strides`."""
    solver: Solver = "euler"
    """The solver of the completions; `dpm2` is DPM-Solver++ of second order."""

    @property
    def leaves_per_action(self) -> int:
        """An action is completed once for each stride."""
        return len(self.strides)

    @model_validator(mode="after")
    def _as_many_strides(self) -> Self:
        if self.first_strides and len(self.first_strides) != len(self.strides):
            raise ValueError(
                f"first_strides: there are {len(self.first_strides)}, but strides has {len(self.strides)}; give as many"
            )
        return self

    def check_group(self, group: str) -> None:
        """A group needs at least two branches, unless it contains all steps of a prompt."""
        compared = self.explorations * (1 if group == "seed" else self.seeds)
        if group != "prompt" and compared < 2:
            raise ValueError(
                f"advantage.group = {group} would compare only {compared} branch; set plan.explorations to at least 2"
            )


class ChainSettings(_PlanSettings):
    """Every step is stochastic. All steps except the last can be trained, with the final image's reward."""

    name: Literal["chain"] = "chain"
    seeds: int = Field(24, ge=2)
    """Trajectories per prompt (the group size)."""
    shared_noise: bool = False
    """Whether all trajectories of a prompt start from the same noise."""
    trained_share: float = Field(1.0, gt=0, le=1)
    """The share of the steps that is trained. The steps are drawn anew for each training step."""


class WindowSettings(_PlanSettings):
    """Stochastic in a window of steps, deterministic elsewhere."""

    name: Literal["window"] = "window"
    seeds: int = Field(12, ge=2)
    """Trajectories per prompt (the group size)."""
    shared_noise: bool = False
    """Whether all trajectories of a prompt start from the same noise."""
    size: int = Field(4, ge=1)
    """The number of sampling steps in the window."""
    strategy: Literal["progressive", "decay", "random"] = "progressive"
    """`progressive`: the window slides by `shift` sampling steps after every `every` training steps, and starts over at
    the end. `decay`: like `progressive`, but it slides sooner and sooner beyond step `decay_from`. `random`: its place
    is drawn anew for each training step."""
    within: int | None = Field(None, ge=1)
    """The window stays within this many first sampling steps. If not given: within all steps except the last."""
    every: int = Field(25, ge=1)
    """The number of training steps after which the window slides."""
    shift: int = Field(1, ge=1)
    """The number of sampling steps by which the window slides."""
    decay_from: int = Field(13, ge=0)
    """With `decay`, the sampling step beyond which the window slides sooner."""
    decay_rate: float = Field(0.1, ge=0)
    """With `decay`, how fast the number of training steps between two slides decreases, per sampling step."""
    stride: float = Field(1.0, ge=1)
    """The number of grid steps in one step after the window."""
    solver: Solver = "euler"
    """The solver after the window; `dpm2` is DPM-Solver++ of second order."""
    baselines: bool = False
    """Also complete each state of the window by ODE. This gives the image without the action and all later actions."""
    baseline_stride: float = Field(1.0, ge=1)
    """With `baselines`, the number of grid steps in one step of a baseline. If it is at least the number of sampling
    steps, a baseline is one jump from its state to the image, and costs no forward."""

    @property
    def has_baselines(self) -> bool:
        """As the recipe sets `baselines`."""
        return self.baselines


class TreeSettings(_PlanSettings):
    """A tree whose edges are all stochastic. Nodes are compared with the other nodes of their depth."""

    name: Literal["tree"] = "tree"
    splits: Listed[int] = Field((0, 3, 6, 9), min_length=1)
    """The sampling steps at which each trajectory splits."""
    width: int = Field(2, ge=2)
    """The number of children at a split."""
    pruned_depths: int = Field(0, ge=0)
    """The number of neighbouring steps that are sampled but not trained. At first they are the last trainable steps;
    after each training step they slide one step towards the root."""

    def check_group(self, group: str) -> None:
        """Refuse groups other than prompt_step: nodes are only compared within their depth."""
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
    """Images per prompt (the group size)."""


PlanSettings = Annotated[
    Annotated[TrunkSettings, Tag("trunk")]
    | Annotated[ChainSettings, Tag("chain")]
    | Annotated[WindowSettings, Tag("window")]
    | Annotated[TreeSettings, Tag("tree")]
    | Annotated[SamplesSettings, Tag("samples")],
    Discriminator(name_or("trunk")),
]
