"""What pages show of a run store: looked up once for all viewers, and again when something changed that it depends on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import Request

from excise.common.chain import Fault
from excise.common.errors import ConfigError, StorageError
from excise.server.carrying import is_carried_out
from excise.server.dashboard.kept import Kept
from excise.server.dashboard.run_view import run_view
from excise.server.dashboard.runs import RunCard, Runs
from excise.server.dashboard.source import Source
from excise.server.dashboard.trail import told
from excise.server.dashboard.watch import AUDIT, REQUESTS, RUNS, SITES, Watch, topic_of
from excise.server.evidence_pack import PACK, PAGE
from excise.server.life import ENDS, State
from excise.server.standing import Stored

FILES = {"report.html": "text/html", PACK: "application/json", PAGE: "text/html", "metrics.json": "application/json"}
"""Files of a run that are given out."""
LATEST = 6
"""Lines of the audit log on the Overview."""
MOST = 50
"""Most requests or runs on the Overview; their own pages have all."""


class Shown:
    """What there is to see."""

    def __init__(self, source: Source, watch: Watch) -> None:
        self.source, self.kept = source, Kept(watch)
        self.runs = Runs(source.runs, self._carried)

    def cards(self) -> list[RunCard]:
        """Every run, the latest first."""
        found: list[RunCard] = self.kept.get("cards", self.runs.cards, RUNS, REQUESTS)
        return found

    def standing(self) -> dict[str, Any] | None:
        """How the coordinator stands; None where runs are shown alone."""

        def stand() -> dict[str, Any] | None:
            stored: Stored | None = self.kept.get("stored", self.source.stored, AUDIT)
            return self.source.standing(stored)

        found: dict[str, Any] | None = self.kept.get("standing", stand, SITES, REQUESTS, RUNS)
        return found

    def _carried(self, run: Path) -> bool | None:
        """Whether somebody carries a run out, as its request tells it; of a run without one, as its folder does."""
        asked = self.standing()
        for one in asked["requests"] if asked else []:
            if one["run"] == run.name and one["state"] == State.RUNNING:
                return not one["abandoned"]
        return is_carried_out(run)

    def view(self, run: str) -> dict[str, Any] | None:
        """One run, the latest when none is named; None when there is none yet.

        Raises
        ------
        RequestError : there is no run of this name
        """
        chosen = run or next((card.name for card in self.cards()), "")
        if not chosen:
            return None
        found: dict[str, Any] = self.kept.get(
            ("view", chosen), lambda: run_view(self.runs, chosen), topic_of(chosen), REQUESTS
        )
        return found

    def documents(self, run: str) -> list[str]:
        """Names of the documents that a run has by now."""
        return [name for name in FILES if (self.source.runs / run / name).is_file()]

    def document(self, run: str, file: str) -> Path:
        """Where a document of a run is.

        Raises
        ------
        ConfigError : there is no such run or document
        """
        path = self.source.runs / run / file
        if file not in FILES or run not in {card.name for card in self.cards()} or not path.is_file():
            raise ConfigError(f"no '{file}' of a run '{run}' yet")
        return path

    def faults(self) -> list[Fault]:
        """What is wrong with the audit log; empty when its chain is whole, or there is none."""
        found: list[Fault] = self.kept.get("faults", self._faults, AUDIT)
        return found

    def _faults(self) -> list[Fault]:
        try:
            return self.source.store.seen_faults() if self.source.store else []
        except StorageError:
            return [Fault(0, "the log cannot be read: it was taken away, or its disk does not answer")]

    def overview(self, run: str) -> dict[str, Any]:
        """Everything on the Overview, with the run of this name, or the latest.

        Raises
        ------
        RequestError : there is no run of this name
        """
        return self.panels(run) | {"cards": self.cards()}

    def requests(self) -> dict[str, Any]:
        """Every request, and every run; ``alone``: on a page of their own, which has their name already."""
        standing = self.standing()
        requests = standing["requests"] if standing else []
        return {"standing": standing, "requests": requests, "cards": self.cards(), "alone": True}

    def reports(self) -> dict[str, Any]:
        """Every run with the names of its documents."""
        return {"rows": [(card, self.documents(card.name)) for card in self.cards()]}

    def panels(self, run: str) -> dict[str, Any]:
        """As `overview`, without the list of all runs, which an event of one run does not change.

        Raises
        ------
        RequestError : as `overview`
        """
        view, standing = self.view(run), self.standing()
        lines, total = self.kept.get("latest", lambda: self.source.audit(LATEST), AUDIT)
        asked = standing["requests"] if standing else []
        name = view["run"]["name"] if view else ""
        return {
            "view": view,
            "heard": {one["site"]: one for one in view["sites"]} if view else {},
            "run": name,
            "documents": self.documents(name) if view else [],
            "standing": standing,
            "requests": sorted(asked, key=lambda one: one["state"] in ENDS)[:MOST],
            "decided": [one for one in asked if view and one["run"] == name],
            "lines": [told(line) for line in lines],
            "total": total,
            "faults": self.faults(),
        }


def shown_of(request: Request) -> Shown:
    """What the application that is asked shows."""
    found: Shown = request.app.state.shown
    return found
