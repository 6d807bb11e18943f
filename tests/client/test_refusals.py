"""What the coordinator did not use is told to its site: in its log, and in `excise site status`."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from excise.client import app
from excise.client.config import read_site_config
from excise.client.refusals import KEPT, hear, last_refusals
from excise.common.messages import Failure, SiteStatus, StatusQuery
from excise.simulations.local_grid import LocalGrid
from tests.dicoms import write_hospital, write_site_toml

REFUSED = StatusQuery(refused="not_finite", refused_round="unlearned 3")


def ask(site: Path, query: StatusQuery) -> str:
    grid = LocalGrid(app.make_app(lambda _: site), 1)
    (reply,) = grid.send_and_receive([Message(query.to_record(), 100, query.KIND)])
    return str(reply.content.config_records["message"]["kind"])


def test_it_is_logged_and_kept_and_the_round_is_answered(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    site = write_hospital(tmp_path, patients=6)
    caplog.set_level(logging.INFO)
    assert ask(site, StatusQuery()) == SiteStatus.KIND
    assert last_refusals(read_site_config(site)) == []
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    assert ask(site, REFUSED) == SiteStatus.KIND
    (line,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert line.details == {"round": "unlearned 3", "code": "not_finite"}  # type: ignore[attr-defined]
    (kept,) = last_refusals(read_site_config(site))
    assert (kept.round, kept.code) == ("unlearned 3", "not_finite")


def test_it_is_kept_even_where_the_question_is_refused(tmp_path: Path) -> None:
    site = write_site_toml(tmp_path, policy={"releases": ["0.0.0"]})  # no images, and no release may run
    assert ask(site, REFUSED) == Failure.KIND
    assert [one.code for one in last_refusals(read_site_config(site))] == ["not_finite"]


def test_only_the_last_ones_are_kept(tmp_path: Path) -> None:
    config = read_site_config(write_site_toml(tmp_path))
    for number in range(KEPT + 5):
        hear(StatusQuery(refused="norm", refused_round=f"unlearned {number}"), config)
    kept = last_refusals(config)
    assert [one.round for one in kept] == [f"unlearned {number}" for number in range(5, KEPT + 5)]


@pytest.mark.parametrize("text", ["\x1b[2J", "a\nb", "x" * 81, "Ünlearned"])
def test_what_is_no_plain_text_is_not_shown(tmp_path: Path, text: str) -> None:
    config = read_site_config(write_site_toml(tmp_path))
    hear(StatusQuery(refused=text, refused_round=text), config)
    assert [(one.code, one.round) for one in last_refusals(config)] == [("unreadable", "unreadable")]


@pytest.mark.parametrize("content", ["", "{", "[1]", '[{"at": "x"}]', "{}"])
def test_a_damaged_file_is_an_empty_one(tmp_path: Path, content: str) -> None:
    config = read_site_config(write_site_toml(tmp_path))
    hear(REFUSED, config)
    (config.state / "refusals.json").write_text(content)
    assert last_refusals(config) == []
    hear(REFUSED, config)
    assert len(last_refusals(config)) == 1


def test_a_state_that_cannot_be_written_is_no_reason_not_to_answer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = read_site_config(write_site_toml(tmp_path))
    config.state.parent.mkdir(parents=True, exist_ok=True)
    config.state.write_text("in the way")
    hear(REFUSED, config)
    assert "did not use" in caplog.text


def test_the_status_of_a_site_shows_them(tmp_path: Path, excise: Callable[..., Any]) -> None:
    site = write_site_toml(tmp_path)
    hear(REFUSED, read_site_config(site))
    code, out, _ = excise("site", "status", "--site", site)
    assert code == 0
    assert "did not use an answer of this site:" in out
    assert "unlearned 3: not_finite" in out
    hear(REFUSED, read_site_config(site))
    told = json.loads(excise("site", "status", "--site", site, "--json")[1])
    assert [(one["round"], one["code"]) for one in told["refused"]] == [("unlearned 3", "not_finite")] * 2
