"""Messages: the same after a trip over Flower's wire, and refused with a word on what is wrong, never with their values."""

from __future__ import annotations

import dataclasses
import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from hypothesis import given, settings
from hypothesis import strategies as st

from excise.common import messages as m
from excise.common.errors import MessageError
from excise.common.models import ModelSpec
from excise.common.request import ForgetRequest, RequestKind
from excise.common.settings import PRESETS, TrainingSettings
from excise.common.weights import digest
from tests.strategies import requests

_DTYPES = [torch.float32, torch.float64, torch.float16, torch.int64, torch.int32, torch.uint8, torch.bool]
_names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
_floats = st.floats(width=64)
_finite = st.floats(width=64, allow_nan=False, allow_infinity=False)
_int64 = st.integers(-(2**63), 2**63 - 1)


def _tensor(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 100).to(dtype)


_tensors = st.builds(
    _tensor,
    st.lists(st.integers(0, 3), max_size=3).map(tuple),
    st.sampled_from(_DTYPES),
    st.integers(0, 99),
)
_weights = st.dictionaries(_names, _tensors, max_size=4)
_values: dict[Any, st.SearchStrategy[Any]] = {
    str: st.text(st.characters(exclude_categories=["Cs"]), max_size=10),
    int: _int64,
    bool: st.booleans(),
    float: _floats,
    m.Weights: _weights,
    m.Candidates: st.dictionaries(_names.filter(lambda name: "/" not in name), _weights.filter(bool), max_size=3),
    dict[str, float]: st.dictionaries(_names, _floats, max_size=4),
    m.Profiles: st.dictionaries(_names, st.lists(_finite, max_size=4).map(tuple), max_size=3),
    tuple[float, ...]: st.lists(_finite, max_size=4).map(tuple),
    tuple[str, ...]: st.lists(_names, max_size=4).map(tuple),
    ForgetRequest: requests(),
    m.Requests: st.lists(requests(), max_size=3).map(tuple),
    ModelSpec: st.builds(ModelSpec, classes=st.integers(2, 9), mean=st.floats(-1, 1)),
    TrainingSettings: st.builds(TrainingSettings, rounds=st.integers(1, 9), augment=st.booleans()),
    type(PRESETS["samples"]): st.sampled_from(list(PRESETS.values())),
}
KINDS = [
    m.StatusQuery,
    m.SiteStatus,
    m.ReferenceQuery,
    m.ReferenceReply,
    m.FitInstruction,
    m.UnlearnInstruction,
    m.SiteUpdate,
    m.AuditQuery,
    m.AuditReply,
    m.ProbeQuery,
    m.ProbeReply,
    m.MomentsQuery,
    m.MomentsReply,
    m.EmbeddingQuery,
    m.EmbeddingReply,
    m.Failure,
]


def _some(kind: type[m.Message]) -> st.SearchStrategy[m.Message]:
    fields = {
        name: (st.none() | _values[hint] if optional else _values[hint]) for name, (hint, optional) in m._fields(kind).items()
    }
    return st.builds(kind, **fields)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, tuple):
        return isinstance(b, tuple) and len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, torch.Tensor):
        return digest({"": a}) == digest({"": b})
    if isinstance(a, float):
        return type(a) is type(b) and (a == b or (math.isnan(a) and math.isnan(b)))
    return type(a) is type(b) and a == b


def _wired(record: RecordDict) -> RecordDict:
    return recorddict_from_proto(recorddict_to_proto(record))


def test_every_message_has_a_kind_of_its_own() -> None:
    assert set(KINDS) == set(m.Message.__subclasses__()) - {m.Question} | set(m.Question.__subclasses__())
    assert len({kind.KIND for kind in KINDS}) == len(KINDS)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=20)
def test_round_trip(kind: type[m.Message], data: st.DataObject) -> None:
    message = data.draw(_some(kind))
    record = message.to_record()
    for travelled in (record, _wired(record)):
        back = kind.from_record(travelled)
        for field in dataclasses.fields(message):
            assert _same(getattr(message, field.name), getattr(back, field.name)), field.name


REQUEST = ForgetRequest(id="r", kind=RequestKind.CLASS, where="class = a", reason="test")


def test_empty_and_absent_fields_survive_the_wire() -> None:
    update = m.SiteUpdate(weights_in="a", delta={}, passes=0, seconds=math.nan)
    back = m.SiteUpdate.from_record(_wired(update.to_record()))
    assert (back.delta, back.metrics, back.ascent) == ({}, {}, ())
    assert math.isnan(back.seconds)
    audit = m.AuditReply.from_record(_wired(m.AuditReply(metrics={}, profiles={"forget/0": ()}).to_record()))
    assert audit.profiles == {"forget/0": ()}
    assert m.StatusQuery.from_record(_wired(m.StatusQuery().to_record())).request is None


def test_weights_keep_shapes_dtypes_and_their_own_memory() -> None:
    weights = {
        "count": torch.tensor(2**60),
        "strided": torch.arange(6.0).reshape(2, 3).T,
        "channels_last": torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "nan": torch.tensor([math.nan, math.inf]),
    }
    query = m.AuditQuery(model=ModelSpec(), candidates={"a": weights}, request=REQUEST)
    record = query.to_record()
    back = m.AuditQuery.from_record(record).candidates["a"]
    assert digest(back) == digest(weights)
    assert back["count"].shape == ()
    back["strided"].zero_()
    assert digest(m.AuditQuery.from_record(record).candidates["a"]) == digest(weights)


def _edited(message: m.Message, **config: Any) -> RecordDict:
    record = message.to_record()
    kept = {**record["message"], **config}  # type: ignore[arg-type]
    record["message"] = ConfigRecord({key: value for key, value in kept.items() if value is not None})
    return record


FAILURE = m.Failure(code="internal", incident="12ab")
STATUS = m.SiteStatus(
    site="s", train=1, forget=0, excluded=0, reference=0, held_out=0, skipped=0, forgotten=0, classes=("a", "b")
)

UPDATE = m.SiteUpdate(weights_in="d", delta={}, passes=1, seconds=1.0, ascent=(0.5,))


@pytest.mark.parametrize(
    ("kind", "record", "reason"),
    [
        (m.Failure, RecordDict(), "expected a 'failure' message, got a record without one"),
        (m.Failure, RecordDict({"message": MetricRecord({"kind": 1})}), "got a record without one"),
        (m.Failure, _edited(FAILURE, protocol=4), "expected protocol 3, got 4: install one release"),
        (m.Failure, _edited(FAILURE, protocol=None), "expected protocol 3, got None"),
        (m.Failure, _edited(FAILURE, protocol="3"), "expected protocol 3, got '3'"),
        # A release that was before questions told of refusals, without the field and with it.
        (m.StatusQuery, _edited(m.StatusQuery(), protocol=1, refused=None), "expected protocol 3, got 1: install one release"),
        (m.StatusQuery, _edited(m.StatusQuery(), protocol=1), "expected protocol 3, got 1: install one release"),
        # One that knows no embeddings.
        (m.StatusQuery, _edited(m.StatusQuery(), protocol=2), "expected protocol 3, got 2: install one release"),
        (m.StatusQuery, _edited(m.StatusQuery(), refused=None), "came without its field 'refused'"),
        (m.Failure, STATUS.to_record(), "expected a 'failure' message, got 'status'"),
        (m.Failure, _edited(FAILURE, code=None), "a 'failure' message came without its field 'code'"),
        (m.Failure, _edited(FAILURE, code=5), "field 'code' of a 'failure' message should be .*, got int"),
        (m.SiteStatus, _edited(STATUS, train=1.5), "field 'train' .* got float"),
        (m.SiteStatus, _edited(STATUS, train=True), "field 'train' .* got bool"),
        (m.SiteStatus, _edited(STATUS, classes="ab"), "field 'classes' .* got str"),
        (m.SiteStatus, _edited(STATUS, classes=[1, 2]), "field 'classes' .* got list"),
        (m.SiteUpdate, _edited(UPDATE, ascent=["a"]), "field 'ascent' .* should hold finite numbers alone"),
        (m.SiteUpdate, _edited(UPDATE, ascent=[float("nan")]), "field 'ascent' .* should hold finite numbers alone"),
        (m.SiteUpdate, _edited(UPDATE, ascent=[True]), "field 'ascent' .* should hold finite numbers alone"),
        (m.StatusQuery, _edited(m.StatusQuery(), request=3), "field 'request' .* got int"),
    ],
)
def test_a_malformed_record_is_refused(kind: type[m.Message], record: RecordDict, reason: str) -> None:
    with pytest.raises(MessageError, match=reason):
        kind.from_record(record)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("{", "json_invalid"),
        ('"CANARY"', "model_type|model_attributes_type"),
        ('{"id": "CANARY", "kind": "CANARY", "where": "class = a"}', "id, kind, reason"),
        ('{"id": "r", "kind": "class", "where": "class = a", "reason": "x", "preference": "CANARY"}', "preference"),
    ],
)
def test_malformed_json_is_told_by_its_place_not_its_values(text: str, place: str) -> None:
    with pytest.raises(MessageError, match=f"field 'request' of a 'query.status' message is malformed: .*({place})") as caught:
        m.StatusQuery.from_record(_edited(m.StatusQuery(), request=text))
    assert "CANARY" not in str(caught.value)
    assert caught.value.__cause__ is None


ARRAYS: dict[str, m.Message] = {
    "teacher": m.ReferenceQuery(model=ModelSpec(), teacher={"w": torch.zeros(2)}, request=REQUEST, points=4),
    "candidates": m.AuditQuery(model=ModelSpec(), candidates={"a": {"w": torch.zeros(2)}}, request=REQUEST),
}


def _read_with(name: str, value: Any) -> m.Message:
    """Read back the message that has arrays in the field `name`, with `value` in their place."""
    record = ARRAYS[name].to_record()
    if value is None:
        del record[name]
    else:
        record[name] = value
    return type(ARRAYS[name]).from_record(record)


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "came without its field '(teacher|candidates)'"),
        (MetricRecord({"w": 1.0}), "should be .*, got MetricRecord"),
        (ArrayRecord({"w": Array("float32", (2,), "numpy.ndarray", b"garbage")}), "an array that cannot be read"),
        (ArrayRecord({"w": Array("float32", (2,), "pickle", b"")}), "an array that cannot be read"),
        (ArrayRecord({"w": Array(np.array(["a"]))}), "an array that cannot be read"),
    ],
)
def test_weights_that_cannot_be_read(name: str, value: Any, reason: str) -> None:
    with pytest.raises(MessageError, match=reason):
        _read_with(name, value)


def test_a_pickle_is_not_opened() -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}]), allow_pickle=True)
    with pytest.raises(MessageError, match="cannot be read"):
        _read_with("teacher", ArrayRecord({"w": Array("object", (1,), "numpy.ndarray", buffer.getvalue())}))


def test_status_counts_what_remains() -> None:
    assert dataclasses.replace(STATUS, train=10, forget=3).retain == 7
