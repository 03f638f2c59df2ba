"""The command line: one function a command; each imports what it needs when it runs."""

import logging
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from services.base.errors import refusal
from system import __version__
from system.commands.plain import plain, printable
from system.launch.environment import listen_on_loopback
from system.loop.stop import STOPPED_EXIT_CODE, Stopped

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=("Reinforcement learning of text-to-image flow models: TempFlow-GRPO and its neighbours on Ray."),
)
console = Console()

Recipe = Annotated[
    str, typer.Argument(help="A recipe: its name (see `tempflow recipes`), a YAML file, or the folder of a run.")
]
Overrides = Annotated[list[str] | None, typer.Argument(help="Overrides such as learner.lr=1e-4.", show_default=False)]


@app.command()
def train(
    recipe: Recipe,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option(help="Continue the run of this name from its latest checkpoint.")] = False,
    accept_changes: Annotated[
        bool, typer.Option(help="Resume although prompts or a model are not the ones that the run began with.")
    ] = False,
    dry_run: Annotated[bool, typer.Option(help="Check the recipe and print what a step costs; start nothing.")] = False,
) -> None:
    """Train by a recipe; writes a run folder with checkpoints, metrics, an adapter and a report."""
    from system.commands.train import check, train_run
    from system.recipe.load import load_with_sources

    config, sources = load_with_sources(recipe, overrides or [])
    if dry_run:
        from actors.policy.loading import check_loads
        from system.capacity.estimate import estimate_table
        from system.recipe.dump import dump_with_sources

        check(config)
        check_loads(config.policy)
        typer.echo(dump_with_sources(config, sources))
        console.print(estimate_table(config))
        return
    raise typer.Exit(train_run(config, resume, console, accept_changes))


@app.command("eval")
def evaluate_command(
    recipe: Recipe,
    overrides: Overrides = None,
    prompts: Annotated[
        str | None, typer.Option(help="A prompt file; the recipe's held-out prompts if not given.")
    ] = None,
    adapter: Annotated[
        Path | None, typer.Option(help="The lora/ (or transformer/) folder of a run, compared with the base.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write a row an image to this Parquet file.")] = None,
) -> None:
    """Score a prompt file with all scorers of a recipe: the base model, and an adapter beside it."""
    from system.commands.evaluate import run_eval
    from system.recipe.load import load_config

    run_eval(load_config(recipe, overrides or []), prompts, adapter, output, console)


@app.command()
def sample(
    recipe: Recipe,
    prompt: Annotated[list[str], typer.Option(help="A prompt; repeat for more.")],
    overrides: Overrides = None,
    adapter: Annotated[
        Path | None, typer.Option(help="The lora/ (or transformer/) folder of a run; the base model if not given.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Images a prompt.")] = 1,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the noise; the recipe's if not given.")] = None,
    output: Annotated[Path, typer.Option(help="The folder for the images.")] = Path("samples"),
) -> None:
    """Generate images in this process, without Ray."""
    from system.commands.sample import run_sample
    from system.recipe.load import load_config

    given = [*(overrides or []), *([] if seed is None else [f"seed={seed}"])]
    for path in run_sample(load_config(recipe, given), prompt, adapter, count, output):
        console.print(plain(path), soft_wrap=True)


@app.command()
def serve(
    recipe: Recipe,
    overrides: Overrides = None,
    print_config: Annotated[
        bool, typer.Option("--print", help="Print the YAML for `serve deploy` or a RayService; start nothing.")
    ] = False,
) -> None:
    """Run a recipe's scorers as a reward pool with an HTTP side, until Ctrl-C."""
    from system.launch.serving import run_pool, serve_config
    from system.recipe.load import load_pool

    pool = load_pool(recipe, overrides or [])
    if print_config:
        typer.echo(serve_config(pool), nl=False)
        return
    run_pool(pool, console)


@app.command()
def deploy(
    recipe: Recipe,
    infra: Annotated[Path, typer.Option(help="The cluster's nodes, image, volumes and secrets: a YAML file.")],
    overrides: Overrides = None,
    part: Annotated[
        Literal["all", "job", "pool", "volume"],
        typer.Option(help="Job and pool, one of them, or the claim of the run folders, which is applied once."),
    ] = "all",
) -> None:
    """Print Kubernetes manifests for a run (RayJob) and its reward pool (RayService)."""
    from system.manifests.infra import load_infra
    from system.manifests.manifests import manifests, render
    from system.recipe.load import load_config

    typer.echo(render(manifests(load_config(recipe, overrides or []), load_infra(infra), part)), nl=False)


@app.command()
def score(
    images: Annotated[list[Path], typer.Argument(help="PNG, JPEG or WebP files.")],
    prompt: Annotated[list[str], typer.Option(help="A prompt for all images, or one for each in turn.")],
    recipe: Annotated[str, typer.Option(help="The recipe whose scorers are asked.")] = "shapes",
    scorer: Annotated[list[str] | None, typer.Option(help="Only these of them; all if not given.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Overrides such as scorers.0.options.device=cpu.")
    ] = None,
) -> None:
    """Score image files in this process, without Ray."""
    from system.commands.score import chosen_scorers, run_score
    from system.recipe.load import load_pool

    console.print(run_score(images, prompt, chosen_scorers(load_pool(recipe, overrides or []), scorer)))


@app.command()
def doctor(
    recipe: Annotated[str | None, typer.Argument(help="A recipe to look at, too.", show_default=False)] = None,
    overrides: Overrides = None,
) -> None:
    """Look at this machine, and at what a recipe needs, before anything starts; exit code 2 if there is a problem."""
    from system.checks.doctor import diagnose
    from system.recipe.load import load_config

    colours = {"ok": "green", "warning": "yellow", "problem": "red"}
    config_, levels = load_config(recipe, overrides or []) if recipe else None, set()
    for finding in diagnose(config_):
        levels.add(finding.level)
        console.print(f"{finding.level:8}", style=colours[finding.level], end=" ")
        console.print(plain(f"{finding.what}: {finding.says}"), soft_wrap=True)
    raise typer.Exit(2 if "problem" in levels else 0)


@app.command()
def report(run: Annotated[Path, typer.Argument(help="A run folder.")]) -> None:
    """Write a run's report.html again."""
    from system.report.build import build_report

    console.print(plain(build_report(run)), soft_wrap=True)


@app.command()
def bench(
    kind: Annotated[str, typer.Argument(help="sampler, learner, weights, pipeline, pool or completions.")],
    recipe: Recipe = "shapes",
    overrides: Overrides = None,
    family: Annotated[
        str | None, typer.Option(help="Full-size shapes with random weights: sd35-medium or flux-dev.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds (training steps for pipeline).")] = 3,
    simulate: Annotated[
        bool, typer.Option("--simulate", help="pipeline: 64 workers, 16 replicas and 4 ranks that sleep.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Measure a part against the loop that the reference scripts use, on the same work in one run."""
    import json as encoder
    from contextlib import redirect_stdout

    from system.bench.run import bench_table, run_bench
    from system.recipe.load import load_config

    log = Console(stderr=True) if json else console
    with redirect_stdout(sys.stderr if json else sys.stdout):  # Ray's own messages
        figures = run_bench(kind, load_config(recipe, overrides or []), family, rounds, simulate, log)
    console.print_json(encoder.dumps(figures)) if json else console.print(bench_table(kind, figures))


@app.command()
def compare(
    contenders: Annotated[
        list[str] | None,
        typer.Argument(
            help='Recipes; with overrides in quotes: "shapes learner.lr=1e-4 name=slow". A key=value alone is for all. '
            "Without any, the page is made again from the results in the output folder.",
            show_default=False,
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each, with the seeds 0, 1, …")] = 3,
    budget: Annotated[int, typer.Option(min=1, help="NFE of each run.")] = 80_000,
    evals: Annotated[int, typer.Option(min=1, help="Evaluations of each run, after the first one.")] = 8,
    target: Annotated[
        list[float] | None, typer.Option(help="An accuracy whose cost the table shows; repeat for more.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Where results, page and pictures go.")] = Path("compare"),
) -> None:
    """Train several recipes at an equal budget and put them on one page; continues where it stopped."""
    from system.compare.page import write_page
    from system.compare.runs import parse_contenders, read_results, run_all

    if not contenders:
        results, command = read_results(output), f"tempflow compare --output {output}"
        labels = len({result.label for result in results})
        page = write_page(results, output, f"{labels} contenders", command, target or ())
        console.print(f"page         {page}", highlight=False, soft_wrap=True)
        return
    parsed = parse_contenders(contenders)
    results, code = run_all(parsed, range(seeds), budget, evals, output, console)
    if results:
        quoted = " ".join(f'"{text}"' if " " in text else text for text in contenders)
        command = f"tempflow compare {quoted} --seeds {seeds} --budget {budget} --evals {evals} --output {output}"
        command += "".join(f" --target {value:g}" for value in target or ())
        page = write_page(results, output, f"{len(parsed)} contenders, {budget:,} NFE each", command, target or ())
        console.print(plain(f"page         {page}"), soft_wrap=True)
    raise typer.Exit(code)


@app.command()
def config(recipe: Recipe, overrides: Overrides = None) -> None:
    """Print a recipe with every default filled in, and the file that each value came from."""
    from system.recipe.dump import dump_with_sources
    from system.recipe.load import load_with_sources

    typer.echo(dump_with_sources(*load_with_sources(recipe, overrides or [])), nl=False)


@app.command()
def recipes() -> None:
    """List the recipes that come with tempflow."""
    from system.recipe.find import recipe_names

    for name in recipe_names():
        typer.echo(name)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    listen_on_loopback()


def main() -> None:
    """Run the command line: exit code 2 and one sentence for the user's mistakes, a traceback for ours."""
    on_screen = logging.StreamHandler()
    on_screen.setLevel(logging.WARNING)
    on_screen.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(on_screen)
    try:
        app()
    except Stopped as stopped:
        print(f"tempflow: stopped by {stopped}", file=sys.stderr)
        sys.exit(STOPPED_EXIT_CODE)
    except Exception as error:
        said = refusal(error)
        if said is None:
            raise
        print("tempflow:", "\n".join(map(printable, str(said).split("\n"))), file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
