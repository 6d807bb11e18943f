"""`excise bench`: methods side by side on scenarios, with a table of how each did."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from excise.common.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from excise.simulations.contest.entry import Entry
    from excise.simulations.contest.record import Record

SHOWN = {
    "tow": "ToW",
    "forget_accuracy": "forget",
    "retain_accuracy": "retain",
    "test_accuracy": "test",
    "loss_auc": "AUC",
}
"""Metrics of the table, and what they are called there."""
TRACED = {"ulira_auc": "U-LiRA, AUC", "ulira_tpr": "U-LiRA, hits", "rmia_auc": "RMIA, AUC", "rmia_tpr": "RMIA, hits"}
"""Those of a table of its own, where there are shadow models."""


QUICK = ("brain-mri", "fashion-10-percent")
"""A device, and samples."""


def names_of(what: str) -> list[str]:
    """Names of the scenarios of ``quick``, of ``full``, or of one scenario itself."""
    from excise.simulations.contest.scenarios import SCENARIOS

    return list({"quick": QUICK, "full": SCENARIOS}.get(what, (what,)))


def run(
    scenarios: Sequence[str],
    only: Sequence[str],
    own: Sequence[str],
    seeds: int,
    trials: int,
    home: Path,
    said: Callable[[str], None],
    shadows: int = 0,
) -> list[Record]:
    """Compare methods, and tell how each did.

    Parameters
    ----------
    only : names of the methods that take part; all of them when empty
    own : import paths of a user's own methods, which take part as well
    shadows : shadow models of each task for U-LiRA and RMIA; 0 leaves the two out

    Raises
    ------
    ConfigError : a scenario, a method or an import path is unknown, a number of shadow models does not do, or Optuna is not
        installed
    """
    if find_spec("optuna") is None:
        raise ConfigError("the benchmark searches settings with Optuna, which is not installed: pip install 'excise[bench]'")
    from excise.simulations.baselines.registry import load_method
    from excise.simulations.contest.entry import entries_of
    from excise.simulations.contest.running import compare
    from excise.simulations.contest.scenarios import scenario_named

    entries = chosen(only) | entries_of(map(load_method, own))
    return compare([scenario_named(name, home) for name in scenarios], entries, seeds, trials, home, said, shadows)


def chosen(only: Sequence[str]) -> dict[str, Entry]:
    """The methods of these names, all when there are none.

    Raises
    ------
    ConfigError : there is none of a name
    """
    from excise.simulations.baselines.registry import CENTRAL, FEDERATED
    from excise.simulations.contest.entry import entries_of

    known = entries_of([*FEDERATED.values(), *CENTRAL.values()])
    for name in only:
        if name not in known:
            raise ConfigError(f"no method '{name}': {did_you_mean(name, known)}")
    return {name: entry for name, entry in known.items() if not only or name in only}


def print_records(records: Sequence[Record]) -> None:
    """A table for each scenario, the method nearest to the retrained model first."""
    for key in dict.fromkeys(one.key for one in records):
        of = [one for one in records if one.key == key]
        seeds = len({one.seed for one in of})
        table = Table(
            title=f"{of[0].scenario}, {'one seed' if seeds == 1 else f'mean of {seeds} seeds'}",
            caption="AUC: of the membership test; cost: images sent through models ÷ retraining's",
        )
        _add_columns(table, ("method", *SHOWN.values(), "cost"))
        table.add_row("original", *_means([one.original for one in of], SHOWN), "–")
        table.add_row("retrained", *_means([one.retrained for one in of], SHOWN), "1.000", end_section=True)
        for its in sorted(_by_entry(of), key=_tow, reverse=True):
            told = next((f"failed: {one.failed}" for one in its if one.failed), "")
            cost = f"{statistics.fmean(one.images for one in its):.3f}"
            table.add_row(its[0].entry, *((told,) if told else (*_means([one.values for one in its], SHOWN), cost)))
        Console().print(table)
        if any(one.shadows for one in of):
            Console().print(_traces([one for one in of if one.shadows]))


def _traces(of: Sequence[Record]) -> Table:
    """What attacks with shadow models found, by method."""
    table = Table(title="Traces of what was forgotten", caption="hits: at 1 % false alarms; 0.5 and 0.01 tell nothing")
    _add_columns(table, ("method", *TRACED.values()))
    table.add_row("original", *_means([one.original for one in of], TRACED))
    table.add_row("retrained", *_means([one.retrained for one in of], TRACED), end_section=True)
    for its in _by_entry(of):
        told = next((one.untraced for one in its if one.untraced), "")
        table.add_row(its[0].entry, *((told,) if told else _means([one.values for one in its], TRACED)))
    return table


def _add_columns(table: Table, columns: Iterable[str]) -> None:
    for column in columns:
        if column == "method":
            table.add_column(column)
        else:  # of numbers nothing is left out, however narrow the terminal: a long name takes a second line
            table.add_column(column, justify="right", min_width=len("0.000"))


def _by_entry(records: Sequence[Record]) -> list[list[Record]]:
    return [[one for one in records if one.entry == name] for name in dict.fromkeys(one.entry for one in records)]


def _tow(records: Sequence[Record]) -> float:
    return -1.0 if any(one.failed for one in records) else statistics.fmean(one.values["tow"] for one in records)


def _means(values: Sequence[Mapping[str, float]], shown: Iterable[str]) -> list[str]:
    """Means over seeds of what is shown; a dash where one of them has none."""
    return [
        f"{statistics.fmean(one[key] for one in values):.3f}" if all(key in one for one in values) else "–" for key in shown
    ]
