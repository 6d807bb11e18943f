"""What every command says to a person: progress and remarks on standard error, results on standard output."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

terminal = Console(stderr=True)  # standard output is for results alone
Report = Callable[[str, int, int, str], None]
"""Called with the name of a phase, steps done, steps in all, and a note or ""."""


@contextmanager
def progress(titles: Mapping[str, str]) -> Iterator[Report]:
    """A bar for each phase, named by `titles`; in a log a line when a phase begins, and at each quarter of it."""
    if not terminal.is_terminal:
        yield _lines(titles)
        return
    columns = (
        TextColumn("{task.description:<34}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    bars: dict[str, TaskID] = {}
    with Progress(*columns, console=terminal) as shown:

        def report(phase: str, done: int, total: int, note: str) -> None:
            if phase not in bars:
                bars[phase] = shown.add_task(titles.get(phase, phase), total=total)
            shown.update(bars[phase], completed=done, total=total, description=_title(titles, phase, note))

        yield report


def tell(line: str) -> None:
    """One line as it is: not wrapped, so that it can be copied, and brackets in a path are no markup."""
    terminal.print(line, soft_wrap=True, markup=False, highlight=False)


def _title(titles: Mapping[str, str], phase: str, note: str) -> str:
    return titles.get(phase, phase) + (f": {note}" if note and note != "done" else "")


def _lines(titles: Mapping[str, str]) -> Report:
    told: dict[str, int] = {}

    def report(phase: str, done: int, total: int, note: str) -> None:
        quarter = 4 * done // max(total, 1)
        if quarter > told.get(phase, -1) or done == 0:  # a phase may begin again: another candidate, another variant
            told[phase] = quarter
            tell(f"{_title(titles, phase, note)}: {done} of {total}")

    return report
