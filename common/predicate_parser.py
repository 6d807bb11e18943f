"""Reading a predicate: its text to a tree of `predicate.py`, whose head describes the language; every mistake by its place."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from excise.common.errors import PredicateError, did_you_mean
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
    at_most,
    fold,
)

MAX_DEPTH = 50  # of parentheses and `not`: far beyond what anyone writes, far below Python's recursion limit


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
        if low is not None and high is not None and not at_most(low, high):
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
