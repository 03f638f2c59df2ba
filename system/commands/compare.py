"""`tempflow compare`: several recipes at an equal budget, on one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.base.plain import plain
from system.commands.arguments import console, say_next

if TYPE_CHECKING:
    from system.compare.result import Result

app = typer.Typer()


@app.command()
def compare(
    contenders: Annotated[
        list[str] | None,
        typer.Argument(
            help='Recipes; put one with overrides in quotes: "shapes learner.lr=1e-4 name=slow". A key=value outside '
            "quotes changes all of them. Without recipes, the page is made again from the results in --output.",
            show_default=False,
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs per recipe, with the seeds 0, 1, …")] = 3,
    budget: Annotated[int, typer.Option(min=1, help="The NFE of each run.")] = 80_000,
    evals: Annotated[int, typer.Option(min=1, help="Evaluations in each run, after the first one.")] = 8,
    target: Annotated[
        list[float] | None, typer.Option(help="Show the cost of reaching this accuracy; repeat the option for more.")
    ] = None,
    local: Annotated[bool, typer.Option("--local", help="Train in this process, without Ray.")] = False,
    output: Annotated[Path, typer.Option(help="The folder for results, page and pictures.")] = Path("compare"),
) -> None:
    """Train several recipes at an equal budget and show them on one page; continues where it stopped."""
    from system.compare.runs import parse_contenders, read_results, run_all

    if not contenders:
        results = read_results(output)
        count = len({result.contender for result in results})
        _show(results, output, f"{count} contenders", f"tempflow compare --output {output}", target or ())
        return
    parsed = parse_contenders(contenders)
    results, code = run_all(parsed, range(seeds), budget, evals, output, console, local)
    if results:
        quoted = " ".join(f'"{text}"' if " " in text else text for text in contenders)
        command = f"tempflow compare {quoted} --seeds {seeds} --budget {budget} --evals {evals} --output {output}"
        command += "".join(f" --target {value:g}" for value in target or ())
        _show(results, output, f"{len(parsed)} contenders, {budget:,} NFE each", command, target or ())
    raise typer.Exit(code)


def _show(results: list[Result], output: Path, title: str, command: str, targets: Sequence[float]) -> None:
    from system.compare.page import write_page

    page = write_page(results, output, title, command, targets)
    console.print(plain(f"page         {page}"), soft_wrap=True)
    say_next(f"open {page}")
