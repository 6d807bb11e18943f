"""Whether a request that is sent from here names patients: every site reads its text, and it stands in the evidence for ever.

A list of the site (`PatientID in @withdrawn`) says the same and stays. UIDs are let through: they tell nobody's name without
the hospital's archive, and single images can be asked for in no other way.
"""

from __future__ import annotations

from excise.common.predicate import FieldTest, InList, Matches, Predicate, field_tests

IDENTIFIERS = frozenset(
    {
        *("patient", "item"),  # ours: the patient's key, and the image's name, which file names often begin with
        *("PatientID", "IssuerOfPatientID", "OtherPatientIDs", "PatientName", "PatientBirthDate"),
        *("AccessionNumber", "StudyID"),
    }
)
"""Fields whose values tell of a person, to who has no access to the archive either; some no predicate may name today."""


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
