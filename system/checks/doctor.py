"""What `tempflow doctor` looks at: each check is a function that returns findings and changes nothing.

What is heavy (Torch, Ray) is imported by the check that needs it.
"""

from __future__ import annotations

import importlib.util
import math
import os
import platform
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from services.base.errors import UserError, first_line
from services.base.storage import is_local
from system.launch.environment import LOOPBACK, check_start, needs_token, running_ray, token_file
from system.recipe.model import RunConfig

if TYPE_CHECKING:
    from system.manifests.sizing import Ask

LEAST_FREE_BYTES = 2**30
"""Of the disk with the run folder: metrics, experience, pictures and logs."""
ADAM_COPIES = 4
"""fp32 arrays of a checkpoint for each trained weight: the weight, two moments, a moving average."""
SHM = Path("/dev/shm")
EXTRAS = {"ocr": "rapidocr", "tensorboard": "tensorboard", "wandb": "wandb"}


@dataclass(frozen=True)
class Finding:
    """One line: how bad, what of, and what is wrong with its mend."""

    level: Literal["ok", "warning", "problem"]
    what: str
    says: str


def diagnose(config: RunConfig | None) -> Iterator[Finding]:
    """All findings on this machine and, where there is one, on a recipe."""
    yield python()
    yield cpus(config)
    yield from torch(config)
    yield from ray_cluster()
    yield shared_memory(config)
    yield from disks(config)
    yield from extras(config)
    yield from token_files(config)
    if config:
        yield from parts(config)
        yield from pools(config)


def python() -> Finding:
    """The interpreter."""
    return Finding("ok", "python", f"{platform.python_version()} on {platform.machine()}")


def torch(config: RunConfig | None) -> Iterator[Finding]:
    """PyTorch, and the GPUs that the recipe asks for."""
    import torch

    yield Finding("ok", "torch", f"{torch.__version__}, CUDA {torch.version.cuda or 'not in this build'}")
    yield from gpus(config)


def gpus(config: RunConfig | None) -> Iterator[Finding]:
    """What there is; a problem where roles ask for GPUs that neither this machine has nor another cluster may have."""
    import torch

    wanted = gpus_wanted(config) if config else 0.0
    if not torch.cuda.is_available():
        says = "no CUDA device" + (f", and the recipe's roles ask for {wanted:g} GPUs" if wanted else "")
        if not wanted:
            yield Finding("ok", "gpu", f"{says}; none is asked for")
        elif os.environ.get("RAY_ADDRESS"):
            yield Finding("warning", "gpu", f"{says}; the nodes of the cluster at RAY_ADDRESS must have them")
        else:
            mend = "set RAY_ADDRESS to a cluster with GPUs, or num_gpus of each role to 0 and policy.device to cpu"
            yield Finding("problem", "gpu", f"{says}; {mend}")
        return
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        yield Finding("ok", f"gpu {index}", f"{device.name}, {device.total_memory / 2**30:.0f} GiB")
    if config and config.policy.dtype == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        yield Finding("problem", "gpu", "policy.dtype is bf16, which this GPU does not compute; set it to fp32")
    if wanted > torch.cuda.device_count() and not os.environ.get("RAY_ADDRESS"):
        says = f"the recipe's roles ask for {wanted:g} GPUs and there are {torch.cuda.device_count()}"
        yield Finding("problem", "gpu", f"{says}; lower rollout.workers, learner.ranks or replicas, or set RAY_ADDRESS")


def gpus_wanted(config: RunConfig) -> float:
    """GPUs of all roles as the run begins."""
    return sum(ask.gpus for ask in _asked(config))


def cpus(config: RunConfig | None) -> Finding:
    """The CPUs of this machine, against what all roles ask for together as the run begins."""
    have = os.cpu_count() or 1
    wanted = sum(ask.cpus for ask in _asked(config)) if config else 0.0
    says = f"{have} CPUs" + (f", and the recipe's roles ask for {wanted:g}" if config else "")
    if wanted <= have:
        return Finding("ok", "cpu", says)
    if os.environ.get("RAY_ADDRESS"):
        return Finding("warning", "cpu", f"{says}; the nodes of the cluster at RAY_ADDRESS must have them")
    fix = "lower num_cpus of rollout, learner or scorers, rollout.workers or replicas, or set RAY_ADDRESS to a cluster"
    return Finding("problem", "cpu", f"{says}; {fix}")


def _asked(config: RunConfig) -> list[Ask]:
    """What each actor of a run asks for, replicas of its own pool included."""
    from system.manifests.sizing import ranks, replicas, workers

    own = () if config.reward.app else config.scorers
    return workers(config, most=False) + ranks(config) + replicas(own, most=False)


def ray_cluster() -> Iterator[Finding]:
    """Ray, the cluster that a run would attach to, and whether a token for it is at hand."""
    yield Finding("ok", "ray", version("ray"))
    address = running_ray()
    try:
        check_start()
    except UserError as error:
        yield Finding("problem", "cluster", str(error))
        return
    if address is None:
        yield Finding("ok", "cluster", f"none to attach to; a run starts its own on {LOOPBACK}")
        return
    yield Finding("ok", "cluster", f"a run attaches to the one at {address}")
    if os.environ.get("RAY_AUTH_MODE") != "token":
        mend = "if the cluster asks for a token, as one of Ray 2.59 or later does that was started locally, set it"
        yield Finding("warning", "cluster token", f"RAY_AUTH_MODE is not `token`; {mend}")
    elif not (os.environ.get("RAY_AUTH_TOKEN") or token_file().is_file()):
        says = f"RAY_AUTH_MODE is token, and there is none in RAY_AUTH_TOKEN or {token_file()}"
        yield Finding("problem", "cluster token", f"{says}; write the cluster's token there")
    else:
        yield Finding("ok", "cluster token", "there is one")


def shared_memory(config: RunConfig | None) -> Finding:
    """Room for Ray's object store, against what the steps in flight put there."""
    if not SHM.is_dir():
        return Finding("warning", "shared memory", f"no {SHM}; Ray's object store is a file, which is slow")
    free = shutil.disk_usage(SHM).free
    needed = store_bytes(config) if config else 0.0
    says = f"{_gb(free)} free in {SHM}" + (f", {_gb(needed)} in flight" if needed else "")
    if free < needed:
        mend = "enlarge it (docker run --shm-size, an emptyDir of medium Memory), or lower rollout.max_bytes_in_flight"
        level: Literal["warning", "problem"] = "warning" if os.environ.get("RAY_ADDRESS") else "problem"
        return Finding(level, "shared memory", f"{says}; {mend}")
    return Finding("ok", "shared memory", says)


def store_bytes(config: RunConfig) -> float:
    """In the object store at once: images that wait for scores and the experience of all steps in flight; the latter is
    left out where the model's files are not on this machine.
    """
    from actors.rollout.plans import make_plan
    from system.capacity.estimate import step_bytes
    from system.capacity.in_flight import bytes_in_flight

    steps = config.learner.max_staleness + 1
    images, experience = step_bytes(config, make_plan(config.plan, config.policy.num_steps))
    known = 0.0 if math.isnan(experience) else experience
    return min(steps * images, bytes_in_flight(config)) + steps * known


def disks(config: RunConfig | None) -> Iterator[Finding]:
    """Room for the run folder and for the checkpoints that are kept, the best one and the one being written."""
    output = Path(config.output if config else ".")
    if config is None:
        yield _disk("disk", output, LEAST_FREE_BYTES)
        return
    size = checkpoint_bytes(config)
    kept = size * (config.checkpoint.keep + 2)
    unknown = "" if size else ", without checkpoints, whose size the model's files would tell"
    if config.checkpoint.folder is None:
        yield _disk("disk", output, LEAST_FREE_BYTES + kept, unknown)
        return
    yield _disk("disk", output, LEAST_FREE_BYTES)
    if is_local(config.checkpoint.folder):
        yield _disk("disk of checkpoints", Path(config.checkpoint.folder), kept, unknown)
    else:
        yield Finding("ok", "disk of checkpoints", f"{config.checkpoint.folder} is not looked at; {_gb(kept)} are kept")


def _disk(what: str, folder: Path, needed: float, unknown: str = "") -> Finding:
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not os.access(there, os.W_OK):
        return Finding("problem", what, f"{there} cannot be written to; set output (or checkpoint.folder) elsewhere")
    free = shutil.disk_usage(there).free
    says = f"{_gb(free)} free at {there}, {_gb(needed)} needed{unknown}"
    if free < needed:
        return Finding("problem", what, f"{says}; make room, lower checkpoint.keep, or set output elsewhere")
    if free < 2 * needed:
        return Finding("warning", what, f"{says}; little is left for a long run")
    return Finding("ok", what, says)


def checkpoint_bytes(config: RunConfig) -> float:
    """Of one checkpoint, from the shapes of the model's files; 0 where they are not on this machine."""
    from services.base.headers import shapes_below
    from services.base.paths import resolve_model
    from system.capacity.estimate import FP32_BYTES

    lora, weights = config.policy.lora, 0
    for name, shape in shapes_below(Path(resolve_model(config.policy.model), "transformer")):
        if lora is None:
            weights += math.prod(shape)
        elif name.removesuffix(".weight").endswith(lora.targets):
            weights += lora.rank * sum(shape)
    return float(ADAM_COPIES * FP32_BYTES * weights)


def extras(config: RunConfig | None) -> Iterator[Finding]:
    """Optional packages; a problem where the recipe needs one that is missing."""
    needed = set()
    if config:
        needed = {"ocr"} & {scorer.scorer for scorer in config.scorers}
        needed |= {"tensorboard"} if config.log.tensorboard else set()
        needed |= {"wandb"} if config.log.wandb else set()
    for extra, package in EXTRAS.items():
        if importlib.util.find_spec(package):
            yield Finding("ok", f"extra {extra}", f"{package} {version(package)}")
        elif extra in needed:
            mend = f"pip install 'tempflow[{extra}]'"
            yield Finding("problem", f"extra {extra}", f"the recipe needs {package}, which is not installed; {mend}")
        else:
            yield Finding("ok", f"extra {extra}", "not installed, not needed")


def token_files(config: RunConfig | None) -> Iterator[Finding]:
    """Files with tokens that others on this machine can read."""
    files = [str(token_file())] if needs_token() and token_file().is_file() else []
    if config:
        named = [config.serve.token_file, *(scorer.options.get("token_file") for scorer in config.scorers)]
        files += [str(name) for name in named if name]
    for name in files:
        path = Path(name).expanduser()
        if not path.is_file():
            yield Finding("problem", "token file", f"there is no {name}; write the token there")
        elif path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            yield Finding("warning", "token file", f"others can open {name}; chmod 600 {name}")
        else:
            yield Finding("ok", "token file", f"{name} is yours alone")


def parts(config: RunConfig) -> Iterator[Finding]:
    """The policy's model, the prompts, the loggers: as `tempflow train` checks them, but all of them. Each scorer is
    tried: what it asks outside is asked once, or it scores an image in this process.
    """
    from actors.policy.families import check_size, pipeline_name
    from actors.policy.loading import check_loads
    from actors.policy.trained import check_trained
    from services.scoring.probe import probe
    from system.commands.train import check_devices
    from system.loop.prompts import read_prompts
    from system.run.loggers import check_loggers

    def adapter(folder: str) -> str:
        check_trained(config.policy, Path(folder), "policy.adapter")
        return folder

    def devices() -> str:
        check_devices(config, learns=True)
        return config.policy.device

    def prompts(file: str) -> str:
        read = read_prompts(file, config.data.prompt_column, config.data.category_column)
        return f"{len(read)} in {file}"

    def loggers() -> str:
        check_loggers(config.log)
        return "ready"

    def policy() -> str:
        check_size(config.policy)
        check_loads(config.policy)
        return f"{pipeline_name(config.policy.model)} in {config.policy.model}"

    looks: dict[str, Callable[[], str]] = {
        "policy": policy,
        "device": devices,
        "prompts": lambda: prompts(config.data.train),
    }
    if config.policy.adapter:
        looks["adapter"] = partial(adapter, config.policy.adapter)
    if heldout := config.data.heldout:
        looks["held-out prompts"] = lambda: prompts(heldout)
    for scorer in config.scorers:
        looks[f"scorer {scorer.name}"] = partial(probe, scorer, config.policy.height, config.policy.width)
    if config.log.tensorboard or config.log.wandb:
        looks["log"] = loggers
    for what, look in looks.items():
        try:
            yield Finding("ok", what, look())
        except UserError as error:
            yield Finding("problem", what, str(error))


def pools(config: RunConfig) -> Iterator[Finding]:
    """The pool that the recipe shares, if it does."""
    if config.reward.app:
        yield shared_pool(config.reward.app, [scorer.name for scorer in config.scorers])


def shared_pool(app: str, scorers: list[str], deployments: Callable[[str], list[str] | None] | None = None) -> Finding:
    """The Serve application of `reward.app` on the running cluster.

    Args:
        deployments: gives the names of an application's deployments, None where it does not run; asks Ray if not given.
    """
    if running_ray() is None:
        mend = "start the pool there with `tempflow serve`, and set RAY_ADDRESS if it is elsewhere"
        return Finding("problem", "reward.app", f"no Ray cluster runs here, so no `{app}`; {mend}")
    try:
        found = (deployments or _deployments)(app)
    except UserError as error:
        return Finding("problem", "reward.app", str(error))
    if found is None:
        return Finding("problem", "reward.app", f"no application `{app}` runs on the cluster; start `tempflow serve`")
    from services.serving.gateway import deployment_name

    missing = [name for name in scorers if deployment_name(name) not in found]
    if missing:
        return Finding("problem", "reward.app", f"`{app}` has no scorer {', '.join(missing)}; serve the same recipe")
    return Finding("ok", "reward.app", f"`{app}` runs and has {', '.join(scorers)}")


def _deployments(app: str) -> list[str] | None:
    import ray
    from ray import serve

    from system.launch.cluster import connect

    connect()
    try:
        running = serve.status().applications.get(app)
        return list(running.deployments) if running else None
    except ray.exceptions.RayError as error:
        raise UserError(f"the cluster's Serve does not answer: {first_line(error)}; see its dashboard") from error
    finally:
        ray.shutdown()


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f} GB"
