"""`excise bench`: the field's methods side by side, and what the parts of excise cost."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from excise.common.errors import ConfigError
from excise.common.terminal import progress, terminal
from excise.simulations.shared import TITLES, BackendName, cache_folder

if TYPE_CHECKING:
    from excise.simulations.engine import Backend

bench = typer.Typer(no_args_is_help=True, help="Benchmarks: each writes a result page and a picture.")


@bench.callback(invoke_without_command=True)
def bench_methods(
    context: typer.Context,
    scenario: Annotated[
        list[str] | None, typer.Option(help="A scenario of the benchmark, or a scenario's TOML file; several: once each.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Two scenarios, one seed, no search: half an hour on one core.")
    ] = False,
    full: Annotated[bool, typer.Option("--full", help="Every scenario of the benchmark: many hours.")] = False,
    only: Annotated[
        list[str] | None, typer.Option(help="A method that takes part; several: once each. All without it.")
    ] = None,
    method: Annotated[list[str] | None, typer.Option(help="Your own method, package.module:NAME; several: once each.")] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Tasks of each scenario: seeds 0, 1, …; 3, and 1 if it is quick.")
    ] = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Trials of each method's settings; 12, and 1 if it is quick: the defaults.")
    ] = None,
    shadows: Annotated[
        int, typer.Option(min=0, help="Shadow models of each task, an even number from 6, for U-LiRA and RMIA; 0: neither.")
    ] = 0,
    home: Annotated[Path | None, typer.Option(help="Where what is done is kept; ~/.cache/excise/bench by default.")] = None,
) -> None:
    """Compare the field's unlearning methods, settings searched for each alike; or measure one thing, by a command below.

    What is done is kept: the same command goes on where it was interrupted. `excise bench report` writes the result pages.
    """
    if context.invoked_subcommand is not None:
        _refuse_options(context)
        return
    if quick and full:
        raise ConfigError("--quick and --full at once: choose one of them")
    from excise.simulations.contest.cli import names_of, print_records, run
    from excise.simulations.engine import one_thread

    with _status() as said, one_thread():
        where = home or cache_folder() / "bench"
        names = scenario or names_of("quick" if quick else "full" if full else "brain-mri")
        of = (seeds or (1 if quick else 3)), (trials or (1 if quick else 12))
        found = run(names, only or (), method or (), *of, where, said, shadows)
    print_records(found)


@bench.command("report")
def bench_report(
    home: Annotated[Path | None, typer.Option(help="Where results are kept; ~/.cache/excise/bench by default.")] = None,
    page: Annotated[Path, typer.Option(help="The result page to write; pictures beside it.")] = Path(
        "docs/results/benchmark.md"
    ),
    html: Annotated[Path | None, typer.Option(help="The same as one HTML file; beside the page by default.")] = None,
) -> None:
    """Write the result pages of the comparison of methods, from what is kept of it."""
    from excise.simulations.contest.report.page import write_report

    with _status() as said:
        said("writing the result pages")
        written = write_report(home or cache_folder() / "bench", page, html)
    for path in written[:2]:
        terminal.print(f"Result page: {path}")


@bench.command("demo")
def bench_demo(
    name: Annotated[str, typer.Argument(metavar="SCENARIO", help="A built-in scenario.")] = "brain-mri",
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds, from 0.")] = 5,
    fresh: Annotated[int, typer.Option(min=0, help="Number of further seeds, ours alone; their cost is not told.")] = 0,
    home: Annotated[Path, typer.Option(help="Folder where finished seeds are kept, one below it for each scenario.")] = Path(
        "runs/bench-demo"
    ),
    page: Annotated[Path | None, typer.Option(help="The result page to write; docs/results/SCENARIO.md by default.")] = None,
    backend: Annotated[
        BackendName, typer.Option(help="flower (Flower's engine on Ray) or inprocess (same apps, less memory).")
    ] = BackendName.FLOWER,
) -> None:
    """Run a scenario over several seeds, and with parts of the method changed, and write the result page."""
    from excise.simulations.bench.demo import FRESH, recipe, run_seed
    from excise.simulations.bench.demo_page import write_page
    from excise.simulations.scenario import read_scenario

    scenario = read_scenario(name)
    page = page or Path("docs/results") / f"{name}.md"
    engine: Backend = "flower" if backend is BackendName.FLOWER else "inprocess"
    results = {}
    for seed in [*range(seeds), *range(FRESH, FRESH + fresh)]:
        terminal.print(f"seed {seed}")
        seeded = scenario.model_copy(update={"seed": seed})
        with progress(TITLES) as report:
            kept = home / name / f"seed-{seed}-{recipe(seeded)}"
            results[seed] = run_seed(seeded, kept, cache_folder(), engine, report, only_ours=seed >= seeds)
    further = {seed: result for seed, result in results.items() if seed >= seeds}
    write_page(page, scenario, {seed: results[seed] for seed in range(seeds)}, further)
    terminal.print(f"Result page: {page}")


@bench.command("privacy")
def bench_privacy(
    name: Annotated[str, typer.Argument(metavar="SCENARIO", help="A built-in scenario.")] = "brain-mri",
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds, from 0.")] = 5,
    home: Annotated[Path, typer.Option(help="Folder where finished runs are kept.")] = Path("runs/bench-privacy"),
    page: Annotated[Path, typer.Option(help="The result page to write.")] = Path("docs/results/privacy.md"),
) -> None:
    """Unlearn a scenario with updates clipped, noised and made sparse, and write what each costs."""
    from excise.simulations.bench.privacy import recipe, run_seed
    from excise.simulations.bench.privacy_page import write_privacy_page
    from excise.simulations.scenario import read_scenario

    scenario = read_scenario(name)
    results = {}
    for seed in range(seeds):
        terminal.print(f"seed {seed}")
        seeded = scenario.model_copy(update={"seed": seed})
        with progress(TITLES) as report:
            results[seed] = run_seed(seeded, home / name / f"seed-{seed}-{recipe(seeded)}", cache_folder(), report)
    write_privacy_page(page, scenario, results)
    terminal.print(f"Result page: {page}")


@bench.command("engine")
def bench_engine(
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds, from 0.")] = 3,
    home: Annotated[Path, typer.Option(help="Folder where trained models are kept.")] = Path("runs/bench-engine"),
    page: Annotated[Path, typer.Option(help="The result page to write.")] = Path("docs/results/engine.md"),
) -> None:
    """Measure the engine against the published procedure and naive forms, and write the result page."""
    from excise.common.settings import PRESETS
    from excise.simulations.bench.engine import run_engine
    from excise.simulations.bench.engine_page import write_engine_page
    from excise.simulations.bench.fashion_models import TRAINED_ON, take
    from excise.simulations.fashion import read_fashion

    train, test = take(read_fashion("train"), slice(TRAINED_ON)), read_fashion("t10k")
    with _status() as said:
        results = run_engine(train, test, PRESETS["classes"], PRESETS["samples"], home, seeds, said)
    write_engine_page(page, results, PRESETS["classes"])
    terminal.print(f"Result page: {page}")


@bench.command("profile")
def bench_profile(
    images: Annotated[int, typer.Option(min=16, help="Images that are searched.")] = 256,
    home: Annotated[Path, typer.Option(help="Folder where trained models are kept.")] = Path("runs/bench-engine"),
    page: Annotated[Path, typer.Option(help="The result page to write.")] = Path("docs/results/profile.md"),
) -> None:
    """Profile the engine and its naive form, and write where the time goes."""
    from excise.common.settings import PRESETS
    from excise.simulations.bench.engine import FORGOTTEN, SEARCH
    from excise.simulations.bench.fashion_models import TRAINED_ON, Task, take
    from excise.simulations.bench.profile import profile_engine, write_profile_page
    from excise.simulations.fashion import read_fashion

    train, test = take(read_fashion("train"), slice(TRAINED_ON)), read_fashion("t10k")
    with _status() as said:
        task = Task.of_class(FORGOTTEN, train, test, home, 0, said)
        said("profiling")
        profiles = profile_engine(task, SEARCH, PRESETS["classes"], images)
    write_profile_page(page, profiles, images)
    terminal.print(f"Result page: {page}")


@bench.command("ingest")
def bench_ingest(
    files: Annotated[
        int, typer.Option(min=30, help="Files of a transfer syntax that are decoded; of JPEG 2000 a fourth.")
    ] = 16_000,
    headers: Annotated[
        int, typer.Option(min=1000, help="Headers that are indexed to measure memory; a tenth for speed.")
    ] = 200_000,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each way.")] = 3,
    page: Annotated[Path, typer.Option(help="The result page to write.")] = Path("docs/results/ingest.md"),
) -> None:
    """Measure how fast a DICOM folder is indexed, decoded and prepared, and write the result page."""
    from excise.simulations.bench import ingest
    from excise.simulations.bench.ingest_page import write_ingest_page

    with _status() as said, tempfile.TemporaryDirectory(prefix="excise-ingest-") as folder:
        decoded = {}
        for name, syntax in ingest.SYNTAXES.items():
            count = files // ingest.FEWER.get(name, 1)
            said(f"decoding {count:,} images, {name}")
            decoded[name] = ingest.images(ingest.write_files(Path(folder, name), count, syntax), repeats)
        said(f"reading {headers // 10:,} headers")
        read = ingest.headers(Path(folder, "speed"), headers // 10, repeats)
        said(f"indexing {headers:,} headers")
        indexed = ingest.indexed(Path(folder, "memory"), headers)
    write_ingest_page(page, (files, headers // 10), read, decoded, indexed, ingest.start_seconds())
    terminal.print(f"Result page: {page}")


@bench.command("soak")
def bench_soak(
    sites: Annotated[int, typer.Option(min=10, help="Sites; one in ten fails now and then.")] = 50,
    rounds: Annotated[int, typer.Option(min=4, help="Rounds of unlearning.")] = 200,
    page: Annotated[Path, typer.Option(help="The result page to write.")] = Path("docs/results/soak.md"),
) -> None:
    """Unlearn for many rounds at many sites in this process, some of them failing, and write what became of its memory."""
    from excise.simulations.bench.soak import soak
    from excise.simulations.bench.soak_page import write_soak_page

    with _status() as said, tempfile.TemporaryDirectory(prefix="excise-soak-") as folder:
        soaked = soak(sites, rounds, Path(folder), said)
    write_soak_page(page, soaked)
    terminal.print(f"Result page: {page}")


@bench.command("scale")
def bench_scale(
    sites: Annotated[
        list[int] | None, typer.Option(help="A number of sites; several: three at least. 4, 16, 64, 256, 1000 without it.")
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(min=2, help="Rounds at every number of sites; without it three, and more where they are short."),
    ] = None,
    page: Annotated[Path, typer.Option(help="The result page to write.")] = Path("docs/results/scale.md"),
) -> None:
    """Unlearn at more and more sites in this process, and write how time, bytes and the coordinator's memory grow."""
    from excise.simulations.bench.scale import SITES, rounds_of, scale
    from excise.simulations.bench.scale_page import write_scale_page

    with _status() as said, tempfile.TemporaryDirectory(prefix="excise-scale-") as folder:
        found = scale(sites or SITES, lambda number: rounds or rounds_of(number), Path(folder), said)
    write_scale_page(page, found)
    terminal.print(f"Result page: {page}")


@bench.command("dashboard")
def bench_dashboard(
    sites: Annotated[int, typer.Option(min=1, help="Sites of the coordinator.")] = 64,
    runs: Annotated[int, typer.Option(min=2, help="Runs in its store, one of them under way.")] = 300,
    viewers: Annotated[int, typer.Option(min=1, help="How many look at that one at once.")] = 50,
    minutes: Annotated[float, typer.Option(min=0.1, help="For how long.")] = 10,
    page: Annotated[Path, typer.Option(help="The result page to write.")] = Path("docs/results/dashboard.md"),
) -> None:
    """Measure how soon viewers see what happened, what that costs, and how quick a busy coordinator's pages are."""
    from excise.simulations.bench.dashboard import measure
    from excise.simulations.bench.dashboard_page import write_dashboard_page

    with _status() as said, tempfile.TemporaryDirectory(prefix="excise-dashboard-") as folder:
        measured = measure(Path(folder), sites, runs, viewers, 60 * minutes, said)
    write_dashboard_page(page, measured)
    terminal.print(f"Result page: {page}")


def _refuse_options(context: typer.Context) -> None:
    """Options before a command below would do nothing, though that command may have one of the same name."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    given = [f"--{name}" for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    if given:
        command = context.invoked_subcommand
        raise ConfigError(f"{', '.join(given)} before '{command}' does nothing: write it behind, excise bench {command} …")


@contextmanager
def _status() -> Iterator[Callable[[str], None]]:
    """What is being done, in one line that changes; in a log a line each."""
    if not terminal.is_terminal:
        yield terminal.print
        return
    with terminal.status("beginning") as status:
        yield status.update
