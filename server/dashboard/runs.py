"""The run folders of one place, and a card of each for the list of runs.

A run's events are read as they grow (`tail.py`) and summed up (`story.py`); its settings are read again when their file
changed. So a look at hundreds of runs of which one is under way reads that one's last line, and stats the others.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from excise.common.errors import RequestError
from excise.server.carrying import is_carried_out
from excise.server.dashboard.files import checkpoint, last_sign
from excise.server.dashboard.settings import FILES, Settings, read_settings
from excise.server.dashboard.story import AUDIT, RETRAINING, SITES, TRAINING, UNLEARNING, Story
from excise.server.dashboard.tail import Tail
from excise.server.events import EVENTS

QUIET = 900.0
"""Seconds without a sign after which a run is called stale of which nothing tells whether somebody carries it out."""
OPEN = ("not started", "running", "stopped")
"""States in which a run is carried out, or may be."""
Carried = Callable[[Path], bool | None]
_NAME = re.compile(r"[^./\\][^/\\]{0,254}")
"""Of a run's folder, which has to be printable as well: half a character could not be sent to a browser."""


@dataclass(frozen=True)
class RunCard:
    """One line of the list of runs.

    Attributes
    ----------
    name : of the folder
    request, kind, scope : id and kind of the request, and what is forgotten in words; empty when that is not known
    maker : "simulated" or "deployed", empty when that is not known
    state : "not started", "running", "stopped", "failed" or "finished"; stopped: nobody carries it out
    stale : whether a run gave no sign for `QUIET` seconds of which nothing tells whether it is carried out
    phase : what it does now, in words (`story.py`)
    candidate : whose rounds those are; empty where one way alone is tried
    candidates : names of all that are or were tried
    round, rounds : rounds done or under way in this phase, of how many; None when not told
    started_at, last_at : first and last event, ISO 8601; None before
    seed : None when not told
    waits_for, waits_since : sites that are awaited, and since when
    malformed : lines of the events that are none
    problem : what is wrong with the settings; empty when nothing is
    """

    name: str
    request: str
    kind: str
    scope: str
    maker: str
    state: str
    stale: bool
    phase: str
    candidate: str
    candidates: tuple[str, ...]
    round: int | None
    rounds: int | None
    started_at: str | None
    last_at: str | None
    seed: int | None
    waits_for: tuple[str, ...]
    waits_since: str | None
    malformed: int
    problem: str


class Known:
    """What is known of one run folder.

    Parameters
    ----------
    carried : tells of a run's folder whether somebody carries it out; None where that is not known
    """

    def __init__(self, path: Path, carried: Carried = is_carried_out) -> None:
        self.path, self.story, self.malformed = path, Story(), 0
        self._carried = carried
        self.settings = Settings()
        self._tail, self._read = Tail(path / EVENTS), (0, 0)

    def look(self) -> None:
        """Take in what changed since the last look."""
        news = self._tail.read()
        if news.anew:
            self.story, self.malformed = Story(), 0
        self.malformed += news.malformed
        for event in news.events:
            self.story.take(event)
        if (read := self._settings_file()) != self._read:
            self._read, self.settings = read, read_settings(self.path)

    def _settings_file(self) -> tuple[int, int]:
        for name in FILES:
            try:
                told = (self.path / name).stat()
            except OSError:
                continue
            return told.st_mtime_ns, told.st_size
        return (-1, 0)

    # ---- where it stands ----------------------------------------------------------------------------------------------

    @property
    def carried(self) -> bool | None:
        """Whether somebody carries it out; None where that is not known, or it is at its end."""
        return self._carried(self.path) if self.story.state in OPEN else None

    @property
    def state(self) -> str:
        """As a card has it."""
        return self._state(self.carried)

    def _state(self, carried: bool | None) -> str:
        """What the events tell, but where it is known better whether somebody carries it out."""
        told = self.story.state
        if carried is None:
            return told
        return ("running" if told == "stopped" else told) if carried else "stopped"

    @property
    def phase(self) -> str:
        """What it does now, or did; training and retraining tell no events, but leave checkpoints."""
        if self.story.state not in ("running", "stopped"):
            return self.story.phase
        if self.story.phase == AUDIT and (self.path / "checkpoints" / "retrained.safetensors").exists():
            return RETRAINING
        return AUDIT if self.story.phase == TRAINING and self.settings.deployed else self.story.phase

    def round_of(self) -> tuple[int | None, int | None]:
        """Rounds done or under way in the present phase, and of how many."""
        phase = self.phase
        if phase in (TRAINING, RETRAINING):
            saved = checkpoint(self.path, "original" if phase == TRAINING else "retrained")
            return (saved["rounds"] if saved else 0), self.settings.training_rounds
        if phase == UNLEARNING:
            return self.story.number, self.settings.rounds(self.story.candidate)
        return None, None

    def quiet(self, now: float) -> bool:
        """Whether it is not at its end and gave no sign for `QUIET` seconds before `now`, seconds since 1970."""
        if self.story.state != "running" or self.story.last_at is None:
            return False
        return now - max(moment(self.story.last_at), last_sign(self.path)) > QUIET

    def card(self, now: float) -> RunCard:
        """The run's line in the list."""
        story, settings, request, carried = self.story, self.settings, self.settings.request, self.carried
        state = self._state(carried)
        done, of = self.round_of()
        waits = story.waits if state == "running" else None
        seed = settings.table.get("seed")
        return RunCard(
            name=self.path.name,
            request=request.id if request else story.request,
            kind=request.kind.value if request else "",
            scope=settings.scope,
            maker=settings.kind,
            state=state,
            stale=carried is None and self.quiet(now),
            phase=self.phase or (SITES if state == "running" else ""),
            candidate=story.candidate if settings.candidates else "",
            candidates=tuple(dict.fromkeys((*settings.candidates, *story.rounds, *story.done))),
            round=done,
            rounds=of,
            started_at=story.started_at,
            last_at=story.last_at,
            seed=story.seed if story.seed is not None else seed if isinstance(seed, int) else None,
            waits_for=tuple(waits["sites"]) if waits else (),
            waits_since=waits["since"] if waits else None,
            malformed=self.malformed,
            problem=settings.problem,
        )


class Runs:
    """The run folders below one folder. Safe to use from several threads: one looks at a time.

    Parameters
    ----------
    folder : whose direct subfolders are runs, if they hold settings or events; it may be missing
    carried : as of `Known`
    """

    def __init__(self, folder: Path, carried: Carried = is_carried_out) -> None:
        self.folder, self._carried = folder, carried
        self._known: dict[str, Known] = {}
        self._lock = threading.RLock()

    def names(self) -> list[str]:
        """Every run folder, sorted by name."""
        try:
            found = [path for path in self.folder.iterdir() if _may_name(path.name)]
        except OSError:
            return []
        return sorted(path.name for path in found if path.name in self._known or _is_run(path))

    @contextmanager
    def run(self, name: str) -> Iterator[Known]:
        """One run as it is now; it does not change while it is held.

        Raises
        ------
        RequestError : there is no such run
        """
        with self._lock:
            path = self.folder / name if _may_name(name) else None
            if path is None or not _is_run(path):
                self._known.pop(name, None)
                raise RequestError(f"no run '{name[:100]}'")
            known = self._known.setdefault(name, Known(path, self._carried))
            known.look()
            yield known

    def cards(self, now: float | None = None) -> list[RunCard]:
        """A card of every run, the one that began last first; those that did not begin before all others."""
        now, found = time.time() if now is None else now, []
        with self._lock:
            for name in self.names():
                try:
                    with self.run(name) as known:
                        found.append(known.card(now))
                except RequestError:  # removed meanwhile
                    continue
            for gone in self._known.keys() - {card.name for card in found}:
                del self._known[gone]
        return sorted(found, key=_began, reverse=True)


def runs_of(folder: Path | Runs, now: float | None = None) -> list[RunCard]:
    """A card of every run below `folder`, the latest first. Give the same `Runs` again, and only what changed is read."""
    return (folder if isinstance(folder, Runs) else Runs(folder)).cards(now)


def moment(at: str) -> float:
    """Seconds since 1970 of an event's time."""
    return datetime.fromisoformat(at).timestamp()


def _began(card: RunCard) -> tuple[float, str]:
    return (moment(card.started_at) if card.started_at else float("inf"), card.name)


def _may_name(text: str) -> bool:
    return text.isprintable() and bool(_NAME.fullmatch(text))


def _is_run(path: Path) -> bool:
    return any((path / name).is_file() for name in (EVENTS, *FILES))
