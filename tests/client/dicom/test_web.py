"""A PACS that fails, and one that keeps to the standard in its own way; tests/integration/test_pacs.py asks a real one."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from pydantic import ValidationError

from excise.client.config import PacsSettings
from excise.client.dicom import web
from excise.client.dicom.index import Index
from excise.client.dicom.pixels import Rules
from excise.client.dicom.web import Pacs, client_of, names_of
from excise.common.errors import ConfigError, DataError

Answer = Callable[[str, dict[str, list[str]]], tuple[int, bytes]]


@pytest.fixture
def pacs() -> Iterator[Callable[[Answer], PacsSettings]]:
    """Starts a server whose answers, status and body, are those of a function of path and query."""
    servers: list[ThreadingHTTPServer] = []

    def serve(answer: Answer) -> PacsSettings:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                url = urlsplit(self.path)
                code, body = answer(url.path, parse_qs(url.query))
                self.send_response(code)
                self.send_header("Content-Type", "application/dicom+json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return PacsSettings(url=f"http://127.0.0.1:{server.server_port}/dicom-web")

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def told(tag: str, *uids: str) -> bytes:
    return json.dumps([{tag: {"vr": "UI", "Value": [uid]}} for uid in uids]).encode()


def test_a_page_at_a_time_until_nothing_is_new(
    pacs: Callable[[Answer], PacsSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "PAGE", 2)
    studies = [f"1.{i}" for i in range(5)]
    asked: list[str] = []

    def answer(path: str, query: dict[str, list[str]]) -> tuple[int, bytes]:
        if path.endswith("/studies"):
            asked.append(query["ModalitiesInStudy"][0])
            start = int(query["offset"][0])
            return 200, told(web.STUDY, *studies[start : start + int(query["limit"][0])])
        if path.endswith("/series"):  # this one knows no pages: it always tells everything
            return 200, told(web.SERIES, "2.1")
        return 200, told(web.INSTANCE, f"{path.split('/')[3]}.9") if query["offset"] == ["0"] else b""

    settings = pacs(answer).model_copy(update={"search": {"ModalitiesInStudy": "MR"}})
    found = [names_of(file.path) for file in Pacs(settings).walk() if isinstance(file, web.File)]
    assert found == [(study, "2.1", f"{study}.9") for study in studies]
    assert set(asked) == {"MR"}


@pytest.mark.parametrize(
    ("code", "body", "reason"),
    [
        (401, b"", "answers with 401: look at data.pacs.user and secret"),
        (404, b"", "answers with 404"),
        (503, b"", r"does not answer \(RetryError\)"),
        (500, b"PATIENT CANARY", "answers with 500"),
        (200, b"<html>", "answers with no DICOMweb"),
        (200, b'[{"00100020": {}}]', "answers with no DICOMweb"),
    ],
)
def test_what_a_pacs_answers_wrongly_is_told(
    pacs: Callable[[Answer], PacsSettings], tmp_path: Path, code: int, body: bytes, reason: str
) -> None:
    settings = pacs(lambda *_: (code, body))
    with pytest.raises(DataError, match=reason) as error:
        Index(tmp_path / "index.sqlite", Pacs(settings)).scan()
    assert "CANARY" not in str(error.value)
    with pytest.raises(DataError, match=r"the PACS (answers with|does not answer)"):
        Pacs(settings).decode(b"1.1/1.2/1.3", Rules())


def test_a_pacs_that_is_not_there_is_told(tmp_path: Path) -> None:
    settings = PacsSettings(url="http://127.0.0.1:1/dicom-web")
    with pytest.raises(DataError, match=r"does not answer \(ConnectionError\); look at data\.pacs\.url"):
        Index(tmp_path / "index.sqlite", Pacs(settings)).scan()


def test_a_header_that_is_not_given_stays_a_problem_until_it_is(
    pacs: Callable[[Answer], PacsSettings], tmp_path: Path
) -> None:
    given: list[bytes] = [b"[]", b'[{"00080018": {"vr": "UI", "Value": [1]}}]', b"no JSON"]

    def answer(path: str, query: dict[str, list[str]]) -> tuple[int, bytes]:
        if path.endswith("/metadata"):
            return 200, given.pop()
        tag = {"studies": web.STUDY, "series": web.SERIES, "instances": web.INSTANCE}[path.rsplit("/", 1)[1]]
        return 200, told(tag, "1.5")

    found = Index(tmp_path / "index.sqlite", Pacs(pacs(answer)))
    for reason in ("no DICOMweb", "gives no header", "no DICOMweb"):
        assert found.scan().read == 1
        (problem,) = found.problems()
        assert reason in problem.reason
    header: dict[str, Any] = {
        web.INSTANCE: {"vr": "UI", "Value": ["1.5"]},
        "00100020": {"vr": "LO", "Value": ["P1"]},
        "00180087": {"vr": "DS", "Value": [1.5]},
        "7FE00010": {"vr": "OW", "BulkDataURI": "http://elsewhere"},
    }
    given.append(json.dumps([header]).encode())
    assert found.scan().read == 1
    ((path, _, values),) = list(found.headers())
    assert (path, values["PatientID"], values["MagneticFieldStrength"]) == (b"1.5/1.5/1.5", "P1", "1.5")
    assert found.problems() == []
    assert found.scan().read == 0


def test_a_secret_is_read_from_its_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("word\n")
    settings = PacsSettings(url="https://pacs/dicom-web", user="me", secret=tmp_path / "secret")
    assert client_of(settings)._session.auth == ("me", "word")
    bearer = PacsSettings(url="https://pacs/dicom-web", secret=tmp_path / "secret")
    assert client_of(bearer)._session.headers["Authorization"] == "Bearer word"
    with pytest.raises(ConfigError, match=r"data\.pacs\.secret"):
        client_of(PacsSettings(url="https://pacs/dicom-web", secret=tmp_path / "none"))


@pytest.mark.parametrize("wrong", [{"url": "pacs"}, {"url": "ftp://pacs"}, {"url": "http://pacs", "user": "me"}])
def test_settings_that_cannot_be_used_are_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        PacsSettings.model_validate(wrong)


def test_a_study_that_fails_is_a_problem_and_what_was_known_of_it_stays(
    pacs: Callable[[Answer], PacsSettings], tmp_path: Path
) -> None:
    failing: set[str] = set()
    patient = ["P1"]

    def answer(path: str, query: dict[str, list[str]]) -> tuple[int, bytes]:
        parts = path.split("/")
        if "studies" in parts[:-1] and parts[3] in failing:
            return 500, b""
        if path.endswith("/metadata"):
            header = {
                web.INSTANCE: {"vr": "UI", "Value": [f"{parts[3]}.9"]},
                "00100020": {"vr": "LO", "Value": patient},
            }
            return 200, json.dumps([header]).encode()
        if query["offset"] != ["0"]:
            return 200, b""
        if path.endswith("/studies"):
            found = [{web.STUDY: {"Value": [f"1.{i}"]}, "00100020": {"Value": patient}} for i in range(6)]
            return 200, json.dumps(found).encode()
        return 200, told(*((web.SERIES, "2.1") if path.endswith("/series") else (web.INSTANCE, f"{parts[3]}.9")))

    found = Index(tmp_path / "index.sqlite", Pacs(pacs(answer)))
    assert found.scan().read == 6
    failing |= {"1.2", "1.4"}
    again = found.scan()
    assert (again.read, again.gone) == (0, 0)
    assert len(list(found.headers())) == 6
    assert {problem.item for problem in found.problems()} == failing
    failing |= {"1.3"}
    with pytest.raises(DataError, match="answers with 500"):
        found.scan()  # three in a row: something else is wrong
    failing.clear()
    patient[0] = "P2"  # somebody has put right whose images they are
    assert found.scan().read == 6
    assert {header["PatientID"] for _, _, header in found.headers()} == {"P2"}
    assert found.problems() == []


def test_the_session_takes_nothing_from_the_environment() -> None:
    assert client_of(PacsSettings(url="https://pacs/dicom-web"))._session.trust_env is False
