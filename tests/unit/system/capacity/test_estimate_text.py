"""The table of `tempflow plan`."""

from rich.console import Console

from system.capacity.cards import CARDS
from system.capacity.estimate import estimate_of
from system.capacity.estimate_text import estimate_sentences, estimate_table
from system.recipe.load import load_config


def shown(recipe: str, *overrides: str) -> list[list[str]]:
    """The cells of the table's lines on a terminal of 80 characters, below its head."""
    config = load_config(recipe, overrides)
    console = Console(width=80)
    with console.capture() as printed:
        console.print(estimate_table(config, estimate_of(config, None, CARDS["H100"])))
    return [[cell.rstrip() for cell in line.split("│")[1:-1]] for line in printed.get().splitlines() if line[0] == "│"]


def test_each_role_is_followed_by_what_takes_its_memory_without_a_broken_word():
    cells = shown("sd35_pickscore", "hardware=8gpu_split")
    assert [line[0].strip() for line in cells] == [
        "rollout",
        *["held: text encoders", "held: transformer", "held: VAE", "phase: decoding", "phase: sampling"],
        "learner",
        *["held: transformer", "phase: learning"],
        "scorer pickscore",
        *["held: weights", "phase: scoring"],
    ]
    numbers = {line[0].strip(): float(line[2]) for line in cells[:6]}
    held = sum(gb for name, gb in numbers.items() if name.startswith("held"))
    assert abs(numbers["rollout"] - held - numbers["phase: decoding"]) < 0.1  # one digit after the point is shown


def test_a_recipe_without_gpus_has_no_seconds_and_no_gpu_in_its_estimate():
    assert all(len(line) == 3 for line in shown("shapes"))
    config = load_config("shapes")
    said = " ".join(estimate_sentences(config, estimate_of(config, None, CARDS["H100"]), 2.5))
    assert said.startswith("The roles ask for no GPU. They run on CPUs")
    assert not [word for word in ("H100", "GPU-hour", "takes 0", "waits") if word in said]


def test_seconds_on_more_gpus_than_there_are_say_so():
    config = load_config("sd35_pickscore", ["hardware=8gpu"])
    short, enough = (list(estimate_sentences(config, estimate_of(config, n, CARDS["H100"]), None)) for n in (1, 8))
    assert "or a recipe for fewer GPUs (`tempflow recipes` lists them)" in short[0]
    assert next(said for said in short if " step takes " in said).startswith("On 7.8 GPUs, a step takes ")
    assert next(said for said in enough if " step takes " in said).startswith("A step takes ")
