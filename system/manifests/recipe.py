"""Adapts a recipe to the Kubernetes cluster."""

from __future__ import annotations

import hashlib
import re
from math import ceil
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from actors.rollout.sampling import image_bytes
from services.base.errors import UserError
from services.base.paths import PACKAGE_PREFIX
from services.base.storage import is_local
from services.scoring.settings import Replicas, ScorerSettings
from services.serving.settings import GatewaySettings, PoolSettings
from system.manifests.infra import Infra
from system.recipe.model import RunConfig

ROLE = "tempflow.io/role"
"""The label that names the role of a Ray node."""
RUNS, MODELS = "/runs", "/models"
POOL_LOGS = Path("/tmp/logs")
"""Logs of the pool last as long as its pod. A pool reads untrusted requests, so it shares no volume with others."""
POOL_TOKEN = "/etc/tempflow/pool-token/token"
POOL_PORT = 8000
PNG_OVERHEAD = 1.01
"""The size of a PNG of pure noise, relative to the bytes of its pixels."""
MAX_NAME = 40
"""The longest name. Kubernetes allows 63 characters, and the operator adds a suffix."""
CALLER_CPUS = 0.1
"""CPUs of a process that sends images to the pool and waits."""


def resource_name(name: str) -> str:
    """Turn a run's name into one that Kubernetes allows. Different names stay different.

    A name that must be changed gets six hexadecimal digits of its digest.

    Raises:
        UserError: the name is too long, or does not begin with a letter.
    """
    found = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if found != name:
        found = f"{found}-{hashlib.blake2b(name.encode(), digest_size=3).hexdigest()}"
    if not found[0].isalpha() or len(found) > MAX_NAME:
        raise UserError(
            f"`{name}` is not a name for Kubernetes: give name=… that begins with a letter and has at most {MAX_NAME} "
            f"characters ({MAX_NAME - 7} if some are not lower-case letters, digits or hyphens)"
        )
    return found


def pool_service(config: RunConfig, infra: Infra) -> str:
    """The name of the pool's RayService."""
    assert infra.reward is not None
    return infra.reward.service or f"{resource_name(config.name)}-pool"


def job_recipe(config: RunConfig, infra: Infra) -> RunConfig:
    """The recipe of the job: run folders are on the shared volume, and each role runs on its nodes.

    If the pool is a RayService, the job's scorers send their images to it over HTTP.

    Raises:
        UserError: the recipe names a file, a service or an application that the job's pods cannot reach.
    """
    for key, path in _paths(config):
        if not path.startswith(("/", PACKAGE_PREFIX)) and is_local(path):
            raise UserError(
                f"{key}: `{path}` is a path on this machine; put it on a volume ({RUNS} or {MODELS}) or into the image "
                f"and give its path there, such as {key}={RUNS}/{PurePosixPath(path).name}"
            )
    for scorer in config.scorers:
        url = str(scorer.options.get("url", ""))
        if urlsplit(url).hostname in {"localhost", "127.0.0.1", "::1"}:
            raise UserError(
                f"scorer `{scorer.name}`: nothing listens at {url} inside a pod; give the address of the service"
            )
    if config.reward.app:
        raise UserError(
            f"reward.app: the job starts a new cluster, which has no application `{config.reward.app}`; leave it out, "
            "and give `reward` nodes in the infrastructure file for a pool that jobs share"
        )
    rollout = {ROLE: "rollout"}
    learner = {ROLE: "learner"} if infra.learner else rollout
    scorers = tuple(
        _caller(scorer, config, infra) if infra.reward else scorer.model_copy(update={"labels": rollout})
        for scorer in config.scorers
    )
    return config.model_copy(
        update={
            "output": RUNS,
            "rollout": config.rollout.model_copy(update={"labels": rollout}),
            "learner": config.learner.model_copy(update={"labels": learner}),
            "scorers": scorers,
        }
    )


def _paths(config: RunConfig) -> list[tuple[str, str]]:
    """The files and folders that a recipe names, by key, without ids of the hub."""
    named = {
        "data.train": config.data.train,
        "data.heldout": config.data.heldout,
        "policy.adapter": config.policy.adapter,
        "objective.reference": config.objective.reference,
        "policy.model": config.policy.model if Path(config.policy.model).is_dir() else None,
        "rollout.embedding_folder": config.rollout.embedding_folder,
        "checkpoint.folder": config.checkpoint.folder,
    }
    named |= {f"eval.sets.{name}.prompts": one.prompts for name, one in config.eval.sets.items()}
    for i, scorer in enumerate(config.scorers):
        for option in ("metadata", "token_file"):
            named[f"scorers.{i}.options.{option}"] = scorer.options.get(option)
    return [(key, str(path)) for key, path in named.items() if path is not None]


def pool_recipe(config: RunConfig, infra: Infra) -> PoolSettings:
    """The settings of the pool that the RayService runs."""
    labels = {ROLE: "reward"}
    return PoolSettings(
        name=pool_service(config, infra),
        log_folder=POOL_LOGS,
        deterministic=config.deterministic,
        scorers=tuple(scorer.model_copy(update={"labels": labels}) for scorer in config.scorers),
        serve=GatewaySettings(
            **{**config.serve.model_dump(), "host": "0.0.0.0", "port": POOL_PORT, "token_file": POOL_TOKEN}
        ),
    )


def _caller(scorer: ScorerSettings, config: RunConfig, infra: Infra) -> ScorerSettings:
    """A scorer of the job that calls the same scorer of the RayService.

    Each of its processes sends one request at a time, so there are enough processes to keep the largest pool busy.
    Requests are small enough for `serve.max_bytes`, whatever the images show.

    Raises:
        UserError: `serve.max_bytes` is less than one image.
    """
    callers = ceil(scorer.replicas.max * scorer.replicas.target)
    fits = int(config.serve.max_bytes / (PNG_OVERHEAD * image_bytes(config.policy)))
    if not fits:
        raise UserError(f"serve.max_bytes: {config.serve.max_bytes} is less than one image; raise it")
    return ScorerSettings(
        name=scorer.name,
        scorer="remote",
        weight=scorer.weight,
        category_weights=scorer.category_weights,
        clip=scorer.clip,
        gate=scorer.gate,
        scale=scorer.scale,
        options={
            "url": f"http://{pool_service(config, infra)}-serve-svc:{POOL_PORT}",
            "scorer": scorer.name,
            "token_file": POOL_TOKEN,
            "run": config.name,
            "timeout_s": scorer.timeout_s,
            "patience_s": 0.9 * scorer.timeout_s,  # the caller gives up before the run does, and says why
        },
        replicas=Replicas(min=callers, max=callers),
        num_cpus=CALLER_CPUS,
        labels={ROLE: "rollout"},
        timeout_s=scorer.timeout_s,
        attempts=scorer.attempts,
        request_images=min(scorer.request_images, fits),
    )
