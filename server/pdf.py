"""Our own pages as PDF, for those who file paper: reports and evidence. The same page gives the same bytes.

WeasyPrint, the extra ``excise[pdf]``, is imported where a PDF is made.
"""

from __future__ import annotations

from pathlib import Path

from excise.common.errors import ConfigError, DataError
from excise.common.files import write_atomically

PAGE = 32 << 20
"""Most bytes of a page: our reports have a few hundred thousand, and laying a page out takes seconds for each of those."""

INSIDE = ("data",)
"""The only kind of address that is followed: what it names is in the page."""


def write_pdf(page: Path, out: Path) -> None:
    """Write the HTML page in the file `page` as PDF into the file `out`. Takes some ten seconds.

    What a page names beside itself is not fetched: ours hold everything.

    Raises
    ------
    ConfigError : WeasyPrint or the libraries that it needs are missing; says how to get them
    DataError : the page cannot be read, or is none
    StorageError : the PDF cannot be written; what was there is untouched
    """
    write_atomically(out, pdf_of(_read(page)))


def pdf_of(html: str) -> bytes:
    """A page, HTML, as PDF.

    Raises
    ------
    ConfigError : as `write_pdf`
    """
    try:
        from weasyprint import HTML
        from weasyprint.urls import URLFetcher
    except ImportError:
        raise ConfigError("PDF is made by WeasyPrint: pip install 'excise[pdf]'") from None
    except OSError:
        raise ConfigError(
            "WeasyPrint needs Pango, which lacks here; on Debian: apt-get install libpango-1.0-0 libpangoft2-1.0-0 "
            "libharfbuzz-subset0"
        ) from None
    made: bytes = HTML(string=html, url_fetcher=URLFetcher(allowed_protocols=INSIDE)).write_pdf()
    return made


def _read(page: Path) -> str:
    try:
        if page.stat().st_size > PAGE:
            raise DataError(f"{page} has more than {PAGE >> 20} MiB: no page of ours has")
        text = page.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{page} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise DataError(f"{page} is no HTML page") from None
    if not text.lstrip()[:15].lower().startswith("<!doctype html"):
        raise DataError(f"{page} is no HTML page: give the report.html or evidence.html of a run")
    return text
