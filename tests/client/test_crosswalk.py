"""The crosswalk: a list of the hospital's own patient numbers finds de-identified images, and the file names nobody."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from excise.client.crosswalk import Crosswalk, read_pairs
from excise.client.site import open_site
from excise.common.errors import DataError
from excise.common.request import ForgetRequest, RequestKind
from tests.dicoms import SECRET_SPLIT_KEY, write_hospital

WITHDRAWN = ForgetRequest(id="w", kind=RequestKind.PATIENTS, where="PatientID in @withdrawn", reason="consent withdrawn")


def test_numbers_are_resolved_whatever_their_padding_and_case(tmp_path: Path) -> None:
    walk = Crosswalk(tmp_path, "secret")
    assert walk.add([("CANARY-17", "R1"), ("CANARY-18", "R2"), ("CANARY-17", "R3")]) == 3
    assert walk.add([("CANARY-18", "R2")]) == 0
    again = Crosswalk(tmp_path, "secret")
    assert len(again) == 3
    assert again.resolve(frozenset({" canary-17 ", "other"})) == {" canary-17 ", "other", "R1", "R3"}
    with pytest.raises(DataError, match="put the former key back"):
        Crosswalk(tmp_path, "another")
    assert "CANARY" not in again.path.read_text()
    assert again.path.stat().st_mode & 0o777 == 0o600


def test_a_list_of_original_numbers_finds_the_images(tmp_path: Path, excise: Callable[..., Any]) -> None:
    site = write_hospital(tmp_path, prefix="RESEARCH-")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "withdrawn.txt").write_text("0017\n0018\nRESEARCH-3\n")
    mapping = tmp_path / "mapping.csv"
    mapping.write_text("original,patient\n" + "".join(f"{n:04d},RESEARCH-{n}\n" for n in range(40)))
    code, _, err = excise("site", "crosswalk", mapping, "--site", site)
    assert code == 0, err
    assert "40 new pairs" in err
    assert len(Crosswalk(tmp_path, SECRET_SPLIT_KEY)) == 40
    opened = open_site(site)
    sets = opened.select(WITHDRAWN)
    found = {opened.scan.rows[i].fields["PatientID"] for i in [*sets.forget.tolist(), *sets.excluded.tolist()]}
    assert found == {"RESEARCH-17", "RESEARCH-18", "RESEARCH-3"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a,patient\n1,2\n", "lacks the column original"),
        ("original,patient\n1,2\n,3\n", "an empty number in line 3"),
        ("original,patient\n1\n", "an empty number in line 2"),
        ("", "lacks the column original, patient"),
        (b"original,patient\n\xff\xfe,1\n", "no readable crosswalk"),
    ],
)
def test_a_mapping_that_cannot_be_used_says_why(tmp_path: Path, text: str | bytes, reason: str) -> None:
    path = tmp_path / "mapping.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(DataError, match=reason):
        read_pairs(path)
    with pytest.raises(DataError, match="no readable crosswalk"):
        read_pairs(tmp_path / "none.csv")


def test_a_damaged_crosswalk_says_so(tmp_path: Path) -> None:
    (tmp_path / "crosswalk.csv").write_text("one,two,three\n")
    with pytest.raises(DataError, match="put it back from your backup"):
        Crosswalk(tmp_path, "secret")
