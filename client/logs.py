"""The site's own log: JSON, a line an event, with numbers by which it can be matched with the coordinator's.

At the default level it holds nothing of an image or a patient: kinds of rounds, ids, seconds, error codes and incident
numbers. At the debug level it holds the text of exceptions, which may.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from excise.common.files import storage_errors

ROUNDS = "rounds.jsonl"
"""Name of the log of the process that runs the apps: what became of each round."""
FILE, LEVEL = "EXCISE_LOG", "EXCISE_LOG_LEVEL"
"""Variables of the environment that name the log and its level for the process that runs the apps."""
SIZE, KEPT = 10 * 2**20, 5
"""Bytes after which a log begins anew, and how many earlier ones are kept."""


class JsonLines(logging.Formatter):
    """One JSON object a line: when, how grave, what, and the details that were given as ``extra={"details": …}``."""

    def format(self, record: logging.LogRecord) -> str:
        told: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "details", {}),
        }
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        return json.dumps(told, ensure_ascii=False)


def log_to(path: Path, level: str = "INFO") -> logging.Handler:
    """Let everything that excise logs in this process go to `path`, readable by its owner alone.

    Raises
    ------
    StorageError : it cannot be written
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        handler = RotatingFileHandler(path, maxBytes=SIZE, backupCount=KEPT, encoding="utf-8")
    handler.setFormatter(JsonLines())
    logger = logging.getLogger("excise")
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False  # Flower's own log would hold it too, in another form
    return handler
