"""`excise simulate`: a multi-site simulation on one machine, with progress and a final table."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from excise.common.errors import ConfigError, ExciseError, Interrupted
from excise.common.terminal import progress, tell, terminal
from excise.simulations.bench.cli import bench
from excise.simulations.live import dashboard
from excise.simulations.shared import TITLES, BackendName, cache_folder

if TYPE_CHECKING:
    from excise.common.request import ForgetRequest

app = typer.Typer()
app.add_typer(bench, name="bench")


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
