"""The client app: whatever happens is answered with a code, and no word of a site's data leaves it or reaches its log."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict

from excise.client import app
from excise.client.rounds.model import SiteFailure
from excise.client.site import open_site
from excise.common import messages as m
from excise.common.errors import ConfigError, DataError, MessageError, RequestError, SiteError, StorageError
from excise.common.models import ModelSpec, build_model
from excise.common.request import ForgetRequest, RequestKind
from excise.common.settings import TrainingSettings, UnlearningSettings
from excise.common.weights import Weights, digest, snapshot
from excise.simulations.local_grid import LocalGrid
from tests.dicoms import write_hospital

CANARY = "CANARY-PATIENT-7"
SPEC = ModelSpec(size=16, width=0.05)
REQUEST = ForgetRequest(id="p7", kind=RequestKind.DEVICE, where="StationName = MR7", reason="coil fault")


@pytest.fixture
def site_toml(tmp_path: Path) -> Path:
    return write_hospital(tmp_path, patients=20)


@pytest.fixture
def ask(site_toml: Path) -> Callable[..., RecordDict]:
    """Send a record or message to the only site and return its answer as it would travel."""
    grid = LocalGrid(app.make_app(lambda _: site_toml), 1)
    (node,) = grid.get_node_ids()

    def ask(message: m.Message | RecordDict, kind: str = "") -> RecordDict:
        record = message if isinstance(message, RecordDict) else message.to_record()
        kind = kind or message.KIND  # type: ignore[union-attr]
        (reply,) = grid.send_and_receive([Message(record, node, kind)])
        assert reply.has_content()
        return reply.content

    return ask


def _weights() -> Weights:
    return snapshot(build_model(SPEC))


def _failure(record: RecordDict) -> str:
    failure = m.Failure.from_record(record)
    assert set(record["message"]) == {"kind", "protocol", "code", "incident"}  # no more than that
    assert len(failure.incident) == 16
    return failure.code


def _texts(record: RecordDict) -> str:
    return repr({key: dict(value) for key, value in record.items()})


def test_every_kind_of_round_is_answered(ask: Callable[..., RecordDict]) -> None:
    status = m.SiteStatus.from_record(ask(m.StatusQuery(request=REQUEST)))
    assert status.train + status.reference + status.held_out + status.excluded == 20
    teacher = _weights()
    unlearn = m.UnlearnInstruction(
        model=SPEC,
        weights=teacher,
        teacher_digest=digest(teacher),
        request=REQUEST,
        settings=UnlearningSettings.model_validate({"local": {"steps": 1}, "search": {"max_steps": 2}}),
        a_k=0.5,
        reference={"all": (0.2, 0.9)},
        trained={},
        round_index=0,
        seed=1,
    )
    assert _failure(ask(unlearn)) == SiteError.TEACHER_MISSING
    reference = m.ReferenceQuery(model=SPEC, teacher=teacher, request=REQUEST, points=4)
    assert m.ReferenceReply.from_record(ask(reference)).passes == status.reference + status.held_out
    update = m.SiteUpdate.from_record(ask(unlearn))
    assert update.weights_in == digest(teacher)
    fit = m.FitInstruction(
        model=SPEC, weights=teacher, training=TrainingSettings(batch_size=8), round_index=0, seed=1, without=REQUEST
    )
    assert m.SiteUpdate.from_record(ask(fit)).passes == status.retain
    audit = m.AuditReply.from_record(ask(m.AuditQuery(model=SPEC, candidates={"a": teacher}, request=REQUEST)))
    assert audit.of("a").metrics["retain_images"] == status.retain
    probe = m.ProbeQuery(model=SPEC, candidates={"a": teacher}, request=REQUEST)
    assert _failure(ask(probe)) == SiteError.FORBIDDEN
    asking = REQUEST.model_copy(update={"linear_probe": True})
    probed = m.ProbeReply.from_record(ask(replace(probe, request=asking)))
    assert probed.metrics.keys() == {"a/probe_auc"}


def test_a_model_that_this_site_cannot_build_is_told_apart(ask: Callable[..., RecordDict]) -> None:
    unknown = SPEC.model_copy(update={"name": "a-newer-model"})
    assert _failure(ask(m.AuditQuery(model=unknown, candidates={"a": _weights()}, request=REQUEST))) == SiteError.UNKNOWN_MODEL


def test_no_answer_names_a_patient(ask: Callable[..., RecordDict], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    request = ForgetRequest(id="p", kind=RequestKind.PATIENTS, where=f"PatientID = {CANARY}", reason="withdrawn")
    for message in (
        m.StatusQuery(request=request),
        m.ReferenceQuery(model=SPEC, teacher=_weights(), request=request, points=4),
        m.AuditQuery(model=SPEC, candidates={"a": _weights()}, request=request),
    ):
        answer = ask(message)
        assert answer["message"]["kind"] != "failure"  # type: ignore[index]
        assert "CANARY" not in _texts(answer)
    assert "CANARY" not in caplog.text


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MessageError(CANARY), "bad_message"),
        (RequestError(CANARY), "bad_request"),
        (DataError(CANARY), "bad_data"),
        (ConfigError(CANARY), "bad_config"),
        (StorageError(CANARY), "storage"),
        (MemoryError(CANARY), "out_of_memory"),
        (torch.OutOfMemoryError(CANARY), "out_of_memory"),
        (SiteFailure(SiteError.DIVERGED, CANARY), "diverged"),
        (ValueError(CANARY), "internal"),
        (type("Unprintable", (Exception,), {"__str__": lambda _: 1 / 0})(), "internal"),
    ],
)
def test_the_text_of_an_error_stays_at_the_site(
    ask: Callable[..., RecordDict],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    code: str,
) -> None:
    caplog.set_level(logging.INFO)

    def failing(*_: object) -> Any:
        raise error

    monkeypatch.setattr(app, "open_site", failing)
    answer = ask(m.StatusQuery())
    assert _failure(answer) == code
    assert CANARY not in _texts(answer)
    assert CANARY not in caplog.text
    incident = m.Failure.from_record(answer).incident
    (line,) = [r.getMessage() for r in caplog.records if r.name == "excise.client"]
    assert line == f"incident {incident}: {type(error).__name__}"


def test_the_details_are_in_the_sites_own_log_when_it_asks_for_them(
    ask: Callable[..., RecordDict], site_toml: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (site_toml.parent / "labels.csv").write_text(f"{CANARY},label\n")
    with caplog.at_level(logging.DEBUG, logger="excise.client"):
        answer = ask(m.StatusQuery())
    assert _failure(answer) == "bad_data"
    assert CANARY in caplog.text
    assert m.Failure.from_record(answer).incident in caplog.text


def _edited(message: m.Message, **config: Any) -> RecordDict:
    record = message.to_record()
    kept = {**record["message"], **config}  # type: ignore[arg-type]
    record["message"] = ConfigRecord({key: value for key, value in kept.items() if value is not None})
    return record


@pytest.mark.parametrize(
    ("record", "kind"),
    [
        (m.StatusQuery().to_record(), "query.reference"),
        (_edited(m.StatusQuery(), protocol=1), "query.status"),
        (_edited(m.StatusQuery(), protocol=None), "query.status"),
        (_edited(m.StatusQuery(), request=f'{{"id": "{CANARY}"}}'), "query.status"),
        (_edited(m.AuditQuery(model=SPEC, candidates={}, request=REQUEST), model=None), "evaluate.audit"),
        (RecordDict(), "train.unlearn"),
    ],
)
def test_a_malformed_message_is_a_bad_message(
    ask: Callable[..., RecordDict], caplog: pytest.LogCaptureFixture, record: RecordDict, kind: str
) -> None:
    caplog.set_level(logging.INFO)
    answer = ask(record, kind)
    assert _failure(answer) == "bad_message"
    assert CANARY not in _texts(answer) + caplog.text


def test_weights_of_a_wrong_shape_are_a_bad_message(ask: Callable[..., RecordDict]) -> None:
    weights = _weights()
    weights["head.weight"] = torch.zeros(2, 99)
    assert _failure(ask(m.AuditQuery(model=SPEC, candidates={"a": weights}, request=REQUEST))) == "bad_message"


def test_a_model_for_other_data_is_bad_data(ask: Callable[..., RecordDict]) -> None:
    spec = SPEC.model_copy(update={"classes": 5})
    assert _failure(ask(m.AuditQuery(model=spec, candidates={"a": _weights()}, request=REQUEST))) == "bad_data"


def test_an_unknown_list_is_a_bad_request(ask: Callable[..., RecordDict]) -> None:
    request = REQUEST.model_copy(update={"where": "PatientID in @withdrawn"})
    assert _failure(ask(m.StatusQuery(request=request))) == "bad_request"


def test_a_full_disk_is_told_and_leaves_nothing_half(
    ask: Callable[..., RecordDict], site_toml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(m.StatusQuery())  # the images are cached
    reference = m.ReferenceQuery(model=SPEC, teacher=_weights(), request=REQUEST, points=4)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", CANARY)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        answer = ask(reference)
    assert _failure(answer) == "storage"
    assert CANARY not in _texts(answer)
    assert not list((site_toml.parent / "state" / "teachers").iterdir())
    assert m.ReferenceReply.from_record(ask(reference)).passes > 0


def test_a_site_without_its_configuration_answers_too(tmp_path: Path) -> None:
    grid = LocalGrid(app.make_app(lambda _: tmp_path / "none" / "site.toml"), 1)
    (node,) = grid.get_node_ids()
    (reply,) = grid.send_and_receive([Message(m.StatusQuery().to_record(), node, "query.status")])
    assert _failure(reply.content) == "bad_config"


def test_a_deployed_node_names_its_site_in_its_configuration(site_toml: Path) -> None:
    grid = LocalGrid(app.app, 1)
    context = grid._contexts[100]
    grid._contexts[100] = replace(context, node_config={"site": str(site_toml)})
    (reply,) = grid.send_and_receive([Message(m.StatusQuery().to_record(), 100, "query.status")])
    assert m.SiteStatus.from_record(reply.content).site == "site-1"
    assert open_site(site_toml).config.name == "site-1"
