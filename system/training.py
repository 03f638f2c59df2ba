"""A whole run of a recipe: check it, start the roles, train, and leave a run folder that people can read."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from rich.console import Console

from services.base.errors import UserError, cause_of, first_line
from services.base.plain import plain
from system.loop.stop import STOPPED_EXIT_CODE, StopFlag, Stopped

if TYPE_CHECKING:
    from system.loop.heldout import HeldOut
    from system.loop.prompts import Prompts
    from system.loop.roles import Roles
    from system.recipe.model import RunConfig
    from system.run.folder import RunFolder


def train_run(
    config: RunConfig,
    resume: bool,
    console: Console,
    accept_changes: bool = False,
    local: bool = False,
    page: bool = False,
) -> int:
    """Run a recipe to its end, or until it is stopped; returns the exit code.

    Args:
        accept_changes: resume even if the prompts or a model have changed.
        local: run all roles in this process instead of on Ray.
        page: serve the live page of the run from this process until the run ends.

    Raises:
        UserError: one sentence that names the thing and the fix.
    """
    from services.base.logs import LogFile, logging_to
    from system.checks.checks import By, refuse
    from system.run.loggers import open_loggers
    from system.run.opening import open_run

    console.print(plain(f"checking     {config.name}: the recipe, its prompts, this machine"), soft_wrap=True)
    refuse(config, By.LOCAL if local else By.TRAIN)
    with (
        _naming_a_full_disk(config),
        open_run(config, resume, accept_changes) as run,
        logging_to(LogFile(run.logs / "driver.log", config.name, "driver")),
        _shown(run, console, page),
        open_loggers(config, run.path) as run.loggers,
        StopFlag() as stop,
    ):
        try:
            (train_locally if local else _train_on_ray)(config, run, console, stop)
        except Stopped as stopped:
            _report(run, console)
            console.print(f"stopped by {stopped}; continue with --resume", highlight=False)
            return STOPPED_EXIT_CODE
        _report(run, console)
        return 0


@contextmanager
def _naming_a_full_disk(config: RunConfig) -> Iterator[None]:
    """Turn the error of a full disk into one sentence.

    Raises:
        UserError: the sentence.
    """
    try:
        yield
    except OSError as error:
        cause = cause_of(error)
        if getattr(cause, "errno", None) not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f"{config.output}/{config.name}"
        raise UserError(
            f"no room for the run `{where}` ({first_line(error)}); make some and continue with --resume"
        ) from error


@contextmanager
def _shown(run: RunFolder, console: Console, page: bool) -> Iterator[None]:
    """Say where the run is and how to watch it, before anything takes long; with `page`, serve its live page."""
    console.print(plain(f"run folder   {run.path}"), soft_wrap=True)
    with ExitStack() as stack:
        url = None
        if page:
            from system.watch.live import live_page

            url = stack.enter_context(live_page(run.path))
        how = f"live page    {url}" if url else f"watch it     tempflow watch {run.path}"
        console.print(plain(f"{how}, or tempflow top {run.path}"), soft_wrap=True)
        yield


def train_locally(config: RunConfig, run: RunFolder, console: Console, stop: StopFlag) -> None:
    """Run the steps of a recipe in this process, without Ray."""
    console.print(plain(f"loading      {config.policy.model}; {_scorers_of(config)}"), soft_wrap=True)
    from actors.rollout.plans import trainable_steps
    from system.local.roles import LocalRoles
    from system.loop.recorder import Recorder
    from system.loop.trainer import Trainer
    from system.run.progress import Progress

    train, heldout = _prompts(config)
    with Progress(config.steps, console) as progress:
        roles = LocalRoles(config, trainable_steps(config.plan, config.policy.num_steps), stop.check)
        Trainer(config, run, roles, train, heldout, Recorder(config, run, progress), stop.check).fit()


def _train_on_ray(config: RunConfig, run: RunFolder, console: Console, stop: StopFlag) -> None:
    import ray

    from actors.rollout.plans import trainable_steps
    from system.launch.cluster import connect
    from system.launch.environment import token_hint
    from system.launch.roles import RayRoles
    from system.loop.recorder import Recorder
    from system.loop.trainer import Trainer
    from system.run.progress import Progress
    from system.run.telemetry import Telemetry

    train, heldout = _prompts(config)
    trainable = trainable_steps(config.plan, config.policy.num_steps)
    try:
        with ExitStack() as stack:
            stack.callback(ray.shutdown)
            console.print("starting     Ray, or attaching to it", highlight=False)
            with stop.deferred("Ray"):  # half of a Ray ends with a crash
                connection = connect()
            with stop.starting():
                console.print(f"Ray          {'started' if connection.started_here else 'attached'}", highlight=False)
                if connection.dashboard:
                    url = f"http://{connection.dashboard.removeprefix('http://')}"
                    console.print(f"dashboard    {url}{token_hint()}", highlight=False)
                console.print(plain(f"starting     {_roles_of(config)}"), soft_wrap=True)
                progress = stack.enter_context(Progress(config.steps, console))
                roles = stack.enter_context(RayRoles(config, trainable, run.logs))
            telemetry = stack.enter_context(Telemetry(config.name, lambda: live(config, roles)))
            recorder = Recorder(config, run, progress, telemetry)
            Trainer(config, run, roles, train, heldout, recorder, stop.check).fit()
    except SystemExit as ended:  # Ray raises it, with code 0, in a driver whose node has died
        raise RuntimeError(
            "the connection to Ray is lost, its node or its head died; continue with --resume"
        ) from ended


def _roles_of(config: RunConfig) -> str:
    """The processes that load a model before the first step."""
    parts = [f"rollout workers: {config.rollout.workers}", f"learner ranks: {config.learner.ranks}"]
    if not config.reward.app:
        parts.append(_scorers_of(config))
    return f"{'; '.join(parts)} (waiting at most {config.ray.start_timeout_s:g} s for their models)"


def _scorers_of(config: RunConfig) -> str:
    return f"scorers: {', '.join(scorer.name for scorer in config.scorers)}"


def _prompts(config: RunConfig) -> tuple[Prompts, list[HeldOut]]:
    """The training prompts and the held-out sets."""
    from system.loop.heldout import read_sets
    from system.loop.prompts import prompts_of

    return prompts_of(config.data, config.data.train), read_sets(config)


def live(config: RunConfig, roles: Roles) -> dict[str, int]:
    """Metrics that may change within a step."""
    status = roles.rollouts.status()
    held = {f"workers/{slot}/version": version for slot, version in status.versions.items()}
    return {"steps": config.steps, "workers": status.workers, **held}


def _report(run: RunFolder, console: Console) -> None:
    from system.report.build import build_report

    if run.read_metrics():
        console.print(plain(f"trained      {run.trained}"), soft_wrap=True)
        console.print(plain(f"report       {build_report(run.path)}"), soft_wrap=True)
