"""Checks of a recipe. They give the same result on every machine that has the recipe's files."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from services.base.errors import UserError
from services.scoring.settings import ScorerSettings
from system.checks.finding import Finding, tried
from system.recipe.evaluation import DEFAULT_SET, EvalSet
from system.recipe.model import RunConfig


def loggers(config: RunConfig) -> Iterator[Finding]:
    """The packages of the chosen loggers (TensorBoard, Weights & Biases) are installed, and W&B's key is set."""
    from system.run.loggers import check_loggers

    check_loggers(config.log)
    if config.log.tensorboard or config.log.wandb:
        yield Finding("ok", "log", "ready")


def training_devices(config: RunConfig) -> Iterator[Finding]:
    """Rollout workers and learner ranks that use a GPU ask Ray for one."""
    rollout, learner = config.rollout.num_gpus, config.learner.num_gpus
    asked = {"rollout.num_gpus": rollout}
    if config.placement == "split":
        asked["learner.num_gpus"] = learner
    elif config.rollout.most_workers == config.learner.ranks:
        asked = {"rollout.num_gpus and learner.num_gpus": max(rollout, learner)}
    elif not rollout:
        asked = {"rollout.num_gpus (for the workers beyond learner.ranks)": rollout}
    yield _devices(config, asked)


def evaluation_devices(config: RunConfig) -> Iterator[Finding]:
    """Rollout workers that use a GPU ask Ray for one. An evaluation has no learner."""
    yield _devices(config, {"rollout.num_gpus": config.rollout.num_gpus})


def _devices(config: RunConfig, asked: dict[str, float]) -> Finding:
    """Refuse a policy on a GPU if a role asks for no GPU.

    Args:
        asked: the GPUs that each role asks for, by the name of its setting.

    Raises:
        UserError: a role asks for no GPU.
    """
    without = [key for key, gpus in asked.items() if not gpus]
    if config.policy.device == "cuda" and without:
        raise UserError(
            f"policy.device is cuda but {' and '.join(without)} = 0; set num_gpus to 1 or a fraction, or policy.device "
            "to auto"
        )
    return Finding("ok", "device", config.policy.device)


def one_process(config: RunConfig) -> Iterator[Finding]:
    """The learner has one rank, because one process cannot reproduce the sums of several ranks bit for bit."""
    if config.learner.ranks > 1:
        raise UserError(
            f"learner.ranks: {config.learner.ranks} ranks need one process each, but --local has only one; set "
            "learner.ranks=1 and learner.shard=false, or leave out --local"
        )
    yield Finding("ok", "one process", "one rank")


def plan(config: RunConfig) -> Iterator[Finding]:
    """The plan works with the policy's number of steps."""
    from actors.rollout.plans import make_plan

    steps = config.policy.num_steps
    leaves = make_plan(config.plan, steps).leaves
    yield Finding("ok", "plan", f"{config.plan.name}, {leaves} images per prompt in {steps} steps")


def policy(config: RunConfig) -> Iterator[Finding]:
    """The model belongs to a known family and can make images of this size."""
    from actors.policy.families.registry import check_size
    from actors.policy.model_files import pipeline_name

    check_size(config.policy)
    heldout = config.eval_sampling.of(config.policy)
    check_size(heldout, "eval")
    if config.eval.negative_prompt is not None:
        from actors.policy.families.registry import family_class

        if not family_class(heldout).guides(heldout):
            raise UserError(
                "eval.negative_prompt: without classifier-free guidance the model takes none; leave it out, or set "
                "eval.guidance above 1 if the model has such guidance"
            )
    yield Finding("ok", "policy", f"{pipeline_name(config.policy.model)} in {config.policy.model}")


def weights(config: RunConfig) -> Iterator[Finding]:
    """The model's files contain every weight that the model needs, in the right shape."""
    from actors.policy.loading import check_loads

    check_loads(config.policy)
    yield Finding("ok", "weights", "complete, as far as the files are on this machine")


def adapters(config: RunConfig) -> Iterator[Finding]:
    """The adapters that the recipe starts from and compares with fit the model and are complete."""
    from actors.policy.trained import check_trained, read_trained

    named = {"policy.adapter": config.policy.adapter, "objective.reference": config.objective.reference}
    for key, name in named.items():
        if name is None:
            continue
        check_trained(config.policy, Path(name), key)
        if config.policy.lora:  # a whole transformer is too large to be read twice
            read_trained(Path(name), config.policy.lora, key)
        yield Finding("ok", key, name)


def scorers(config: RunConfig) -> Iterator[Finding]:
    """Each scorer can be imported, accepts its options, asks Ray for a GPU if it uses one, and gets whole groups."""
    for place, scorer in enumerate(config.scorers):
        yield tried(f"scorer {scorer.name}", partial(_scorer, config, place, scorer))


def _scorer(config: RunConfig, place: int, scorer: ScorerSettings) -> str:
    from actors.rollout.plans import make_plan
    from services.scoring.scorer import check_device, check_scorer, needs_of

    check_scorer(scorer)
    check_device(scorer)
    if (needs := needs_of(scorer)).groupwise:
        trained_on = scorer in config.training_scorers
        sets = _sets_of(config, scorer)
        if needs.relative:
            _check_relative(config, scorer, trained_on)
            sets = []
        groups = {
            "task": make_plan(config.plan, config.policy.num_steps).leaves if trained_on else 0,
            "held-out prompt": max((one.images_per_prompt for one in sets), default=0),
        }
        whose, images = max(groups.items(), key=lambda group: group[1])
        if images > scorer.request_images:
            raise UserError(
                f"scorer `{scorer.name}` compares all {images} images of a {whose} in one request; set "
                f"scorers.{place}.request_images to at least {images}"
            )
        if groups["held-out prompt"] == 1 and not trained_on:
            raise UserError(
                f"scorer `{scorer.name}` compares images of one prompt, but each held-out prompt has one image; set "
                "eval.images_per_prompt, or that of a set in eval.sets, to at least 2"
            )
    return scorer.scorer


def _check_relative(config: RunConfig, scorer: ScorerSettings, trained_on: bool) -> None:
    """Refuse to use the mean of a relative scorer, which says nothing.

    Raises:
        UserError: the scorer is only for evaluation, or would choose the best checkpoint or the end of the run.
    """
    why = f"scorer `{scorer.name}` only compares images of one prompt, so its mean says nothing"
    if not trained_on:
        raise UserError(f"{why}; give it a weight to train on it, or remove it")
    chosen = config.eval.chosen_by()
    if chosen is not None and chosen[1].partition(".")[0] == scorer.name:
        raise UserError(f"{why}; set eval.best to another scorer")
    if chosen is None and config.eval.patience:
        raise UserError(f"{why}, and eval.patience would never end the run; set eval.best to another scorer")


def _sets_of(config: RunConfig, scorer: ScorerSettings) -> list[EvalSet]:
    """The held-out sets that name a scorer, or name none."""
    return [one for one in config.eval_sets.values() if scorer.name in (one.scorers or [scorer.name])]


def scores(config: RunConfig) -> Iterator[Finding]:
    """Each scorer works: its service answers, or it scores an image in this process."""
    for scorer in config.scorers:
        yield tried(f"score of {scorer.name}", partial(_score, config, scorer))


def _score(config: RunConfig, scorer: ScorerSettings) -> str:
    """Score a grey image. A scorer that reads rows gets the first training prompt whose row it can use."""
    from services.scoring.probe import probe
    from services.scoring.scorer import needs_of, row_check
    from system.loop.prompts import CHECKED_ROWS, prompts_of

    size = config.policy.height, config.policy.width
    if not needs_of(scorer).rows:
        return probe(scorer, *size)
    prompts, fault_of_row = prompts_of(config.data, config.data.train), row_check(scorer)
    checked = range(min(len(prompts), CHECKED_ROWS))
    first = next((i for i in checked if fault_of_row(prompts.row(i)) is None), 0)
    return probe(scorer, *size, prompts[first], prompts.row(first))


def prompts(config: RunConfig) -> Iterator[Finding]:
    """The prompt files can be read, have the columns that scorers read, and there are enough prompts for a step."""
    from system.loop.heldout import read_set
    from system.loop.prompts import check_categories, check_rows, prompts_of, rows_of_step

    data = config.data

    def train() -> str:
        found = prompts_of(data, data.train)
        check_rows(data.train, found, config.training_scorers)
        check_categories(data.train, found, config)
        rows_of_step(len(found), data.prompts_per_step, 0, config.seed)
        return f"{len(found)} in {data.train}"

    def heldout(name: str, one: EvalSet) -> str:
        return f"{len(read_set(config, name, one).prompts)} in {one.prompts}"

    yield tried("prompts", train)
    for name, one in config.eval_sets.items():
        what = "held-out prompts" if name == DEFAULT_SET else f"held-out prompts of {name}"
        yield tried(what, partial(heldout, name, one))
