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
between them (PS3.5 §6.4).

A missing field (none, empty, or padding alone) equals nothing, is in no list and no range, and matches nothing. `!=` is
exactly `not … =`, so it holds for a missing field: every test is then true or false of every image, and De Morgan's rules
hold. A third truth value, as in SQL, would leave images that neither a predicate nor its negation selects.
`F matches "*"` means: F is present.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from fnmatch import fnmatchcase
from functools import lru_cache
from types import MappingProxyType
from unicodedata import normalize

from excise.common.errors import PredicateError, RequestError, did_you_mean

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

MAX_DEPTH = 50  # of parentheses and `not`: far beyond what anyone writes, far below Python's recursion limit

Fields = Mapping[str, str | None]
Lists = Mapping[str, frozenset[str]]
_NO_LISTS: Lists = MappingProxyType({})


def fold(value: str) -> str:
    """Return `value` as comparisons see it: no padding (blanks, NUL), no case, one form for each accented letter."""
    return normalize("NFC", value.casefold()).replace("\0", " ").strip()


class Predicate:
    """A parsed predicate: immutable and hashable. `str` gives its canonical text, which parses back to an equal predicate."""

    def matches(self, fields: Fields, lists: Lists = _NO_LISTS) -> bool:
        """Tell whether the image with these `fields` is meant, given the site's `lists` by name.

        Raises
        ------
        RequestError : the site lacks a list in use, whether or not this image's answer hangs on it
        """
        for name in sorted(self.lists() - lists.keys()):
            raise RequestError(
                f"this site has no list @{name}. Lists never travel with a request: the site keeps this one itself, as "
                f"lists/{name}.txt beside its site.toml, one value a line. Write it there, then try again"
            )
        return _holds(self, fields, lists)

    def fields(self) -> frozenset[str]:
        """Return the fields that the predicate names."""
        return frozenset(test.field for test in _tests(self))

    def lists(self) -> frozenset[str]:
        """Return the names, without @, of the site's lists that the predicate needs."""
        return frozenset(test.name for test in _tests(self) if isinstance(test, InList))

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


def _tests(node: Predicate) -> Iterator[FieldTest]:
    match node:
        case And(operands) | Or(operands):
            for operand in operands:
                yield from _tests(operand)
        case Not(operand):
            yield from _tests(operand)
        case FieldTest():
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
    value = fold(fields.get(node.field) or "")
    if not value:
        return False
    match node:
        case Compare(_, wanted):
            return value == fold(wanted)
        case In(_, values):
            return value in _folded(values)
        case InList(_, name):
            return value in _folded(lists[name])
        case Range(_, low, high):
            return (low is None or _at_most(low, value)) and (high is None or _at_most(value, high))
        case Matches(_, pattern):
            return fnmatchcase(value, fold(pattern))
    raise AssertionError(node)


@lru_cache(maxsize=32)  # a list of thousands is folded once, not once for each image
def _folded(values: tuple[str, ...] | frozenset[str]) -> frozenset[str]:
    return frozenset(map(fold, values))


_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]{1,3})?")


def _at_most(low: str, high: str) -> bool:
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


def parse(text: str) -> Predicate:
    """Parse a predicate, once and before any use.

    Raises
    ------
    PredicateError : `text` is empty, breaks the grammar, names an unknown field, nests deeper than `MAX_DEPTH`, or asks for
        what no image can have: an empty value, a date that is not YYYYMMDD, a range that ends before it starts
    """
    if not text.strip():
        raise PredicateError('the predicate is empty: write which images are meant, for example StationName = "MR1"', 0)
    return _Parser(text).parse()


@dataclass(frozen=True)
class _Token:
    kind: str  # field-or-value "word", "quoted", "list", "end", or the symbol or reserved word itself
    text: str
    position: int


_TOKEN = re.compile(
    r"""(?P<blank>\s+) | (?P<quoted>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*') | (?P<list>@[A-Za-z0-9_-]+)
    | (?P<symbol>\.\.|[=!<>&|]+|[(),]) | (?P<word>(?:[\w+\-*?\[\]/:]|\.(?!\.))+)""",
    re.VERBOSE | re.DOTALL,
)
_RESERVED = ("and", "or", "not", "in", "range", "matches")


def _tokens(text: str) -> Iterator[_Token]:
    position = 0
    while position < len(text):
        found = _TOKEN.match(text, position)
        if found is None and text[position] in "\"'":
            raise PredicateError(f"the quote {text[position]} is opened here and never closed", position)
        if found is None:
            raise PredicateError(
                f"expected a field, a value or an operator, got {text[position]!r}; quote special values", position
            )
        kind, word = str(found.lastgroup), found.group()
        if kind == "symbol" or word.lower() in _RESERVED:
            kind = word.lower()
        if kind != "blank":
            yield _Token(kind, word, position)
        position = found.end()
    yield _Token("end", "", len(text))


class _Parser:
    """Recursive descent, one method for each line of the grammar."""

    def __init__(self, text: str) -> None:
        self.stream = _tokens(text)
        self.token = next(self.stream)
        self.depth = 0

    def parse(self) -> Predicate:
        predicate = self.either()
        if self.token.kind != "end":
            raise self.expected("'and', 'or' or the end")
        return predicate

    def either(self) -> Predicate:
        return self.chain("or", Or, self.both)

    def both(self) -> Predicate:
        return self.chain("and", And, self.factor)

    def chain(self, word: str, node: type[And | Or], operand: Callable[[], Predicate]) -> Predicate:
        operands = [operand()]
        while self.take(word):
            operands.append(operand())
        return operands[0] if len(operands) == 1 else node(tuple(operands))

    def factor(self) -> Predicate:
        opening = self.token
        if not (self.take("not") or self.take("(")):
            return self.test()
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise PredicateError(f"nested more than {MAX_DEPTH} deep: write it flatter", opening.position)
        inner = Not(self.factor()) if opening.kind == "not" else self.either()
        if opening.kind == "(" and not self.take(")"):
            raise self.expected(f"'and', 'or' or the ')' that closes character {opening.position + 1}")
        self.depth -= 1
        return inner

    def test(self) -> Predicate:
        name = self.token
        if not self.take("word"):
            raise self.expected("a field, 'not' or '('")
        field = name.text
        if field not in FIELDS:
            near = {known.lower(): known for known in FIELDS}.get(field.lower(), field)
            raise PredicateError(f"unknown field {_shown(field)}; {did_you_mean(near, FIELDS)}", name.position)
        if self.take("="):
            return Compare(field, self.value(field))
        if self.take("!="):
            return Not(Compare(field, self.value(field)))
        if self.take("matches"):
            return Matches(field, self.value())
        if self.take("in"):
            return self.membership(field)
        if self.take("range"):
            return self.range(field)
        hint = f"; write: not {field} …" if self.token.kind == "not" else ""
        raise self.expected(f"=, !=, in, range or matches after {field}", hint)

    def membership(self, field: str) -> Predicate:
        if self.token.kind == "list":
            name = self.token.text[1:]
            self.take("list")
            return InList(field, name)
        if not self.take("("):
            raise self.expected("values in parentheses, or @ and the name of a site's list, after in")
        values = [self.value(field)]
        while self.take(","):
            values.append(self.value(field))
        if not self.take(")"):
            raise self.expected("',' or ')' after a value")
        return In(field, tuple(values))

    def range(self, field: str) -> Predicate:
        start = self.token
        low = None if start.kind == ".." else self.value(field)
        if not self.take(".."):
            raise self.expected("'..' between the ends of a range")
        high = self.value(field) if self.token.kind in ("word", "quoted") or low is None else None
        if low is not None and high is not None and not _at_most(low, high):
            raise PredicateError(f"the range ends before it starts: {_shown(low)} is after {_shown(high)}", start.position)
        return Range(field, low, high)

    def value(self, field: str | None = None) -> str:
        """Take a value; `field` is given where the whole value stands, not where a glob does."""
        token = self.token
        if not (self.take("word") or self.take("quoted")):
            raise self.expected("a value", f'; if it is the value, write "{token.text}"' if token.kind in _RESERVED else "")
        value = _unquoted(token) if token.kind == "quoted" else token.text
        if not fold(value):
            raise PredicateError(
                'no image has an empty value; for images without a field F write: not F matches "*"', token.position
            )
        if field in DATE_FIELDS and not re.fullmatch("[0-9]{8}", fold(value)):
            raise PredicateError(f"expected a date as YYYYMMDD, got {_shown(value)}", token.position)
        return value

    def take(self, kind: str) -> bool:
        if self.token.kind != kind:
            return False
        self.token = next(self.stream, self.token)
        return True

    def expected(self, what: str, hint: str = "") -> PredicateError:
        got = "the end" if self.token.kind == "end" else _shown(self.token.text)
        return PredicateError(f"expected {what}, got {got}{hint}", self.token.position)


def _unquoted(token: _Token) -> str:
    inner = token.text[1:-1]
    for escape in re.finditer(r"\\(.)", inner, re.DOTALL):
        if escape[1] not in "\\\"'":
            raise PredicateError(r"a backslash inside quotes is written \\", token.position + 1 + escape.start())
    return re.sub(r"\\(.)", r"\1", inner, flags=re.DOTALL)


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:39] + "…")
