"""Pages as PDF: the same bytes each time, nothing fetched, and refusals that say what to do."""

from __future__ import annotations

import builtins
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from excise.common.errors import ConfigError, DataError, StorageError
from excise.server import pdf as module
from excise.server.pdf import pdf_of, write_pdf
from tests.deployment import ROOT

PAGE = "<!DOCTYPE html><html lang=en><title>a report</title><h1>MR7</h1><p>It forgot: 0.5.</p></html>"


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "report.html"
    path.write_text(PAGE)
    return path


def test_the_same_page_gives_the_same_bytes_in_another_process(page: Path, tmp_path: Path) -> None:
    write_pdf(page, tmp_path / "one.pdf")
    other = tmp_path / "other.pdf"
    command = [sys.executable, "-m", "excise.cli", "pdf", str(page), "--out", str(other)]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT), "TZ": "Asia/Tokyo"})
    made = other.read_bytes()
    assert made.startswith(b"%PDF-")
    assert made == (tmp_path / "one.pdf").read_bytes()
    page.write_text(PAGE.replace("0.5", "0.6"))
    write_pdf(page, other)
    assert other.read_bytes() != made


def test_nothing_is_fetched(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    secret = tmp_path / "secret.svg"
    secret.write_text('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="9" height="9"/></svg>')
    link = f"<!DOCTYPE html><title>x</title><p>x<img src='{secret.as_uri()}'><link rel=stylesheet href='http://localhost:9/a.css'>"
    without = "<!DOCTYPE html><title>x</title><p>x<img src='about:nothing'>"
    assert pdf_of(link) == pdf_of(without)
    assert caplog.text.count("disallowed protocol") >= 2  # they were wanted


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b"%PDF-1.7"])
def test_what_is_no_page_is_refused_and_nothing_is_written(tmp_path: Path, content: bytes) -> None:
    page, out = tmp_path / "evidence.json", tmp_path / "evidence.pdf"
    page.write_bytes(content)
    with pytest.raises(DataError, match="is no HTML page"):
        write_pdf(page, out)
    assert not out.exists()


def test_a_page_that_is_missing_or_too_large_is_told(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file"):
        write_pdf(tmp_path / "nowhere.html", tmp_path / "out.pdf")
    monkeypatch.setattr(module, "PAGE", 8)
    with pytest.raises(DataError, match="no page of ours has"):
        write_pdf(page, tmp_path / "out.pdf")


def test_a_full_disk_leaves_what_was_there(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.pdf"
    out.write_bytes(b"before")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        write_pdf(page, out)
    assert out.read_bytes() == b"before"


@pytest.mark.parametrize(
    ("error", "remedy"), [(ImportError(), r"pip install 'excise\[pdf\]'"), (OSError(), "apt-get install")]
)
def test_what_lacks_is_told_with_how_to_get_it(monkeypatch: pytest.MonkeyPatch, error: Exception, remedy: str) -> None:
    real: Callable[..., Any] = builtins.__import__

    def lacks(name: str, *more: Any, **named: Any) -> Any:
        if name == "weasyprint":
            raise error
        return real(name, *more, **named)

    monkeypatch.setattr(builtins, "__import__", lacks)
    with pytest.raises(ConfigError, match=remedy):
        pdf_of(PAGE)
