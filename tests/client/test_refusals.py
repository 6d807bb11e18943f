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
from excise.client.incidents import last_incident
from excise.client.logs import ROUNDS, log_to
from excise.client.refusals import KEPT, hear, last_refusals
from excise.common.errors import REMEDIES, SiteError
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


# ---- rounds that were not answered --------------------------------------------------------------------------------------


def failed(code: str, at: str = "2026-01-02T03:04:05.000+00:00") -> str:
    told = {"at": at, "level": "error", "event": "incident 00ff: DataError", "round": "query.status", "code": code}
    return json.dumps(told | {"incident": "00ff", "kind": "DataError"}) + "\n"


def test_the_status_tells_the_last_round_that_was_not_answered_and_what_to_do(
    tmp_path: Path, excise: Callable[..., Any]
) -> None:
    site = write_site_toml(tmp_path)
    assert last_incident(read_site_config(site)) is None
    assert "not answered" not in excise("site", "status", "--site", site)[1]
    log = tmp_path / "state" / "node" / ROUNDS
    log.parent.mkdir(parents=True)
    log.write_text(failed("internal") + failed("bad_data") + '{"event": "answered"}\n{"incident": \n' + failed("made_up"))
    found = last_incident(read_site_config(site))
    assert found is not None
    assert (found.round, found.code, found.number) == ("query.status", "bad_data", "00ff")
    _, out, _ = excise("site", "status", "--site", site)
    assert "query.status: bad_data\n" in out
    assert f"→ {REMEDIES[SiteError.BAD_DATA]}; incident 00ff" in out
    assert json.loads(excise("site", "status", "--json", "--site", site)[1])["incident"]["code"] == "bad_data"
    log.rename(log.with_name(f"{ROUNDS}.1"))  # the log began anew
    log.write_text('{"event": "answered"}\n')
    assert last_incident(read_site_config(site)) == found


def test_what_the_app_logs_is_what_the_status_reads(tmp_path: Path) -> None:
    site = write_site_toml(tmp_path, policy={"releases": ["0.0.0"]})
    handler = log_to(tmp_path / "state" / "node" / ROUNDS)
    try:
        assert ask(site, StatusQuery()) == Failure.KIND
    finally:
        logging.getLogger("excise").removeHandler(handler)
        logging.getLogger("excise").propagate = True
        handler.close()
    found = last_incident(read_site_config(site))
    assert found is not None
    assert (found.code, found.remedy) == ("forbidden", REMEDIES[SiteError.FORBIDDEN])


@pytest.mark.parametrize("page", ["hospital.md", "coordinator.md"])
def test_both_pages_have_the_table_of_codes(page: str) -> None:
    text = (Path(__file__).parents[2] / "docs" / page).read_text()
    assert set(REMEDIES) == set(SiteError)
    for code, remedy in REMEDIES.items():
        assert f"| `{code}` | {remedy} |" in text
