"""Writes hardware.md: what each recipe for GPUs needs, by `tempflow plan`. It takes two minutes.

python -m docs.hardware
"""

from pathlib import Path

from system.capacity.cards import CARDS, GB
from system.capacity.plan import plan_of
from system.recipe.find import recipe_names
from system.recipe.load import load_config

PAGE = Path(__file__).with_name("hardware.md")
CARD = CARDS["H100"]
HEAD = f"""# What each recipe needs

`python -m docs.hardware` writes this page with the numbers of [`tempflow plan`](plan.md). All of them are estimates
**on paper**: none was measured on a GPU. They are for the GPUs that a recipe asks for, as {CARD.name}s of
{CARD.memory_gb:g} GB. Hours are those of all its [steps](glossary.md#training-step), with evaluation.

| recipe | GPUs | largest process | peak | a step | padding of rows | GPU-hours | fits |
|---|---|---|---|---|---|---|---|
"""


def row(name: str) -> str:
    """The line of one recipe."""
    plan = plan_of(load_config(name), None, CARD)
    largest = max(plan.processes, key=lambda one: one.peak_bytes)
    padding = max(plan.task.sampling_padding, plan.task.learning_padding)
    return (
        f"| {name} | {plan.gpus} | {largest.role}, {largest.phase} | {largest.peak_bytes / GB:.0f} GB "
        f"| {plan.step.total:,.0f} s | {padding:.1%} | {plan.gpu_hours:,.0f} | {plan.fix or 'yes'} |\n"
    )


def recipes() -> list[str]:
    """Recipes whose roles ask for GPUs."""
    return [name for name in recipe_names() if load_config(name).rollout.num_gpus]


def page() -> str:
    """The whole page."""
    return HEAD + "".join(map(row, recipes()))


if __name__ == "__main__":
    PAGE.write_text(page())
