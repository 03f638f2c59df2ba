"""`tempflow compare`: several recipes at an equal budget, on one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.base.errors import UserError
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
    base: Annotated[
        str | None,
        typer.Option(
            help="The name of the contender that the others are compared with.", show_default="the first contender"
        ),
    ] = None,
    local: Annotated[bool, typer.Option("--local", help="Train in this process, without Ray.")] = False,
    output: Annotated[Path, typer.Option(help="The folder for results, page and pictures.")] = Path("compare"),
) -> None:
    """Train several recipes at an equal budget and show them on one page; continues where it stopped."""
    from system.compare.runs import parse_contenders, read_results, run_all

    options = "".join(f" --target {value:g}" for value in target or ()) + (f" --base {base}" if base else "")
    if not contenders:
        results = read_results(output)
        names = sorted({result.contender for result in results})
        _check_base(base, names)
        command = f"tempflow compare --output {output}{options}"
        _show(results, output, f"{len(names)} contenders", command, target or (), base)
        return
    parsed = parse_contenders(contenders)
    _check_base(base, [contender.name for contender in parsed])
    results, code = run_all(parsed, range(seeds), budget, evals, output, console, local)
    if results:
        quoted = " ".join(f'"{text}"' if " " in text else text for text in contenders)
        command = f"tempflow compare {quoted} --seeds {seeds} --budget {budget} --evals {evals} --output {output}"
        _show(results, output, f"{len(parsed)} contenders, {budget:,} NFE each", command + options, target or (), base)
    if code:
        say_next("the same command again continues the comparison")
    raise typer.Exit(code)


def _check_base(base: str | None, names: Sequence[str]) -> None:
    """Check that the base is a contender.

    Raises:
        UserError: it is none.
    """
    if base is not None and base not in names:
        raise UserError(f"--base: no contender is named `{base}`; name one of {', '.join(names)}")


def _show(
    results: list[Result], output: Path, title: str, command: str, targets: Sequence[float], base: str | None
) -> None:
    from system.compare.page import write_page

    page = write_page(results, output, title, command, targets, base)
    console.print(plain(f"page         {page}"), soft_wrap=True)
    say_next(f"open {page}")
