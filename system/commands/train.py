"""`tempflow train`: check what can be checked, start the roles, train, leave a readable run folder."""

import errno
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import ray
from rich.console import Console

from actors.policy.families import check_size
from actors.policy.trained import check_trained, read_trained
from actors.rollout.plans import make_plan, trainable_steps
from services.base.errors import UserError, cause_of
from services.base.logs import LogFile, logging_to
from services.scoring.scorer import check_device, check_scorer
from system.commands.plain import plain
from system.launch.environment import check_start, token_hint
from system.loop.prompts import Prompts, read_prompts, rows_of_step
from system.loop.roles import Roles
from system.loop.stop import STOPPED_EXIT_CODE, StopFlag, Stopped
from system.recipe.model import RunConfig
from system.run.folder import RunFolder
from system.run.loggers import check_loggers, open_loggers
from system.run.progress import Progress


def check(config: RunConfig, learns: bool = True) -> tuple[Prompts, Prompts | None]:
    """Everything that can be known to fail before an actor starts; returns train and held-out prompts.

    Args:
        learns: whether there will be a learner.

    Raises:
        UserError: one sentence that names the thing and the fix.
    """
    check_loggers(config.log)
    check_devices(config, learns)
    make_plan(config.plan, config.policy.num_steps)
    check_size(config.policy)
    if config.policy.adapter:
        check_trained(config.policy, Path(config.policy.adapter), "policy.adapter")
        if config.policy.lora:  # a whole transformer is too large to be read twice
            read_trained(Path(config.policy.adapter), config.policy.lora, "policy.adapter")
    for scorer in config.scorers:
        check_scorer(scorer)
    data = config.data
    train = read_prompts(data.train, data.prompt_column, data.category_column)
    rows_of_step(len(train), data.prompts_per_step, 0, config.seed)
    heldout = read_prompts(data.heldout, data.prompt_column, data.category_column) if data.heldout else None
    return train, heldout


def check_devices(config: RunConfig, learns: bool) -> None:
    """Refuse roles that are to use a GPU and ask Ray for none.

    Raises:
        UserError: names the role's setting.
    """
    rollout, learner = config.rollout.num_gpus, config.learner.num_gpus
    asked = {"rollout.num_gpus": rollout}
    if learns and config.placement == "split":
        asked["learner.num_gpus"] = learner
    elif learns and config.rollout.most_workers == config.learner.ranks:
        asked = {"rollout.num_gpus and learner.num_gpus": max(rollout, learner)}
    elif learns and not rollout:
        asked = {"rollout.num_gpus, which the workers beyond learner.ranks have,": rollout}
    without = [key for key, gpus in asked.items() if not gpus]
    if config.policy.device == "cuda" and without:
        raise UserError(
            f"policy.device is cuda but {' and '.join(without)} = 0; set num_gpus to 1 or a fraction, or policy.device "
            "to auto"
        )
    for scorer in config.scorers:
        check_device(scorer)


def train_run(config: RunConfig, resume: bool, console: Console, accept_changes: bool = False) -> int:
    """Run a recipe to its end or to a stop; returns the exit code.

    Raises:
        UserError: one sentence that names the thing and the mend.
    """
    train, heldout = check(config)
    check_start()
    with (
        _naming_a_full_disk(config),
        RunFolder.open(config, resume, accept_changes) as run,
        logging_to(LogFile(run.logs / "driver.log", config.name, "driver")),
        open_loggers(config, run.path) as run.loggers,
        StopFlag() as stop,
    ):
        try:
            _train(config, run, train, heldout, console, stop)
        except Stopped as stopped:
            _report(run, console)
            console.print(f"stopped by {stopped}; continue with --resume", highlight=False)
            return STOPPED_EXIT_CODE
        _report(run, console)
        return 0


@contextmanager
def _naming_a_full_disk(config: RunConfig) -> Iterator[None]:
    """Make one sentence of what the run folder has no room for.

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
        raise UserError(f"no room for the run `{where}` ({cause}); make some and continue with --resume") from error


def _train(
    config: RunConfig, run: RunFolder, train: Prompts, heldout: Prompts | None, console: Console, stop: StopFlag
) -> None:
    from system.launch.cluster import connect
    from system.launch.roles import RayRoles
    from system.loop.recorder import Recorder
    from system.loop.trainer import Trainer
    from system.run.telemetry import Telemetry

    trainable = trainable_steps(config.plan, config.policy.num_steps)
    try:
        with ExitStack() as stack:
            stack.callback(ray.shutdown)
            connection = connect()  # not interrupted: half of a Ray ends with a crash
            with stop.starting():
                console.print(plain(f"run folder   {run.path}"), soft_wrap=True)
                console.print(f"Ray          {'started' if connection.started_here else 'attached'}", highlight=False)
                if connection.dashboard:
                    url = f"http://{connection.dashboard.removeprefix('http://')}"
                    console.print(f"dashboard    {url}{token_hint()}", highlight=False)
                progress = stack.enter_context(Progress(config.steps, console))
                roles = stack.enter_context(RayRoles(config, trainable, run.logs))
            telemetry = stack.enter_context(Telemetry(config.name, lambda: live(config, roles)))
            recorder = Recorder(config, run, progress, telemetry)
            Trainer(config, run, roles, train, heldout, recorder, stop.check).fit()
    except SystemExit as gone:  # Ray raises it, with code 0, in a driver whose node is gone
        raise RuntimeError("the connection to Ray is lost, its node or its head died; continue with --resume") from gone


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
