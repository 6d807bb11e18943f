"""The predicate language: against a slow obvious evaluator, against boolean algebra, and against what people mistype."""

from __future__ import annotations

import unicodedata
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydicom.datadict import dictionary_VR, tag_for_keyword

from excise.common.errors import PredicateError, RequestError
from excise.common.predicate import (
    DATE_FIELDS,
    DECIMALS,
    FIELDS,
    And,
    Compare,
    Fields,
    FieldTest,
    In,
    InList,
    Matches,
    Not,
    Or,
    Predicate,
    Range,
    Value,
    fold,
)
from excise.common.predicate_parser import MAX_DEPTH, parse
from tests.strategies import LISTS, fields, globs, images, predicates, values

MR = {"Manufacturer": "SIEMENS ", "StationName": "mr1", "StudyDate": "20200615", "class": "Tumour", "KVP": "120.0"}
MR["InstitutionName"] = "HO\u0302PITAL"


# --- a slow, obvious evaluator -------------------------------------------------------------------------------------


def plain(value: str | None) -> str:
    return "" if value is None else unicodedata.normalize("NFC", value.casefold()).replace("\0", " ").strip()


def number(text: str) -> Fraction | None:
    if not text.isascii() or any(letter not in "0123456789+-.e" for letter in text):
        return None
    if len(text.partition("e")[2].lstrip("+-")) > 3:
        return None
    try:
        return Fraction(text)
    except ValueError:
        return None


def before_or_same(a: str, b: str) -> bool:
    x, y = number(plain(a)), number(plain(b))
    return plain(a) <= plain(b) if x is None or y is None else x <= y


def glob(pattern: str, text: str) -> bool:
    """The glob by its definition, letter by letter; brackets only as far as `globs` uses them."""
    if pattern == "":
        return text == ""
    if pattern[0] == "*":
        return any(glob(pattern[1:], text[cut:]) for cut in range(len(text) + 1))
    if text == "":
        return False
    if pattern[0] == "[" and "]" in pattern[2:]:
        inside, rest = pattern[1 : pattern.index("]", 2)], pattern[pattern.index("]", 2) + 1 :]
        inverted, inside = inside.startswith("!"), inside.removeprefix("!")
        hit = inside[0] <= text[0] <= inside[2] if len(inside) == 3 and inside[1] == "-" else text[0] in inside
        return hit is not inverted and glob(rest, text[1:])
    return (pattern[0] == "?" or pattern[0] == text[0]) and glob(pattern[1:], text[1:])


def slow(predicate: Predicate, image: Fields) -> bool:
    if isinstance(predicate, Not):
        return not slow(predicate.operand, image)
    if isinstance(predicate, And):
        return False not in [slow(part, image) for part in predicate.operands]
    if isinstance(predicate, Or):
        return True in [slow(part, image) for part in predicate.operands]
    assert isinstance(predicate, FieldTest)
    found = image.get(predicate.field)
    if isinstance(found, tuple):
        return True in [slow(predicate, {predicate.field: one}) for one in found]
    value = plain(found)
    if value == "":
        return False
    if isinstance(predicate, Compare):
        return value == plain(predicate.value)
    if isinstance(predicate, In):
        return any(value == plain(wanted) for wanted in predicate.values)
    if isinstance(predicate, InList):
        return any(value == plain(wanted) for wanted in LISTS[predicate.name])
    if isinstance(predicate, Range):
        low = value if predicate.low is None else predicate.low
        high = value if predicate.high is None else predicate.high
        return before_or_same(low, value) and before_or_same(value, high)
    assert isinstance(predicate, Matches)
    return glob(plain(predicate.pattern), value)


def simple_glob(predicate: Predicate) -> bool:
    """Whether every glob is one that the slow `glob` above knows."""
    if isinstance(predicate, And | Or):
        return all(map(simple_glob, predicate.operands))
    if isinstance(predicate, Not):
        return simple_glob(predicate.operand)
    return not isinstance(predicate, Matches) or predicate.pattern in ("[a-m]*", "[!a]?") or "[" not in predicate.pattern


@given(predicates.filter(simple_glob), images)
def test_agrees_with_the_slow_evaluator(predicate: Predicate, image: dict[str, Value]) -> None:
    assert predicate.matches(image, LISTS) is slow(predicate, image)


@given(fields, globs, images)
def test_any_text_is_a_glob(field: str, pattern: str, image: dict[str, Value]) -> None:
    Matches(field, pattern).matches(image)


# --- text and tree -------------------------------------------------------------------------------------------------


@given(predicates)
def test_canonical_text_parses_back(predicate: Predicate) -> None:
    assert parse(str(predicate)) == predicate
    assert hash(parse(str(predicate))) == hash(predicate)
    assert str(parse(str(predicate))) == str(predicate)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("class = tumour", Compare("class", "tumour")),
        ("class='tumour'", Compare("class", "tumour")),
        ('class != "tumour"', Not(Compare("class", "tumour"))),
        ('not class = "tumour"', Not(Compare("class", "tumour"))),
        ("NOT NOT class = a", Not(Not(Compare("class", "a")))),
        ("StudyInstanceUID = 1.2.840.10008", Compare("StudyInstanceUID", "1.2.840.10008")),
        (r'item = "C:\\scans\\1"', Compare("item", r"C:\scans\1")),
        (r"""item = 'say "\'"'""", Compare("item", """say "'\"""")),
        ('class in ("a", b,"c")', In("class", ("a", "b", "c"))),
        ("PatientID in @withdrawn-2025", InList("PatientID", "withdrawn-2025")),
        ('StudyDate range "20200101".."20211231"', Range("StudyDate", "20200101", "20211231")),
        ("StudyDate range 20200101..20211231", Range("StudyDate", "20200101", "20211231")),
        ("KVP range ..1.5", Range("KVP", None, "1.5")),
        ("KVP range -1.5.. and class = a", And((Range("KVP", "-1.5", None), Compare("class", "a")))),
        ("(KVP range 80..)", Range("KVP", "80", None)),
        ("StationName matches MR*", Matches("StationName", "MR*")),
        ("class=a or class=b and site=c", Or((Compare("class", "a"), And((Compare("class", "b"), Compare("site", "c")))))),
        ("(class=a or class=b) and site=c", And((Or((Compare("class", "a"), Compare("class", "b"))), Compare("site", "c")))),
        ("class=a\n  and site=b\tand item=c", And((Compare("class", "a"), Compare("site", "b"), Compare("item", "c")))),
        ("not class=a and site=b", And((Not(Compare("class", "a")), Compare("site", "b")))),
        ('class = "and"', Compare("class", "and")),
        ("((class=a))", Compare("class", "a")),
    ],
)
def test_grammar(text: str, expected: Predicate) -> None:
    assert parse(text) == expected


def test_canonical_text_reads_well() -> None:
    text = 'not (class = "a" or class != "b") and (StudyDate range "20200101".. or KVP range .."9") and PatientID in @l'
    assert str(parse(text)) == text
    assert str(parse("not class=a")) == 'class != "a"'


def test_fields_and_lists() -> None:
    predicate = parse("class = a and not (PatientID in @x or patient in @y) or class = b")
    assert predicate.fields() == {"class", "PatientID", "patient"}
    assert predicate.lists() == {"x", "y"}


def test_known_fields() -> None:
    assert len(set(FIELDS)) == len(FIELDS)
    for field in FIELDS:
        assert field in ("class", "site", "patient", "item") or tag_for_keyword(field) is not None, field
    dicom = [field for field in FIELDS if tag_for_keyword(field) is not None]
    assert {field for field in dicom if dictionary_VR(field) == "DA"} == set(DATE_FIELDS)


# --- meaning -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('Manufacturer = "siemens"', True),
        ("Manufacturer != siemens", False),
        ('StationName in ("MR1 ", x)', True),
        ("StationName matches MR?", True),
        ("StationName matches M", False),
        ("StationName matches m.1", False),  # a glob, not a regular expression
        ("StudyDate range 20200615..20200615", True),
        ("StudyDate range 20200616..", False),
        ("StudyDate range ..20200614", False),
        ("KVP range 20..120", True),  # as text, "120.0" would be below "20" and above "120"
        ("KVP = 120", True),  # a decimal in another spelling
        ("class range t..u", True),
        ("InstitutionName = 'H\u00f4pital'", True),  # one letter in the request, a letter and an accent in the file
        ("InstitutionName matches h?pital", True),
        ("site = a", False),
        ("site != a", True),
        ("site matches *", False),
        ("not site matches *", True),
        ("site range ..z", False),
        ("site in (a, b)", False),
    ],
)
def test_meaning(text: str, expected: bool) -> None:
    assert parse(text).matches(MR) is expected


@given(predicates, images)
def test_not_unequal_means_equal(predicate: Predicate, image: dict[str, Value]) -> None:
    assert Not(predicate).matches(image, LISTS) is not predicate.matches(image, LISTS)
    assert Not(Not(predicate)).matches(image, LISTS) is predicate.matches(image, LISTS)


@given(fields.filter(lambda field: field not in DATE_FIELDS), values, images)
def test_unequal_is_not_equal(field: str, value: str, image: dict[str, Value]) -> None:
    equal = Compare(field, value)
    unequal = parse(str(equal).replace(" = ", " != ", 1))
    assert unequal == Not(equal)
    assert unequal.matches(image) is not equal.matches(image)


@given(predicates, predicates, images)
def test_de_morgan(a: Predicate, b: Predicate, image: dict[str, Value]) -> None:
    assert Not(And((a, b))).matches(image, LISTS) is Or((Not(a), Not(b))).matches(image, LISTS)
    assert Not(Or((a, b))).matches(image, LISTS) is And((Not(a), Not(b))).matches(image, LISTS)


@given(predicates, images)
def test_every_image_is_on_one_side(predicate: Predicate, image: dict[str, Value]) -> None:
    assert Or((predicate, Not(predicate))).matches(image, LISTS)
    assert not And((predicate, Not(predicate))).matches(image, LISTS)


@given(fields.filter(lambda field: field not in DATE_FIELDS), values)
def test_a_value_equals_itself_however_padded(field: str, value: str) -> None:
    for spelling in (value, f"  {value}\0", value.upper() if fold(value.upper()) == fold(value) else value):
        assert Compare(field, value).matches({field: spelling})
        assert In(field, ("other", value)).matches({field: spelling})
        assert InList(field, "x").matches({field: spelling}, {"x": frozenset({value})})
        assert Range(field, value, value).matches({field: spelling})


def test_long_numbers_are_not_rounded() -> None:
    assert not parse("AccessionNumber range 10000000000000001..").matches({"AccessionNumber": "10000000000000000"})


def test_an_unknown_list_is_named_and_nothing_else() -> None:
    predicate = parse('class = "nowhere" and PatientID in @withdrawn')
    with pytest.raises(RequestError, match=r"@withdrawn.*lists/withdrawn\.txt") as caught:
        predicate.matches({"class": "other", "PatientID": "SECRET-1"}, {"other": frozenset({"SECRET-2"})})
    assert "SECRET" not in str(caught.value)
    assert not isinstance(caught.value, PredicateError)


# --- mistakes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        # each text carries a ^ in front of the character that the error must point at
        ("^", "the predicate is empty"),
        ("^  \n", "the predicate is empty"),
        ("^StationNam = a", "did you mean 'StationName'"),
        ("class = a or ^PATIENTID = b", "did you mean 'PatientID'"),
        ("^PatientName = b", "unknown field 'PatientName'"),
        ("Modality ^== MR", "expected =, !=, in, range or matches after Modality, got '=='"),
        ("Modality ^< MR", "got '<'"),
        ("Modality ^MR", "got 'MR'"),
        ("Modality^", "got the end"),
        ("Modality =^", "expected a value, got the end"),
        ("Modality = ^and class = a", 'write "and"'),
        ("Modality ^not in (MR)", "write: not Modality"),
        ("Modality in ^MR", "expected values in parentheses, or @"),
        ("Modality in (^)", "expected a value, got ')'"),
        ("Modality in (MR ^CT)", "expected ',' or ')'"),
        ("Modality in (MR, CT^", "got the end"),
        ("PatientID in ^@", "got '@'"),
        ("PatientID in ^@../secrets", "got '@'"),
        ("PatientID in @a^/b", "got '/b'"),
        ("PatientID = ^@withdrawn", "expected a value, got '@withdrawn'"),
        ("class = a ^&& site = b", "expected 'and', 'or' or the end, got '&&'"),
        ("class = a ^site = b", "expected 'and', 'or' or the end, got 'site'"),
        ("class = a and^", "expected a field, 'not' or '(', got the end"),
        ("^and class = a", "expected a field, 'not' or '(', got 'and'"),
        ('^"class" = a', "expected a field"),
        ("class = a^)", "got ')'"),
        ("(class = a^", "closes character 1"),
        ("class = ^“a”", "quote special values"),
        ("class = a ^# comment", "got '#'"),
        ('class = ^"a', "never closed"),
        (r'item = "C:^\scans"', r"written \\"),
        ('class = ^" "', "not F matches"),
        ("class in (a, ^'')", "not F matches"),
        ("StudyDate range ..^", "expected a value, got the end"),
        ("KVP range 1 ^2", "expected '..'"),
        ("KVP range 1 ^- 2", "expected '..'"),
        ("KVP range ^100..20", "ends before it starts"),
        ("StudyDate range ^2020..2021", "YYYYMMDD"),
        ('StudyDate = ^"2020-01-01"', "YYYYMMDD"),
        ("StudyDate in (20200101, ^1.1.2020)", "YYYYMMDD"),
        ("(" * MAX_DEPTH + "^(class = a" + ")" * (MAX_DEPTH + 1), "50 deep"),
        ("not " * MAX_DEPTH + "^not class = a", "50 deep"),
        ("not " * MAX_DEPTH + "^not " * 100_000, "50 deep"),
    ],
)
def test_mistakes_point_at_the_character(text: str, says: str) -> None:
    position = text.index("^")
    with pytest.raises(PredicateError) as caught:
        parse(text.replace("^", ""))
    assert caught.value.position == position
    assert says in str(caught.value)
    assert f"(at character {position + 1})" in str(caught.value)


def test_as_deep_as_allowed() -> None:
    assert parse("(" * MAX_DEPTH + "class = a" + ")" * MAX_DEPTH) == Compare("class", "a")
    deep = parse("not (class = x and " * (MAX_DEPTH // 2) + "class = a or site = b and item = c" + ")" * (MAX_DEPTH // 2))
    assert parse(str(deep)) == deep
    assert len(parse(" or ".join(["(class = a)"] * (MAX_DEPTH + 1))).fields()) == 1  # side by side is not deep
    wide = parse(" or ".join(["class = a"] * 20_000))
    assert wide.matches({"class": "a"})
    assert parse(str(wide)) == wide


_words = st.sampled_from(
    [
        "class",
        "KVP",
        "StudyDate",
        "=",
        "!=",
        "in",
        "range",
        "..",
        "matches",
        "and",
        "or",
        "not",
        "(",
        ")",
        ",",
        "@a",
        "1",
        '"',
        "'",
        "\\",
    ]
)
_hostile = (
    st.text(max_size=40) | st.lists(_words | st.text(max_size=3), max_size=12).map(" ".join) | st.lists(_words).map("".join)
)


@given(_hostile)
@example("class = \ud800")
@example("\0")
@example("\u017fite = a")  # a long s, which folds to an s
@example("class = a " + chr(0x130) + "N")
def test_hostile_text_raises_nothing_else(text: str) -> None:
    position, predicate = 0, None
    try:
        predicate = parse(text)
    except PredicateError as error:
        position = error.position
    assert 0 <= position <= len(text)
    if predicate is not None:
        assert parse(str(predicate)) == predicate
        predicate.matches({"class": text, "KVP": text}, {name: frozenset({text}) for name in predicate.lists()})


@pytest.mark.parametrize("wanted", ["1.5", "1.500000", "1.50", "15e-1", "+1.5"])
@pytest.mark.parametrize("found", ["1.5", "1.500000", " 1.5 "])
def test_a_decimal_matches_in_every_spelling(wanted: str, found: str) -> None:
    fields = {"MagneticFieldStrength": found, "StationName": found}
    for text in (f'= "{wanted}"', f'in ("{wanted}", 3)'):
        assert parse(f"MagneticFieldStrength {text}").matches(fields)
    assert not parse(f'MagneticFieldStrength != "{wanted}"').matches(fields)
    assert parse("MagneticFieldStrength in @strengths").matches(fields, {"strengths": frozenset({wanted})})
    assert parse(f'StationName = "{wanted}"').matches(fields) == (wanted == found.strip())  # a name is a name


def test_fields_with_decimals_are_those_of_the_standard() -> None:
    assert {name for name in FIELDS if name[0].isupper() and dictionary_VR(name) == "DS"} == DECIMALS
