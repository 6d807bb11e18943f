"""What of a request names patients, before it is sent to every site."""

from __future__ import annotations

import pytest

from excise.common.naming import names
from excise.common.predicate_parser import parse


@pytest.mark.parametrize(
    ("where", "named"),
    [
        ("PatientID = CANARY-1", ["PatientID"]),
        ("PatientID != CANARY-1", ["PatientID"]),
        ("StationName = MR7 and not (patient in (a, b) or AccessionNumber range 1..)", ["AccessionNumber", "patient"]),
        ("AccessionNumber range ..5", ["AccessionNumber"]),
        ('PatientID matches "CANARY*"', ["PatientID"]),
        ("PatientID in @withdrawn and IssuerOfPatientID = MARY", ["IssuerOfPatientID"]),
        ("PatientID = a or PatientID = b or item = doe_1.png or StudyID = 5", ["PatientID", "StudyID", "item"]),
        ("PatientID in @withdrawn", []),
        ("not patient in @withdrawn", []),
        ('PatientID matches "*" and IssuerOfPatientID matches "?*"', []),
        ("StationName = MR7 and StudyDate range 20190101.. and PatientSex = F", []),
        ("SOPInstanceUID = 1.2.3", []),
    ],
)
def test_values_of_identifiers_are_found_and_lists_of_the_site_are_not(where: str, named: list[str]) -> None:
    assert names(parse(where)) == named
