"""Which images a forget request means: one predicate language over the fields of an image.

    predicate = both { "or" both }                      "not" binds tighter than "and", "and" tighter than "or"
    both      = factor { "and" factor }
    factor    = "not" factor | "(" predicate ")" | test
    test      = FIELD "=" VALUE | FIELD "!=" VALUE | FIELD "matches" GLOB
              | FIELD "in" "(" VALUE { "," VALUE } ")"  the values stand in the request
              | FIELD "in" "@"NAME                      the values stand in a list that never leaves the site
              | FIELD "range" [VALUE] ".." [VALUE]      both ends included, one may be left open

    Manufacturer = "SIEMENS" and StationName matches "MR*" and StudyDate range 20200101..20211231

A value is a bare word or number, or quoted with " or '; inside quotes a backslash stands before a quote or a backslash.

Values are compared without padding and without case: padding means nothing in DICOM (PS3.5 §6.2), and StationName,
InstitutionName and the like are typed by people, so "mr1 " and "MR1" are one scanner. A range compares numbers as numbers
when both sides are numbers, else text. Several values in one attribute (SoftwareVersions) are one text with backslashes
between them (PS3.5 §6.4). Of several labels in `class` a test holds where it holds of any.

A missing field (none, empty, or padding alone) equals nothing, is in no list and no range, and matches nothing. `!=` is
exactly `not … =`, so it holds for a missing field: every test is then true or false of every image, and De Morgan's rules
hold. A third truth value, as in SQL, would leave images that neither a predicate nor its negation selects.
`F matches "*"` means: F is present.

Here is what a parsed predicate is and means; `predicate_parser.py` reads the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from fnmatch import fnmatchcase
from functools import lru_cache
from types import MappingProxyType
from unicodedata import normalize

from excise.common.errors import RequestError

DATE_FIELDS = ("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate")
"""Fields written YYYYMMDD (DICOM PS3.5 §6.2, DA)."""

# fmt: off
FIELDS = (
    "class", "site", "patient", "item",  # ours: the label, the site's name, its patient key, its name for the image
    "PatientID", "IssuerOfPatientID", "PatientSex",
    "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "AccessionNumber", "StudyID",
    "Manufacturer", "ManufacturerModelName", "DeviceSerialNumber", "DeviceUID", "DetectorID", "StationName",
    "SoftwareVersions", "InstitutionName", "InstitutionalDepartmentName", *DATE_FIELDS,
    "Modality", "BodyPartExamined", "Laterality", "ImageLaterality", "ViewPosition", "PatientPosition",
    "StudyDescription", "SeriesDescription", "ProtocolName", "SequenceName",
    "MagneticFieldStrength", "KVP", "SliceThickness", "PhotometricInterpretation",
)
# fmt: on
"""All that a predicate may name: four fields of ours, then keywords of DICOM PS3.6. What stands here a site must index, so
nothing stands here that no request needs (no PatientName, no PatientBirthDate)."""

Value = str | tuple[str, ...] | None
DECIMALS = frozenset({"KVP", "MagneticFieldStrength", "SliceThickness"})
"""Fields of value representation DS: numbers that have many spellings."""
Fields = Mapping[str, Value]
Lists = Mapping[str, frozenset[str]]
_NO_LISTS: Lists = MappingProxyType({})


def fold(value: str) -> str:
    """Return `value` as comparisons see it: no padding (blanks, NUL), no case, one form for each accented letter."""
    return normalize("NFC", value.casefold()).replace("\0", " ").strip()


def decimal(text: str) -> str:
    r"""A decimal string in one spelling: scanners write 1.5 as 1.500000 or 1.5E0 (PS3.5 6.2), and a PACS writes it anew.

    Of several values, parted by backslashes, each. What is no number stays as it is.

    >>> decimal("1.500000"), decimal("3e0"), decimal("about 3"), decimal("1.50\\\\2.0")
    ('1.5', '3', 'about 3', '1.5\\\\2')
    """
    return "\\".join(map(_one_decimal, text.split("\\")))


def _one_decimal(text: str) -> str:
    if not _NUMBER.fullmatch(fold(text)):
        return text
    value = float(text)
    return str(int(value)) if value.is_integer() else repr(value)


class Predicate:
    """A parsed predicate: immutable and hashable. `str` gives its canonical text, which parses back to an equal predicate."""

    def matches(self, fields: Fields, lists: Lists = _NO_LISTS) -> bool:
        """Tell whether the image with these `fields` is meant, given the site's `lists` by name.

        Raises
        ------
        RequestError : the site lacks a list in use, whether or not this image's answer hangs on it
        """
        if lacks := self.lacks(lists):
            raise RequestError(lacks)
        return _holds(self, fields, lists)

    def lacks(self, lists: Iterable[str]) -> str:
        """What to tell a site that has only these `lists`, by name; empty when it has all that the predicate needs."""
        for name in sorted(self.lists().difference(lists)):
            return (
                f"this site has no list @{name}. Lists never travel with a request: the site keeps this one itself, as "
                f"lists/{name}.txt beside its site.toml, one value a line. Write it there, then try again"
            )
        return ""

    def fields(self) -> frozenset[str]:
        """Return the fields that the predicate names."""
        return frozenset(test.field for test in field_tests(self))

    def asserts(self, field: str, value: str, lists: Lists = _NO_LISTS) -> bool:
        """Tell whether a test of `field` that is not negated holds of `value`: whether the predicate names it as wanted."""
        return any(_holds_of(test, fold(value), lists) for test in _asserted(self) if test.field == field)

    def lists(self) -> frozenset[str]:
        """Return the names, without @, of the site's lists that the predicate needs."""
        return frozenset(test.name for test in field_tests(self) if isinstance(test, InList))

    def __str__(self) -> str:
        return _text(self)


@dataclass(frozen=True)
class And(Predicate):
    """All of two or more `operands` hold."""

    operands: tuple[Predicate, ...]


@dataclass(frozen=True)
class Or(Predicate):
    """At least one of two or more `operands` holds."""

    operands: tuple[Predicate, ...]


@dataclass(frozen=True)
class Not(Predicate):
    """`operand` does not hold."""

    operand: Predicate


@dataclass(frozen=True)
class FieldTest(Predicate):
    """One test of one field."""

    field: str


@dataclass(frozen=True)
class Compare(FieldTest):
    """`field = value`. There is no node for `!=`: it is `Not(Compare(…))`."""

    value: str


@dataclass(frozen=True)
class In(FieldTest):
    """`field in (value, …)`."""

    values: tuple[str, ...]


@dataclass(frozen=True)
class InList(FieldTest):
    """`field in @name`: the values are at the site."""

    name: str


@dataclass(frozen=True)
class Range(FieldTest):
    """`field range low..high`; None is an open end."""

    low: str | None
    high: str | None


@dataclass(frozen=True)
class Matches(FieldTest):
    """`field matches pattern`: a shell-style glob (`*`, `?`, `[a-z]`, `[!0-9]`) over the whole value."""

    pattern: str


def field_tests(node: Predicate) -> Iterator[FieldTest]:
    """Every test of a field in a predicate, in the order of its text."""
    match node:
        case And(operands) | Or(operands):
            for operand in operands:
                yield from field_tests(operand)
        case Not(operand):
            yield from field_tests(operand)
        case FieldTest():
            yield node


def _asserted(node: Predicate, negated: bool = False) -> Iterator[FieldTest]:
    """The tests that stand under an even number of `not`."""
    match node:
        case And(operands) | Or(operands):
            for operand in operands:
                yield from _asserted(operand, negated)
        case Not(operand):
            yield from _asserted(operand, not negated)
        case FieldTest() if not negated:
            yield node


def _holds(node: Predicate, fields: Fields, lists: Lists) -> bool:
    match node:
        case And(operands):
            return all(_holds(operand, fields, lists) for operand in operands)
        case Or(operands):
            return any(_holds(operand, fields, lists) for operand in operands)
        case Not(operand):
            return not _holds(operand, fields, lists)
    assert isinstance(node, FieldTest)
    found = fields.get(node.field) or ""
    return any(_holds_of(node, fold(value), lists) for value in ([found] if isinstance(found, str) else found))


def _holds_of(node: FieldTest, value: str, lists: Lists) -> bool:
    """Whether the test holds of one value, which is folded; of none it never does."""
    if not value:
        return False
    same = decimal if node.field in DECIMALS else str
    match node:
        case Compare(_, wanted):
            return same(value) == same(fold(wanted))
        case In(_, values):
            return same(value) in map(same, _folded(values))
        case InList(_, name):
            return same(value) in map(same, _folded(lists[name])) if same is decimal else value in _folded(lists[name])
        case Range(_, low, high):
            return (low is None or at_most(low, value)) and (high is None or at_most(value, high))
        case Matches(_, pattern):
            return fnmatchcase(value, fold(pattern))
    raise AssertionError(node)


@lru_cache(maxsize=32)  # a list of thousands is folded once, not once for each image
def _folded(values: tuple[str, ...] | frozenset[str]) -> frozenset[str]:
    return frozenset(map(fold, values))


_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]{1,3})?")


def at_most(low: str, high: str) -> bool:
    """Whether `low` comes before `high`, or with it: as numbers when both are numbers, else as text."""
    low, high = fold(low), fold(high)
    if _NUMBER.fullmatch(low) and _NUMBER.fullmatch(high):
        return Decimal(low) <= Decimal(high)  # not float, which takes long identifiers for equal
    return low <= high


def _text(node: Predicate) -> str:
    match node:
        case And(operands):
            return " and ".join(f"({operand})" if isinstance(operand, (And, Or)) else str(operand) for operand in operands)
        case Or(operands):
            return " or ".join(f"({operand})" if isinstance(operand, Or) else str(operand) for operand in operands)
        case Not(Compare(field, value)):
            return f"{field} != {_quote(value)}"
        case Not(operand):
            return f"not ({operand})" if isinstance(operand, (And, Or)) else f"not {operand}"
        case Compare(field, value):
            return f"{field} = {_quote(value)}"
        case In(field, values):
            return f"{field} in ({', '.join(map(_quote, values))})"
        case InList(field, name):
            return f"{field} in @{name}"
        case Range(field, low, high):
            return f"{field} range {_quote(low)}..{_quote(high)}"
        case Matches(field, pattern):
            return f"{field} matches {_quote(pattern)}"
    raise AssertionError(node)


def _quote(value: str | None) -> str:
    return "" if value is None else '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
