"""Headers: the fast way reads what the plain way reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom.data
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.datadict import dictionary_VM, dictionary_VR, tag_for_keyword
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from excise.client.dicom.headers import KEYWORDS, Header, read_header, read_headers
from tests.dicoms import dataset

PIXELS = np.zeros((4, 4), np.uint16)

_TEXT = st.text(st.characters(codec="latin-1", exclude_categories=("Cc",), exclude_characters="\\"), max_size=12)
_BY_VR = {
    "UI": st.from_regex(r"[0-2]\.[1-9][0-9]{0,4}", fullmatch=True),
    "DA": st.dates().map("{:%Y%m%d}".format) | st.just(""),
    "DS": st.floats(-1e6, 1e6).map("{:.6g}".format) | st.just(""),
    "CS": st.from_regex(r"[A-Z0-9_ ]{0,16}", fullmatch=True),
}


def _value(keyword: str) -> st.SearchStrategy[Any]:
    tag = tag_for_keyword(keyword)
    assert tag is not None
    one = _BY_VR.get(dictionary_VR(tag), _TEXT)
    return one if dictionary_VM(tag) == "1" else st.lists(one, min_size=1, max_size=3)


_headers = st.fixed_dictionaries({}, optional={keyword: _value(keyword) for keyword in KEYWORDS[:-1]})


@given(
    _headers,
    st.sampled_from([ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian]),
    st.sampled_from([None, "ISO_IR 100", "ISO_IR 192"]),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@pytest.mark.filterwarnings("ignore")  # odd values are written on purpose
def test_both_ways_read_the_same(tmp_path: Path, fields: dict[str, Any], syntax: str, charset: str | None) -> None:
    path = tmp_path / "a.dcm"
    made = dataset(PIXELS)
    made.file_meta.TransferSyntaxUID = syntax
    for keyword, value in fields.items():
        setattr(made, keyword, value)
    if charset:
        made.SpecificCharacterSet = charset
    if syntax == ExplicitVRBigEndian:
        made.PixelData = PIXELS.astype(">u2").tobytes()
    try:
        made.save_as(path, enforce_file_format=True)
    except (UnicodeEncodeError, ValueError):
        return  # cannot be written so
    assert read_headers([path]) == [read_header(path)]


@pytest.mark.filterwarnings("ignore")  # of files that are odd on purpose
def test_both_ways_read_pydicoms_own_files_the_same() -> None:
    folder = Path(pydicom.data.__file__).parent
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    assert len(paths) > 100
    assert read_headers(paths) == [read_header(path) for path in paths]


def test_a_header_is_a_mapping_of_all_keywords() -> None:
    header = Header(("P1",) + (None,) * (len(KEYWORDS) - 1))
    assert dict(header) == {"PatientID": "P1"} | dict.fromkeys(KEYWORDS[1:])
    with pytest.raises(KeyError):
        header["PatientName"]
