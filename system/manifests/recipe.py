"""A recipe as it runs on the cluster."""

from __future__ import annotations

import hashlib
import re
from math import ceil
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from services.base.errors import UserError
from services.base.paths import PACKAGE_PREFIX
from services.base.storage import is_local
from services.scoring.settings import Replicas, ScorerSettings
from services.serving.settings import GatewaySettings, PoolSettings
from system.manifests.infra import Infra
from system.recipe.model import RunConfig

ROLE = "tempflow.io/role"
"""Label of the Ray nodes of a role."""
RUNS, MODELS = "/runs", "/models"
POOL_LOGS = Path("/tmp/logs")
"""As long as the pod: a pool reads what strangers send, and has no volume that anybody else reads."""
POOL_TOKEN = "/etc/tempflow/pool-token/token"
POOL_PORT = 8000
PNG_OVERHEAD = 1.01
"""A PNG of pure noise, by its pixels' bytes."""
MAX_NAME = 40
"""The operator adds a suffix of its own to a name, and 63 characters are all there is."""
CALLER_CPUS = 0.1
"""Of a process that passes images on to the pool and waits."""


def resource_name(name: str) -> str:
    """A run's name as Kubernetes allows it: names that differ stay different.

    A name that has to be changed gets six digits that follow from it.

    Raises:
        UserError: it is too long.
    """
    found = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if found != name:
        found = f"{found}-{hashlib.blake2b(name.encode(), digest_size=3).hexdigest()}"
    if not found[0].isalpha() or len(found) > MAX_NAME:
        raise UserError(
            f"`{name}` makes no name for Kubernetes: give name=… that begins with a letter and has at most {MAX_NAME} "
            f"characters, {MAX_NAME - 7} if some are neither lower-case letters, digits nor hyphens"
        )
    return found


def pool_service(config: RunConfig, infra: Infra) -> str:
    """Name of the RayService that scores."""
    assert infra.reward is not None
    return infra.reward.service or f"{resource_name(config.name)}-pool"


def job_recipe(config: RunConfig, infra: Infra) -> RunConfig:
    """The recipe of the job: run folders on the shared volume, roles on their nodes, scorers asked over HTTP where the
    pool is a service.

    Raises:
        UserError: it names a file, a service or an application that is not there.
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
                f"scorer `{scorer.name}`: nothing listens at {url} in a pod; give the service's own address"
            )
    if config.reward.app:
        raise UserError(
            f"reward.app: the job's cluster is new and has no application `{config.reward.app}`; leave it out, and "
            "give `reward` nodes in the infrastructure file for a pool that jobs share"
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
    """Files and folders that a recipe names, by key; ids of the hub are not among them."""
    named = {
        "data.train": config.data.train,
        "data.heldout": config.data.heldout,
        "policy.adapter": config.policy.adapter,
        "policy.model": config.policy.model if Path(config.policy.model).is_dir() else None,
        "rollout.embedding_folder": config.rollout.embedding_folder,
        "checkpoint.folder": config.checkpoint.folder,
    }
    for i, scorer in enumerate(config.scorers):
        for option in ("metadata", "token_file"):
            named[f"scorers.{i}.options.{option}"] = scorer.options.get(option)
    return [(key, str(path)) for key, path in named.items() if path is not None]


def pool_recipe(config: RunConfig, infra: Infra) -> PoolSettings:
    """The pool of the RayService."""
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
    """Stands in the job for a scorer of the service. Each process waits for one request at a time, so there are as many
    as keep the largest pool at its target. Requests fit into `serve.max_bytes` whatever the images show.
    """
    callers = ceil(scorer.replicas.max * scorer.replicas.target)
    raw_bytes = config.policy.height * config.policy.width * 3
    fits = int(config.serve.max_bytes / (PNG_OVERHEAD * raw_bytes))
    if not fits:
        raise UserError(f"serve.max_bytes: {config.serve.max_bytes} is less than one image; raise it")
    return ScorerSettings(
        name=scorer.name,
        scorer="remote",
        weight=scorer.weight,
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
