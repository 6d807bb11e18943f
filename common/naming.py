"""Whether a request names patients: every site reads its text, and it stands in the evidence for ever.

A list of the site (`PatientID in @withdrawn`) says the same and stays. UIDs are let through: they tell nobody's name without
the hospital's archive, and single images can be asked for in no other way.
"""

from __future__ import annotations

from excise.common.errors import RequestError
from excise.common.predicate import FieldTest, InList, Matches, Predicate, field_tests

IDENTIFIERS = frozenset(
    {
        *("patient", "item"),  # ours: the patient's key, and the image's name, which file names often begin with
        *("PatientID", "IssuerOfPatientID", "OtherPatientIDs", "PatientName", "PatientBirthDate"),
        *("AccessionNumber", "StudyID"),
    }
)
"""Fields whose values tell of a person, to who has no access to the archive either; some no predicate may name today."""


def refuse_names(predicate: Predicate, consent: str) -> None:
    """Let a predicate pass that names no patient.

    Parameters
    ----------
    consent : how whoever asks says that patients may be named after all; the refusal ends with it

    Raises
    ------
    RequestError : it names patients; says by which fields, and what to write instead
    """
    if named := names(predicate):
        raise RequestError(
            f"`where` holds values of {', '.join(named)}: every site would read them, and they would stand in the evidence. "
            f"Write them into a list that stays at the site, lists/NAME.txt, and in the request {named[0]} in @NAME; other "
            f"sites keep a list of that name too. If they may be told to all sites: {consent}"
        )


def names(predicate: Predicate) -> list[str]:
    """Fields of `IDENTIFIERS` that values stand beside in a predicate, negated or not; sorted, each once."""
    return sorted({test.field for test in field_tests(predicate) if test.field in IDENTIFIERS and _has_a_value(test)})


def _has_a_value(test: FieldTest) -> bool:
    match test:
        case InList():
            return False
        case Matches(_, pattern):
            return bool(set(pattern) - {"*", "?"})  # `matches "*"` says that there is one, and not which
    return True
