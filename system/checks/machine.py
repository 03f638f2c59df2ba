"""Checks whether this machine works and, if a recipe is given, has what the recipe needs."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import stat
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import psutil

from services.base.errors import UserError
from services.base.storage import is_local
from system.capacity.packing import no_place
from system.checks.finding import Finding
from system.launch.environment import LOOPBACK, check_start, needs_token, running_ray, token_file
from system.recipe.model import RunConfig

if TYPE_CHECKING:
    from system.capacity.packing import Ask

LEAST_FREE_BYTES = 2**30
"""The least disk space that a run folder needs for metrics, experience, pictures and logs."""
OTHERS_BYTES = 2**31
"""More GPU memory than CUDA itself takes. If more is in use, another process uses the GPU."""
SHM = Path("/dev/shm")
CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")
"""The limit on the memory of a container in bytes, or `max`, in version 2 of Linux's control groups."""
EXTRAS = {"ocr": "rapidocr", "tensorboard": "tensorboard", "wandb": "wandb"}


def python(config: RunConfig | None) -> Iterator[Finding]:
    """The version of Python."""
    yield Finding("ok", "python", f"{platform.python_version()} on {platform.machine()}")


def torch(config: RunConfig | None) -> Iterator[Finding]:
    """PyTorch, and the GPUs of this machine."""
    import torch

    yield Finding("ok", "torch", f"{torch.__version__}, CUDA {torch.version.cuda or 'not in this build'}")
    if not torch.cuda.is_available():
        return
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        says = f"{device.name}, {total / 2**30:.0f} GiB"
        if total - free > OTHERS_BYTES:
            says = f"{says}, of which {(total - free) / 2**30:.0f} GiB are in use by another process"
        yield Finding("warning" if total - free > OTHERS_BYTES else "ok", f"gpu {index}", says)


def cards(config: RunConfig | None) -> Iterator[Finding]:
    """Each GPU of this machine has what the policy needs. PyTorch is imported only if a role asks for a GPU."""
    if config is None or not gpus_wanted(config):
        return
    import torch

    from actors.policy.card import card_fault

    if not torch.cuda.is_available():  # another check says why
        return
    level: Literal["warning", "problem"] = "warning" if running_ray() else "problem"
    for index in range(torch.cuda.device_count()):
        fault = card_fault(config.policy, torch.cuda.get_device_capability(index), torch.cuda.get_arch_list())
        if fault:
            yield Finding(level, "gpu", f"GPU {index} ({torch.cuda.get_device_name(index)}) {fault}")


def gpus(config: RunConfig | None) -> Iterator[Finding]:
    """The machine's GPUs have a place for every process of the beginning of the run."""
    wanted = gpus_wanted(config) if config else 0.0
    if not wanted:
        yield Finding("ok", "gpu", "the recipe's roles ask for none" if config else "no recipe was given")
        return
    import torch

    from services.base.devices import why_no_gpu

    # With a driver that does not fit, PyTorch still counts the GPUs.
    have = torch.cuda.device_count() if torch.cuda.is_available() else 0
    says = f"the recipe's roles ask for {wanted:g} GPUs, and this machine has {have}"
    if not have:
        says = f"the recipe's roles ask for {wanted:g} GPUs, and PyTorch finds none here ({why_no_gpu()})"
    fix = (
        "lower num_gpus of the roles, rollout.workers, learner.ranks or replicas, or set RAY_ADDRESS to a cluster with "
        "more GPUs"
    )
    if not have:
        fix = "install a driver and a build of PyTorch that fit each other, or set RAY_ADDRESS to a cluster with GPUs"
    from system.manifests.sizing import unplaced

    without = unplaced(config, [have]) if config else None
    if without and wanted <= have:
        says = no_place(without, have)
    yield _room("gpu", says, without is None, fix)


def gpus_wanted(config: RunConfig) -> float:
    """The number of GPUs that all roles together ask for when the run begins."""
    return sum(ask.gpus for ask in _asked(config))


def cpus(config: RunConfig | None) -> Iterator[Finding]:
    """The machine has as many CPUs as all roles together ask for when the run begins."""
    have = os.cpu_count() or 1
    if config is None:
        yield Finding("ok", "cpu", f"{have} CPUs")
        return
    wanted = sum(ask.cpus for ask in _asked(config))
    says = f"the recipe's roles ask for {wanted:g} CPUs, and this machine has {have}"
    fix = (
        "lower num_cpus of rollout, learner or scorers, rollout.workers or replicas, or set RAY_ADDRESS to a cluster "
        "with more CPUs"
    )
    yield _room("cpu", says, wanted <= have, fix)


def _room(what: str, says: str, enough: bool, fix: str) -> Finding:
    """A problem if the machine has too little; only a warning if a cluster is running, whose nodes may have more."""
    if enough:
        return Finding("ok", what, says)
    address = running_ray()
    if address is None:
        return Finding("problem", what, f"{says}; {fix}")
    return Finding("warning", what, f"{says}; the cluster at {address} must have the rest")


def _asked(config: RunConfig) -> list[Ask]:
    """The resources of each actor of a run, without the replicas of a shared pool."""
    from system.manifests.sizing import asked

    group, replicas = asked(config)
    return group + replicas


def cluster(config: RunConfig | None) -> Iterator[Finding]:
    """Ray can start here, or the cluster to attach to answers and its token is set.

    Raises:
        UserError: as `check_start` raises.
    """
    yield Finding("ok", "ray", version("ray"))
    check_start()
    address = running_ray()
    if address is None:
        yield Finding("ok", "cluster", f"no running cluster found; a run starts its own on {LOOPBACK}")
        return
    yield Finding("ok", "cluster", f"a run attaches to the one at {address}")
    if os.environ.get("RAY_AUTH_MODE") != "token":
        fix = "set it if the cluster asks for a token, as clusters that Ray 2.59 or later starts locally do"
        yield Finding("warning", "cluster token", f"RAY_AUTH_MODE is not `token`; {fix}")
    elif not (os.environ.get("RAY_AUTH_TOKEN") or token_file().is_file()):
        says = f"RAY_AUTH_MODE is token, but RAY_AUTH_TOKEN is not set and {token_file()} does not exist"
        yield Finding("problem", "cluster token", f"{says}; write the cluster's token there")
    else:
        yield Finding("ok", "cluster token", "found")


def shared_memory(config: RunConfig | None) -> Iterator[Finding]:
    """Ray's object store has room for the images and experience of the steps in flight."""
    if not SHM.is_dir():
        yield Finding("warning", "shared memory", f"there is no {SHM}, so Ray's object store is a file, which is slow")
        return
    free = shutil.disk_usage(SHM).free
    needed = store_bytes(config) if config else 0.0
    says = f"{_gb(free)} free in {SHM}" + (f", {_gb(needed)} in flight" if needed else "")
    fix = "enlarge it (docker run --shm-size, an emptyDir of medium Memory), or lower rollout.max_bytes_in_flight"
    yield _room("shared memory", says, needed <= free, fix)


def memory(config: RunConfig | None) -> Iterator[Finding]:
    """Every process of the recipe has room on this machine's GPUs.

    There is no finding if there is no GPU, the recipe asks for none, or the shapes of its model are not known.
    """
    yield from _gpu_memory(config, local=False)


def local_memory(config: RunConfig | None) -> Iterator[Finding]:
    """All roles in one process have room on this machine's first GPU. There is no finding where `memory` has none."""
    yield from _gpu_memory(config, local=True)


def _gpu_memory(config: RunConfig | None, local: bool) -> Iterator[Finding]:
    """Whether the processes of a run have room. PyTorch is imported only if a role asks for a GPU.

    Args:
        local: the run has all roles in one process. Otherwise it may use a cluster, whose nodes may have other cards.
    """
    if config is None or not gpus_wanted(config):
        return
    import torch

    if not torch.cuda.is_available():
        return
    from system.capacity.cards import CARDS, GB
    from system.capacity.estimate_text import fit_sentence
    from system.capacity.fit import fit_of
    from system.capacity.memory import local_process, processes

    device = torch.cuda.get_device_properties(0)
    card = replace(CARDS["H100"], name=device.name, memory_gb=device.total_memory / GB)  # only the memory matters here
    of = (lambda one: [local_process(one)]) if local else processes
    try:
        fit = fit_of(config, [torch.cuda.device_count()], card, of)
    except UserError:  # another check reports what is wrong with the model
        return
    level: Literal["ok", "warning", "problem"] = "ok"
    if not fit.fits:
        # The margins of the estimate are assumptions: only what surely does not fit is refused.
        over = any(one.gpus and one.peak_bytes > one.share_bytes(card) for one in fit.processes)
        level = "problem" if over and (local or not running_ray()) else "warning"
    yield Finding(level, "gpu memory", fit_sentence(fit))


def host_memory(config: RunConfig | None) -> Iterator[Finding]:
    """The machine's memory holds every process of the recipe, and the object store.

    There is no finding if there is no recipe, or if the shapes of its model are not known.
    """
    if config is None:
        return
    from system.capacity.estimate_text import host_sentence
    from system.capacity.host import assumed_bytes, host_bytes, host_processes

    try:
        found = host_processes(config)
        needed = host_bytes(config, found)
    except UserError:  # another check reports what is wrong with the model
        return
    have = machine_bytes()
    says = f"{host_sentence(found, needed)} This machine has {_gb(have)}"
    fix = "lower rollout.workers, learner.ranks or replicas, or set RAY_ADDRESS to a cluster with more memory"
    finding = _room("host memory", says, needed <= have, fix)
    if finding.level == "problem" and needed - assumed_bytes(found) <= have:
        finding = replace(finding, level="warning")
    yield finding


def machine_bytes() -> int:
    """The machine's memory, or the limit of the container that this process is in."""
    total = psutil.virtual_memory().total
    limit = CONTAINER_LIMIT.read_text().strip() if CONTAINER_LIMIT.is_file() else "max"
    return total if limit == "max" else min(total, int(limit))


def store_bytes(config: RunConfig) -> float:
    """The most bytes in the object store at once: images that wait for scores, and the experience of steps in flight.

    The experience is left out if the shapes of the policy's model are not known.
    """
    from actors.rollout.plans import make_plan
    from system.capacity.counts import store_bytes as with_experience
    from system.capacity.in_flight import bytes_in_flight, task_image_bytes

    try:
        return with_experience(config)
    except UserError:
        plan = make_plan(config.plan, config.policy.num_steps)
        images = config.data.prompts_per_step * task_image_bytes(config, plan)
        return float(min((config.learner.max_staleness + 1) * images, bytes_in_flight(config)))


def disks(config: RunConfig | None) -> Iterator[Finding]:
    """The disk has room for the run folder and its checkpoints: the kept ones, the best, and one being written."""
    output = Path(config.output if config else ".")
    if config is None:
        yield _disk("disk", output, LEAST_FREE_BYTES)
        return
    size = checkpoint_bytes(config)
    kept = size * (config.checkpoint.keep + 2)
    unknown = "" if size else ", without the checkpoints, whose size depends on the model's files"
    if config.checkpoint.folder is None:
        yield _disk("disk", output, LEAST_FREE_BYTES + kept, unknown)
        return
    yield _disk("disk", output, LEAST_FREE_BYTES)
    if is_local(config.checkpoint.folder):
        yield _disk("disk of checkpoints", Path(config.checkpoint.folder), kept, unknown)
    else:
        says = f"{config.checkpoint.folder} is not checked; it needs {_gb(kept)}"
        yield Finding("ok", "disk of checkpoints", says)


def _disk(what: str, folder: Path, needed: float, unknown: str = "") -> Finding:
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not os.access(there, os.W_OK):
        return Finding("problem", what, f"{there} cannot be written to; set output (or checkpoint.folder) elsewhere")
    free = shutil.disk_usage(there).free
    says = f"{_gb(free)} free at {there}, {_gb(needed)} needed{unknown}"
    if free < needed:
        return Finding("problem", what, f"{says}; make room, lower checkpoint.keep, or set output elsewhere")
    if free < 2 * needed:
        return Finding("warning", what, f"{says}; make room if the run is long")
    return Finding("ok", what, says)


def checkpoint_bytes(config: RunConfig) -> float:
    """Bytes of one checkpoint; 0 if the shapes of the policy's model are not known."""
    from system.capacity.counts import checkpoint_bytes as of_known

    try:
        return of_known(config)
    except UserError:
        return 0.0


def extras(config: RunConfig | None) -> Iterator[Finding]:
    """Which optional packages are installed. Another check tests whether a recipe needs one that is missing."""
    for extra, package in EXTRAS.items():
        says = f"{package} {version(package)}" if importlib.util.find_spec(package) else "not installed"
        yield Finding("ok", f"extra {extra}", says)


def token_files(config: RunConfig | None) -> Iterator[Finding]:
    """Each file with a token exists, and only its owner can open it."""
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
            yield Finding("ok", "token file", f"only you can open {name}")


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f} GB"
