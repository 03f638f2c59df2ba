"""The scoring service as a Serve application: one deployment per scorer, and a gateway in front of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.schema import ApplicationStatusOverview

from services.base.errors import quoted_refusal
from services.base.logs import LogFile
from services.scoring.scorer import needs_of, own_folders
from services.scoring.settings import Replicas, ScorerSettings
from services.serving.deployment import ScorerDeployment
from services.serving.gateway import GatewayDeployment
from services.serving.settings import GatewaySettings, PoolSettings, deployment_name

SHUTDOWN_LOOK_S = 0.2
"""Seconds between looks for unanswered requests, when a replica is to end; the first look is after one such pause.
Serve's default is 2 s."""
HEALTH_CHECK_S = 1.0
"""Seconds between health checks. Serve replaces a dead replica when a check fails; its default is every 10 s."""


def build(args: PoolSettings) -> serve.Application:
    """The application, for `import_path: services.serving.app:build` of a Serve config file."""
    return build_app(args.name, args.scorers, args.serve, args.log_folder, args.name, args.deterministic)


def build_app(
    name: str,
    scorers: Sequence[ScorerSettings],
    gateway: GatewaySettings | None,
    log_folder: Path | None,
    run: str,
    deterministic: bool = False,
) -> serve.Application:
    """The Serve application `name` that scores with all of `scorers`.

    Args:
        gateway: the HTTP side, which is the application's entry. Without one, the first scorer is the entry, as Serve
            needs one; scorers are asked through their handles either way.
        log_folder: the folder for one log file per scorer.
        run: the run that each line of these logs names.
        deterministic: replicas use only algorithms that give the same bits each time.
    """

    def bound(scorer: ScorerSettings, *beside: serve.Application) -> serve.Application:
        deployment = ScorerDeployment.options(  # type: ignore[attr-defined]
            name=deployment_name(scorer.name),
            ray_actor_options=_actor_options(scorer),
            max_ongoing_requests=scorer.max_ongoing,
            max_queued_requests=scorer.max_queued,
            health_check_period_s=HEALTH_CHECK_S,
            graceful_shutdown_wait_loop_s=SHUTDOWN_LOOK_S,
            **_replicas(scorer.replicas),
        )
        log_file = _log_file(log_folder, run, scorer.name) if log_folder else None
        return deployment.bind(scorer, log_file, deterministic, own_folders(), beside)

    if gateway is None:
        first, *others = scorers
        return bound(first, *map(bound, others))
    entry = GatewayDeployment.options(num_replicas=gateway.gateways)
    needs = {scorer.name: needs_of(scorer) for scorer in scorers}
    return entry.bind(name, gateway, list(scorers), needs, {scorer.name: bound(scorer) for scorer in scorers})


def why_not_started(status: ApplicationStatusOverview) -> Exception:
    """Why an application cannot start.

    The error is a UserError if a scorer refuses to start, else a RuntimeError with all of Serve's messages.
    """
    said = "\n".join([status.message, *(deployment.message for deployment in status.deployments.values())])
    return quoted_refusal(said) or RuntimeError(f"the reward pool cannot start: {said}")


def _log_file(folder: Path, run: str, scorer: str) -> LogFile:
    """The log file of a scorer. All its replicas write to it; `host` and `pid` distinguish them."""
    return LogFile(folder / f"scorer-{scorer}.log", run, "reward", {"scorer": scorer})


def _replicas(bounds: Replicas) -> dict[str, Any]:
    if bounds.min == bounds.max:
        return {"num_replicas": bounds.min}
    return {
        "autoscaling_config": {
            "min_replicas": bounds.min,
            "max_replicas": bounds.max,
            "target_ongoing_requests": bounds.target,
            "upscale_delay_s": bounds.grow_after_s,
            "downscale_delay_s": bounds.shrink_after_s,
            "metrics_interval_s": 1.0,
            "look_back_period_s": 2.0,
        }
    }


def _actor_options(scorer: ScorerSettings) -> dict[str, Any]:
    """The resources of a replica."""
    options: dict[str, Any] = {"num_cpus": scorer.num_cpus, "num_gpus": scorer.num_gpus}
    if scorer.labels:
        options["label_selector"] = scorer.labels
    return options
