"""Tables of labels: read as they are written, and refused with a reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from excise.client.labels import read_labels
from excise.common.errors import DataError


def _labels(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "labels.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_reads_labels(tmp_path: Path, mark: str, end: str) -> None:
    path = _labels(tmp_path, mark + end.join(["uid,label,note", '1.2,ill,"a, b"', "", "1.3,clear,"]))
    assert read_labels(path, "uid") == {
        "1.2": {"uid": "1.2", "label": "ill", "note": "a, b"},
        "1.3": {"uid": "1.3", "label": "clear", "note": ""},
    }


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("uid,class\n1,a\n", r"lacks the column label; it has \['uid', 'class'\]"),
        ("", "lacks the column label, uid"),
        ("uid,label\n1,a\n2,b\n1,b\n", "names one uid twice, in line 4"),
        ("uid,label\n1,a\n2\n", "too few or too many values in line 3"),
        ("uid,label\n1,a,b\n", "too few or too many values in line 2"),
        (b"uid,label\n1,\xff\xfe\n", "no readable labels"),
        ("uid,label\n1," + "x" * 200_000, "no readable labels"),
    ],
)
def test_labels_that_cannot_be_used_say_why(tmp_path: Path, text: str | bytes, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        read_labels(_labels(tmp_path, text), "uid")


def test_labels_that_are_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no readable labels at"):
        read_labels(tmp_path / "none.csv", "uid")
    with pytest.raises(DataError, match="no readable labels at"):
        read_labels(tmp_path, "uid")
