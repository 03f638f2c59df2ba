"""Writes hardware.md: what each recipe for GPUs needs, by `tempflow plan`. It takes two minutes.

python -m docs.hardware
"""

from pathlib import Path

from system.capacity.cards import CARDS, GB
from system.capacity.estimate import Estimate, estimate_of
from system.capacity.fit import fits_card
from system.recipe.find import recipe_names
from system.recipe.load import load_config

PAGE = Path(__file__).with_name("hardware.md")
CARD = CARDS["H100"]
HEAD = f"""# What each recipe needs

`python -m docs.hardware` writes this page with the numbers of [`tempflow plan`](plan.md). All of them are estimates
**on paper**: none was measured on a GPU. Times are those on {CARD.name}s, as many as a recipe asks for. GPU-hours are
those of all its [steps](glossary.md#training-step), with evaluation. The last column is the card with the least memory
on which every process has room.

`waits` is the share of a step in which GPUs have nothing to do, in the mean over all of them: a GPU that has reward
models alone waits for images, and split roles wait for each other. Reward models that share the GPUs of the other
roles have none of their own.

More than a fifth is lost in two cases. HPSv3 is too large to share a GPU, and 48 prompts cannot be dealt out evenly to
the other 15 GPUs of two nodes. With GenEval, the other GPUs wait for the one that has the reward models.

| recipe | GPUs | largest process | peak | a step | waits | padding of rows | GPU-hours | smallest card |
|---|---|---|---|---|---|---|---|---|
"""


def row(name: str) -> str:
    """The line of one recipe."""
    estimate = estimate_of(load_config(name), None, CARD)
    largest = max(estimate.processes, key=lambda one: one.peak_bytes)
    padding = max(estimate.task.sampling_padding, estimate.task.learning_padding)
    return (
        f"| {name} | {estimate.gpus} | {largest.role}, {largest.phase} | {largest.peak_bytes / GB:.0f} GB "
        f"| {estimate.step.total:,.0f} s | {estimate.waits:.0%} | {padding:.1%} | {estimate.gpu_hours:,.0f} "
        f"| {smallest_card(estimate)} |\n"
    )


def smallest_card(estimate: Estimate) -> str:
    """The card with the least memory that all processes fit."""
    by_memory = sorted(CARDS.values(), key=lambda card: card.memory_gb)
    found = next((card for card in by_memory if fits_card(estimate.processes, card)), None)
    return f"{found.name}, {found.memory_gb:.0f} GB" if found else "none"


def recipes() -> list[str]:
    """Recipes whose roles ask for GPUs."""
    return [name for name in recipe_names() if load_config(name).rollout.num_gpus]


def page() -> str:
    """The whole page."""
    return HEAD + "".join(map(row, recipes()))


if __name__ == "__main__":
    PAGE.write_text(page())
