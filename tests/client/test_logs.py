"""The site's log: whole lines of JSON with numbers to match by, and nobody's name at the default level."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Message

from excise.client import app
from excise.client.logs import log_to
from excise.common.errors import StorageError
from excise.common.messages import StatusQuery
from excise.simulations.local_grid import LocalGrid
from tests.dicoms import write_hospital


@pytest.fixture
def restored() -> Iterator[None]:
    logger = logging.getLogger("excise")
    before = (logger.level, logger.propagate, list(logger.handlers))
    yield
    for handler in logger.handlers:
        if handler not in before[2]:
            handler.close()
    logger.level, logger.propagate, logger.handlers = before


def ask(site: Path) -> ConfigRecord:
    grid = LocalGrid(app.make_app(lambda _: site), 1)
    query = StatusQuery()
    (reply,) = grid.send_and_receive([Message(query.to_record(), next(iter(grid.get_node_ids())), query.KIND)])
    told = reply.content["message"]
    assert isinstance(told, ConfigRecord)
    return told


@pytest.mark.parametrize("level", ["INFO", "DEBUG"])
def test_each_round_is_a_line_and_a_failure_can_be_matched(tmp_path: Path, restored: None, level: str) -> None:
    path = tmp_path / "log" / "rounds.jsonl"
    log_to(path, level)
    site = write_hospital(tmp_path / "site", patients=6)
    ask(site)
    broken = tmp_path / "CANARY" / "site.toml"  # with no images beside it
    broken.parent.mkdir()
    broken.write_text(site.read_text())
    told = ask(broken)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert path.stat().st_mode & 0o777 == 0o600
    assert (lines[0]["event"], lines[0]["round"], lines[0]["level"]) == ("answered", "query.status", "info")
    assert {"run", "message", "seconds", "at"} <= lines[0].keys()
    assert (lines[1]["incident"], lines[1]["code"], lines[1]["level"]) == (told["incident"], told["code"], "error")
    assert ("CANARY" in path.read_text()) == (level == "DEBUG")
    assert len(lines) == (3 if level == "DEBUG" else 2)


def test_a_log_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError):
        log_to(tmp_path / "file" / "rounds.jsonl")
