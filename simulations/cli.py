"""`excise simulate`: a multi-site simulation on one machine, with progress and a final table."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from excise.common.errors import ConfigError, ExciseError, Interrupted
from excise.common.terminal import progress, tell, terminal
from excise.simulations.live import dashboard

if TYPE_CHECKING:
    from excise.common.request import ForgetRequest
    from excise.simulations.engine import Backend

app = typer.Typer()
bench = typer.Typer(no_args_is_help=True, help="Benchmarks: each writes a result page and a picture.")
app.add_typer(bench, name="bench")


class BackendName(StrEnum):
    """What carries the messages of a simulation."""

    FLOWER = "flower"
    INPROCESS = "inprocess"


TITLES = {
    "hospitals": "Preparing the hospitals",
    "original": "Training the deployed model",
    "unlearned": "Unlearning",
    "retrained": "Retraining without the forget set",
    "report": "Writing the report",
}


@app.command()
def simulate(
    name: Annotated[str, typer.Argument(metavar="SCENARIO", help="A built-in scenario.")] = "brain-mri",
    scenario: Annotated[Path | None, typer.Option(help="A scenario file of your own instead.")] = None,
    sites: Annotated[int | None, typer.Option(min=1, help="Number of sites, in place of the scenario's.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed, in place of the scenario's.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the run folders.")] = Path("runs"),
    backend: Annotated[
        BackendName, typer.Option(help="flower (Flower's engine on Ray) or inprocess (same apps, less memory).")
    ] = BackendName.FLOWER,
    resume: Annotated[Path | None, typer.Option(help="Go on with the run of this folder.")] = None,
    after: Annotated[Path | None, typer.Option(help="Begin from this finished run's revised model; needs --request.")] = None,
    request: Annotated[Path | None, typer.Option(help="The later request, a TOML file; goes with --after.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder of simulated hospitals; ~/.cache/excise by default.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the metrics as JSON on standard output.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the scenario, print it whole, and write nothing.")] = False,
    live: Annotated[bool, typer.Option("--dashboard", help="Show the run live in a browser, and stay until Ctrl-C.")] = False,
) -> None:
    """Train a model over simulated hospitals, unlearn a request, compare with retraining, and write a report."""
    # Flower and Ray take seconds to import, so they are imported where a mistake in the scenario has been told already.
    from excise.simulations.scenario import later_scenario, read_scenario, resumed_scenario

    if (after is None) != (request is None):
        raise ConfigError("--after names an earlier run and --request what is to be forgotten next: give both or neither")
    if after and (scenario or resume or seed is not None or sites is not None):
        raise ConfigError("--after goes to the sites of the earlier run: leave --scenario, --resume, --seed and --sites out")
    if after and request:
        chosen = later_scenario(after, request)
    else:
        chosen = resumed_scenario(resume) if resume else read_scenario(name, scenario)
    if seed is not None:
        chosen = chosen.model_copy(update={"seed": seed})
    if sites is not None:
        chosen = chosen.model_copy(update={"partition": chosen.partition.model_copy(update={"sites": sites})})
    chosen.check_data()
    from excise.simulations.run import as_toml, new_run_folder
    from excise.simulations.run import simulate as run_simulation

    if dry_run:
        typer.echo(chosen.model_dump_json(indent=2) if as_json else as_toml(chosen))
        return
    folder = resume or new_run_folder(out, chosen)
    home = cache or cache_folder()
    with dashboard(folder.parent, live) as stays:
        try:
            with progress(TITLES) as report:
                done = run_simulation(chosen, folder, home, "flower" if backend is BackendName.FLOWER else "inprocess", report)
        except Interrupted:
            tell(f"Stopped. Every finished round is kept; go on with: {_resuming(folder)}")
            raise
        except ExciseError:
            tell(f"The run folder is {folder}; once the cause is mended: {_resuming(folder)}")
            raise
        _print_results(done.results, done.plan.request, folder)
        if as_json:
            typer.echo(json.dumps(json.loads((folder / "metrics.json").read_text())))
        tell("The dashboard stays until Ctrl-C." if live else f"To see it as live pages: {_shown(folder.parent)}")
        stays()


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


def cache_folder() -> Path:
    """Where simulated hospitals are kept between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "excise"


@contextmanager
def _status() -> Iterator[Callable[[str], None]]:
    """What is being done, in one line that changes; in a log a line each."""
    if not terminal.is_terminal:
        yield terminal.print
        return
    with terminal.status("beginning") as status:
        yield status.update


def _resuming(folder: Path) -> str:
    """The command that goes on with a run."""
    return _command("simulate", "--resume", str(folder))


def _shown(runs: Path) -> str:
    """The command that shows the runs of a folder."""
    return _command("dashboard", "--runs", str(runs))


def _command(*words: str) -> str:
    """A command of ours, as this program was called."""
    return shlex.join(["excise" if shutil.which("excise") else sys.argv[0], *words])


def _print_results(results: dict[str, Any], request: ForgetRequest, folder: Path) -> None:
    """The table, the cost, the sites, the verdict with its rule, and where everything is."""
    from excise.server.report import cost_line, kept_line, measured, signed, three
    from excise.server.verdict import site_names, site_score, summary_rows, verdict

    table = Table(title=escape(f"{request.id}: {request.where}"))
    for column in ("", "original", "retrained", "unlearned", "gap", "ideal"):
        table.add_column(column, justify="left" if not column else "right")
    for row in summary_rows(results):
        scores = (three(row.original), three(row.retrained), three(row.unlearned), signed(row.gap))
        table.add_row(row.name, *scores, row.ideal)
    terminal.print(table)
    sites = Table(title="held-out accuracy by site")
    for column in ("site", "original", "unlearned", "change", "forget images"):
        sites.add_column(column, justify="left" if column == "site" else "right")
    for site in site_names(results):
        before, after = (site_score(results, model, site, "held_out_accuracy") for model in ("original", "unlearned"))
        sites.add_row(site, three(before), three(after), signed(after - before), str(results["sites"][site]["forget"]))
    terminal.print(sites)
    if "candidates" in results:
        _print_candidates(results["candidates"])
    tell(cost_line(results))
    if kept := kept_line(results):
        tell(kept)
    outcome = verdict(results, request)
    terminal.print("[bold]Acceptance rule met[/]" if outcome.accepted else "[bold]Acceptance rule not met[/]")
    for check in outcome.checks:
        mark = "[green]✓[/]" if check.passed else "[red]✗[/]"
        terminal.print(f"  {mark} {escape(f'{check.rule}: measured {measured(check)} {check.note}')}", soft_wrap=True)
    terminal.print(f"Report:        {folder / 'report.html'}\nRevised model: {folder / 'model.safetensors'}", soft_wrap=True)


def _print_candidates(candidates: dict[str, Any]) -> None:
    from excise.server.report import three
    from excise.server.verdict import number

    objectives = next(iter(candidates.values()))["objectives"]
    table = Table(title="candidates, on reference images (small is good)")
    for column in ("candidate", *objectives, "missed by", "front", "chosen"):
        table.add_column(column, justify="left" if column == "candidate" else "right")
    for name, candidate in candidates.items():
        measured = (three(number(value)) for value in (*candidate["objectives"].values(), candidate["excess"]))
        table.add_row(name, *measured, "yes" if candidate["on_front"] else "no", "✓" if candidate["chosen"] else "")
    terminal.print(table)
