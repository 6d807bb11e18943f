"""Which images a request means at a site: every row in exactly one set, and lists that never leave it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from excise.client.config import SiteConfig
from excise.client.images import Images
from excise.client.selection import select
from excise.client.site import Site, open_site
from excise.client.table import Row, Scan, Split
from excise.common.errors import DataError, RequestError
from excise.common.predicate import Predicate
from excise.common.request import ForgetRequest, RequestKind
from tests.dicoms import write_hospital
from tests.strategies import LISTS, images, predicates

_rows = st.lists(
    st.builds(
        Row, item=st.just("i"), patient=st.just("p"), label=st.integers(0, 1), split=st.sampled_from(Split), fields=images
    ),
    max_size=12,
)


def _request(where: str) -> ForgetRequest:
    return ForgetRequest(id="r", kind=RequestKind.SAMPLES, where=where, reason="test")


@given(_rows, predicates)
def test_every_row_falls_into_one_set(rows: list[Row], predicate: Predicate) -> None:
    sets = select(rows, _request(str(predicate)), LISTS)
    parts = [sets.forget, sets.retain, sets.reference, sets.held_out, sets.excluded]
    assert sorted(torch.cat(parts).tolist()) == list(range(len(rows)))
    for part in parts:
        assert part.dtype == torch.int64
        assert part.tolist() == sorted(part.tolist())
    for i, row in enumerate(rows):
        matched = predicate.matches(row.fields, LISTS)
        assert (i in sets.forget.tolist()) == (matched and row.split is Split.TRAIN)
        assert (i in sets.excluded.tolist()) == (matched and row.split is not Split.TRAIN)
        assert (i in sets.reference.tolist()) == (not matched and row.split is Split.REFERENCE)


@given(_rows)
def test_without_a_request_nothing_is_forgotten(rows: list[Row]) -> None:
    sets = select(rows, None, {})
    assert len(sets.forget) == len(sets.excluded) == 0
    assert len(sets.retain) + len(sets.reference) + len(sets.held_out) == len(rows)


def test_an_unknown_list_is_a_request_error() -> None:
    row = Row("i", "p", 0, Split.TRAIN, {"PatientID": "P1"})
    with pytest.raises(RequestError, match="no list @withdrawn"):
        select([row], _request("PatientID in @withdrawn"), {"other": frozenset({"P1"})})


def test_a_site_knows_its_own_requests_only(tmp_path: Path) -> None:
    rows = [Row(str(i), str(i), 0, Split.TRAIN, {"site": "site-1"}) for i in range(3)]
    config = SiteConfig.model_validate({"name": "site-1", "data": {"path": "x", "classes": ["a", "b"]}})
    x = Images(np.zeros((3, 1, 16, 16), np.float32), np.arange(3), ["a", "b", "c"])
    site = Site(tmp_path, config, Scan(rows), x, torch.zeros(3).long(), {})
    assert len(site.select(_request("site = site-1")).forget) == 3
    assert len(site.select(_request("site = site-2")).forget) == 0


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_lists_stand_beside_the_configuration(tmp_path: Path, mark: bytes) -> None:
    path = write_hospital(tmp_path, patients=8)
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "withdrawn.txt").write_bytes(mark + b"CANARY-PATIENT-0\r\n\r\n  canary-patient-3 \nnobody\n")
    (tmp_path / "lists" / "notes.md").write_text("no list")
    site = open_site(path)
    assert site.lists == {"withdrawn": frozenset({"CANARY-PATIENT-0", "canary-patient-3", "nobody"})}
    sets = site.select(_request("PatientID in @withdrawn"))
    meant = [site.scan.rows[i].fields["PatientID"] for i in [*sets.forget.tolist(), *sets.excluded.tolist()]]
    assert sorted(map(str, meant)) == ["CANARY-PATIENT-0", "CANARY-PATIENT-3"]
    with pytest.raises(RequestError, match=r"lists/gone\.txt"):
        site.select(_request("PatientID in @gone"))


def test_a_list_that_is_not_text_is_a_data_error(tmp_path: Path) -> None:
    path = write_hospital(tmp_path, patients=4)
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "withdrawn.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"a list in .* cannot be read"):
        open_site(path)
