"""Hypothesis strategies shared by the tests: predicates, fields of images, forget requests."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

from hypothesis import strategies as st

from excise.common.predicate import (
    DATE_FIELDS,
    FIELDS,
    And,
    Compare,
    In,
    InList,
    Matches,
    Not,
    Or,
    Predicate,
    Range,
    fold,
)
from excise.common.request import Acceptance, ForgetRequest, RequestKind

# Few of each, so that a random predicate has a fair chance to hit a random image.
SOME_FIELDS = ("class", "site", "StationName", "KVP", "StudyDate")
LIST_NAMES = ("withdrawn", "list-2")
LISTS = {"withdrawn": frozenset({" MR1", "a", "20200101"}), "list-2": frozenset({"é", "5.0", ""})}

_common = st.sampled_from(
    ["a", "A", "b ", "ab", "MR1", "mr1", "é", "e\u0301", "É", "ß", "SS", "5", "5.0", "40", "1e1", "-2", "a\\b", 'a"b']
)
_text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6)
values = (_common | _text).filter(lambda value: fold(value) != "")
"""Texts that may stand in a predicate: not empty, not padding alone."""
dates = st.dates().map(lambda day: f"{day:%Y%m%d}".zfill(8)) | st.sampled_from(["20200101", "20211231"])
"""Dates as DICOM writes them."""
globs = st.sampled_from(["*", "?", "M*", "*1", "[a-m]*", "[!a]?", "m?1", "*é*", "["]) | values
fields = st.sampled_from(SOME_FIELDS)


def _value_of(field: str) -> st.SearchStrategy[str]:
    return dates if field in DATE_FIELDS else values


def _ranges(field: str) -> st.SearchStrategy[Predicate]:
    if field in DATE_FIELDS:
        pairs = st.tuples(dates, dates).map(sorted)
    else:
        numbers = st.tuples(*[st.integers(-50, 50) | st.sampled_from([0.5, 5.0, 39.5])] * 2).map(sorted)
        words = st.tuples(values, values).map(lambda pair: sorted((f"m{value}" for value in pair), key=fold))
        pairs = numbers.map(lambda pair: [str(end) for end in pair]) | words
    ends = st.sampled_from([(True, True), (True, False), (False, True)])
    return st.builds(
        lambda pair, kept: Range(field, pair[0] if kept[0] else None, pair[1] if kept[1] else None),
        pairs,
        ends,
    )


def field_tests(field: str) -> st.SearchStrategy[Predicate]:
    """Predicates with one test of `field`."""
    return st.one_of(
        _value_of(field).map(lambda value: Compare(field, value)),
        st.lists(_value_of(field), min_size=1, max_size=3).map(lambda some: In(field, tuple(some))),
        st.sampled_from(LIST_NAMES).map(lambda name: InList(field, name)),
        globs.map(lambda glob: Matches(field, glob)),
        _ranges(field),
    )


def _joined(parts: st.SearchStrategy[Predicate]) -> st.SearchStrategy[Predicate]:
    several = st.lists(parts, min_size=2, max_size=3).map(tuple)
    return parts.map(Not) | several.map(And) | several.map(Or)


predicates: st.SearchStrategy[Predicate] = st.recursive(fields.flatmap(field_tests), _joined, max_leaves=8)
"""Predicates over `SOME_FIELDS` and `LIST_NAMES`, as trees."""

images = st.fixed_dictionaries(
    {},
    optional={
        field: st.none()
        | st.sampled_from(["", " ", "\0"])
        | (dates if field in DATE_FIELDS else _common | _text)
        | (st.lists(_common, max_size=3).map(tuple) if field == "class" else st.nothing())
        for field in SOME_FIELDS
    },
)
"""Fields of an image; some missing, some empty, some padding alone; of classes none, one or several."""

_zones = st.integers(-12 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
_moments = st.builds(
    lambda moment, zone: moment.replace(tzinfo=zone),
    st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1)),
    _zones | st.just(UTC) | st.none(),
)
_shares = st.floats(0, 1)
_long_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
_field_of_kind = {
    RequestKind.CLASS: st.just("class"),
    RequestKind.SITE: st.just("site"),
    RequestKind.PATIENTS: st.sampled_from(["PatientID", "patient"]),
    RequestKind.DEVICE: st.sampled_from(FIELDS),
    RequestKind.SAMPLES: st.sampled_from(FIELDS),
    RequestKind.LABELS: st.sampled_from(FIELDS),
}


@st.composite
def requests(draw: st.DrawFn) -> ForgetRequest:
    """Valid forget requests of every kind."""
    kind = draw(st.sampled_from(RequestKind))
    where = draw(_field_of_kind[kind].flatmap(field_tests))
    if draw(st.booleans()):
        where = And((where, draw(predicates)))
    return ForgetRequest(
        id=draw(st.from_regex(r"[a-z0-9][a-z0-9-]{0,63}", fullmatch=True)),
        kind=kind,
        where=str(where),
        reason=draw(_long_text.filter(bool)),
        legal_basis=draw(_long_text),
        preference=draw(_shares),
        acceptance=draw(
            st.builds(Acceptance, held_out_drop=_shares, membership_tolerance=st.floats(0, 0.5), label_agreement=_shares)
        ),
        requested_by=draw(_long_text),
        at=draw(st.none() | _moments),
        linear_probe=draw(st.booleans()),
    )
