"""What a recipe costs, by role and step, before anything starts."""

import json
import math
from pathlib import Path

from rich.table import Table

from actors.policy.families import family_class, vae_scale
from actors.rollout.plans import Plan, make_plan
from services.base.headers import shapes_below
from services.base.paths import resolve_model
from services.scoring.settings import ScorerSettings
from system.capacity.in_flight import task_image_bytes
from system.recipe.model import RunConfig

FP32_BYTES, BF16_BYTES = 4, 2
MB = 1e6


def estimate_table(config: RunConfig) -> Table:
    """NFE, images, MB moved and weights of one training step, by role.

    Where the plan draws its steps, the figures are of its first draw. Weights are the model's as a process holds them;
    adapters, gradients, the optimizer's state and activations come on top.
    """
    table = Table(title="one training step")
    for column in ("role", "processes", "NFE", "images", "MB moved", "MB of weights a process"):
        table.add_column(column, justify="left" if column == "role" else "right")
    for row in estimate(config):
        table.add_row(*row)
    return table


def estimate(config: RunConfig) -> list[tuple[str, ...]]:
    """Rows of the table, as text; a figure that needs the model's files says `?` where they are not on this machine."""
    plan = make_plan(config.plan, config.policy.num_steps)
    prompts = config.data.prompts_per_step
    guided = family_class(config.policy).forwards(config.policy)
    images, experience = step_bytes(config, plan)
    folder = Path(resolve_model(config.policy.model))
    size = FP32_BYTES if config.policy.dtype == "fp32" else BF16_BYTES
    base = size * parameters(folder)
    trained_in_shards = config.learner.shard and config.policy.lora is None
    transformer = (FP32_BYTES if trained_in_shards else size) * parameters(folder / "transformer")
    held = transformer / (config.learner.ranks if config.learner.shard else 1)
    learn = prompts * guided * _passes(config, plan, stale=config.learner.max_staleness > 0)
    training = [scorer for scorer in config.scorers if scorer.weight]
    return [
        (
            "rollout",
            str(config.rollout.workers),
            f"{prompts * plan.nfe * guided:,}",
            f"{prompts * plan.leaves:,}",
            _mb(images + experience),
            _mb(base),
        ),
        (
            "reward",
            str(sum(scorer.replicas.max for scorer in training)),
            "0",
            f"{prompts * plan.leaves * len(training):,}",
            _mb(images * len(training)),
            ", ".join(_mb(_scorer_bytes(scorer)) for scorer in training),
        ),
        ("learner", str(config.learner.ranks), f"{round(learn):,}", "0", _mb(experience), _mb(held)),
    ]


def step_bytes(config: RunConfig, plan: Plan) -> tuple[float, float]:
    """Bytes of one step's images and of its experience; NaN for the latter where the model's files are elsewhere."""
    prompts = config.data.prompts_per_step
    trained = plan.decisions + plan.actions if plan.trained_steps else plan.leaves
    experience = prompts * trained * latent_bytes(config, Path(resolve_model(config.policy.model)))
    return prompts * task_image_bytes(config, plan), experience


def steps_within(config: RunConfig, budget: int) -> int:
    """How many training steps a budget of NFE pays for, by the plans of the steps themselves; 1 at least.

    What is not known beforehand, groups with no spread, which are not trained on, is counted as if they were.
    """
    guided = family_class(config.policy).forwards(config.policy)
    spent, steps = 0.0, 0
    while spent < budget:
        plan = make_plan(config.plan, config.policy.num_steps, (config.seed, steps, 0))
        stale = config.learner.max_staleness > 0 and steps > 0
        spent += config.data.prompts_per_step * guided * (plan.nfe + _passes(config, plan, stale))
        steps += 1
    return max(1, steps - (spent > budget))


def _passes(config: RunConfig, plan: Plan, stale: bool) -> float:
    """Transformer passes of the learner for one task, which an older policy version generated if `stale`; a backward
    counts 2.
    """
    objective = config.objective
    items = plan.decisions if plan.trained_steps else plan.leaves
    if config.advantage.keep and config.advantage.group == "prompt_step" and not objective.kl:
        kept = 2 * config.advantage.keep
        items = sum(min(plan.trunks()[i] * plan.forks[i].width, kept) for i in plan.trained_steps) // plan.siblings
    return objective.task_passes(objective.rows(items, config.policy.num_steps), stale)


def _mb(count: float) -> str:
    return "?" if math.isnan(count) or not count else f"{count / MB:,.1f}"


def parameters(folder: Path) -> float:
    """Parameters in the safetensors below a folder; NaN where it is not on this machine."""
    return float(sum(math.prod(shape) for _, shape in shapes_below(folder))) if folder.is_dir() else math.nan


def _scorer_bytes(scorer: ScorerSettings) -> float:
    """Bytes of the safetensors of its model; NaN where it has none or they are not on this machine."""
    folder = Path(resolve_model(str(scorer.options["model"]))) if "model" in scorer.options else None
    if folder is None or not folder.is_dir():
        return math.nan
    return float(sum(path.stat().st_size for path in folder.rglob("*.safetensors")))


def latent_bytes(config: RunConfig, folder: Path) -> float:
    """Bytes of one fp32 latent, from the model's own configuration files."""
    path = folder / "vae" / "config.json"
    if not path.is_file():
        return math.nan
    vae = json.loads(path.read_text())
    scale = vae_scale(vae)
    channels = vae.get("latent_channels") or vae["z_dim"]
    return float(channels * (config.policy.height // scale) * (config.policy.width // scale) * FP32_BYTES)
