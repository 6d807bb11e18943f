"""What a dashboard shows: a coordinator with its store and runs, or a folder of runs alone."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from excise.common.errors import ConfigError
from excise.server.config import AUDIT_LOG, ServerConfig, read_server_config
from excise.server.registrar import online
from excise.server.standing import Stored, standing_of, stored_of
from excise.server.store import Store, open_store

PRESENCE = 5.0
"""Seconds for which it is believed who is online: asking the SuperLink takes a moment, much longer when it is down."""


@dataclass
class Source:
    """Where pages take everything from.

    Attributes
    ----------
    runs : the folder of the runs
    toml : server.toml of the coordinator; None where runs are shown alone
    """

    runs: Path
    toml: Path | None = None
    config: ServerConfig | None = None
    store: Store | None = None
    there: dict[str, bool] = field(default_factory=dict)
    """Which sites were online when they were looked for last."""
    _looked: float = -PRESENCE

    @property
    def name(self) -> str:
        """Whose dashboard this is."""
        return self.config.name if self.config else self.runs.name

    @property
    def audit_log(self) -> Path | None:
        """The coordinator's audit log."""
        return self.toml.parent / AUDIT_LOG if self.toml else None

    def coordinator(self) -> tuple[Store, Path, ServerConfig]:
        """The store, the folder and the configuration of the coordinator.

        Raises
        ------
        ConfigError : runs are shown alone
        """
        if self.store is None or self.toml is None or self.config is None:
            raise ConfigError("runs are shown without their coordinator: excise dashboard --server server.toml")
        return self.store, self.toml.parent, self.config

    def stored(self) -> Stored | None:
        """What the store tells of how the coordinator stands; None where runs are shown alone."""
        return stored_of(self.store) if self.store else None

    def standing(self, stored: Stored | None) -> dict[str, Any] | None:
        """How the coordinator stands (`server/standing.py`), by what its store tells; None where runs are shown alone."""
        if self.store is None or self.config is None:
            return None
        return standing_of(self.store, self.config, self.there, stored)

    def look_for_sites(self) -> bool:
        """Look which sites are online, now and then; returns whether that changed. Takes a second or more."""
        if self.store is None or self.toml is None or self.config is None or time.monotonic() - self._looked < PRESENCE:
            return False
        found = online(self.store, self.toml.parent, self.config)
        changed, self.there, self._looked = found != self.there, found, time.monotonic()
        return changed

    def audit(self, last: int, before: int | None = None) -> tuple[list[dict[str, Any]], int]:
        """Lines of the audit log, the latest first, and how many there are.

        Parameters
        ----------
        last : at most so many
        before : only lines above this number, from 1
        """
        if self.audit_log is None or not self.audit_log.exists():
            return [], 0
        lines = self.audit_log.read_bytes().splitlines()
        end = len(lines) if before is None else max(0, min(before - 1, len(lines)))
        told = []
        for number in range(end, max(0, end - last), -1):
            try:
                entry = json.loads(lines[number - 1])
            except ValueError:
                entry = None
            known = entry if isinstance(entry, dict) else {"event": "a line that cannot be read"}
            told.append({"line": number, **known})
        return told, len(lines)

    def close(self) -> None:
        """Let go of the store."""
        if self.store:
            self.store.close()


def coordinator_at(server_toml: Path) -> Source:
    """The coordinator of `server_toml`.

    Raises
    ------
    ConfigError : there is none, or its store cannot be used
    """
    config = read_server_config(server_toml)
    at = server_toml.resolve()
    return Source(config.runs, at, config, open_store(config.store, at.parent / AUDIT_LOG))


def runs_in(folder: Path) -> Source:
    """A folder of runs.

    Raises
    ------
    ConfigError : there is no such folder
    """
    if not folder.is_dir():
        raise ConfigError(f"no folder of runs at {folder}: excise simulate makes one")
    return Source(folder.resolve())
