"""A PACS as a place, by DICOMweb (PS3.18): QIDO-RS finds, WADO-RS fetches headers and images. Nothing is ever written to it.

A SOP Instance never changes under its UID (PS3.3 C.12.1), so its header is read once. What the PACS does not give today is
asked for again by the next scan.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Any

import requests
from dicomweb_client.session_utils import create_session
from dicomweb_client.web import DICOMwebClient
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from excise.client.config import PacsSettings
from excise.client.decoded import Decoded
from excise.client.dicom import pixels
from excise.client.dicom.headers import KEYWORDS, UNREADABLE, Values, values_of
from excise.client.dicom.place import File
from excise.client.table import Problem
from excise.common.errors import ConfigError, DataError

PAGE = 500
"""Answers asked for at once; a PACS may give fewer."""
FEW = 4
"""Instances up to which each header is asked for alone: of a long series one may be new."""
SECONDS = 60
"""How long an answer may take."""
ATTEMPTS = 3
STUDY, SERIES, INSTANCE = "0020000D", "0020000E", "00080018"
_TAGS = {f"{tag:08X}" for keyword in KEYWORDS if (tag := tag_for_keyword(keyword)) is not None}
Names = tuple[str, str, str]
"""UIDs of study, series and instance."""

logging.getLogger("dicomweb_client").setLevel(logging.WARNING)  # it names every instance


@dataclass(frozen=True)
class Pacs:
    """What `settings.search` finds in a PACS; `Place` says what each part means."""

    settings: PacsSettings
    workers: int | None = 0

    @property
    def name(self) -> str:
        """Its address, and what is looked for there."""
        return f"{self.settings.url} {sorted(self.settings.search.items())}"

    def walk(self) -> Iterator[File | Problem]:
        """Every instance of every series of the studies that match.

        Raises
        ------
        DataError : the PACS does not answer as it should
        """
        client = client_of(self.settings)
        for study in _all(client.search_for_studies, STUDY, search_filters=dict(self.settings.search)):
            for series in _all(client.search_for_series, SERIES, study_instance_uid=study):
                about = {"study_instance_uid": study, "series_instance_uid": series}
                for instance in _all(client.search_for_instances, INSTANCE, **about):
                    yield File(f"{study}/{series}/{instance}".encode())

    def reader(self) -> Callable[[list[File]], list[Values | str]]:
        """Reads headers, a series at once."""
        return self._read

    def at(self, path: bytes) -> Names:
        """The UIDs of this path."""
        study, series, instance = path.decode().split("/")
        return study, series, instance

    def _read(self, files: list[File]) -> list[Values | str]:
        found: dict[Names, Values | str] = {}
        names = [self.at(file.path) for file in files]
        for series, group in groupby(names, key=lambda name: name[:2]):
            found |= _headers(client_of(self.settings), series, list(group))
        return [found[name] for name in names]


@lru_cache(maxsize=8)
def client_of(settings: PacsSettings) -> DICOMwebClient:
    """The client of a PACS; each process makes its own.

    Raises
    ------
    ConfigError : the file of its secret cannot be read
    """
    session = create_session()
    if settings.ca:
        session.verify = str(settings.ca)
    if settings.secret:
        try:
            secret = settings.secret.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"data.pacs.secret, {settings.secret}, cannot be read: {error}") from error
        if settings.user:
            session.auth = (settings.user, secret)
        else:
            session.headers["Authorization"] = f"Bearer {secret}"
    client = DICOMwebClient(settings.url, session, permissive_uid=True, timeout=SECONDS)
    client.set_http_retry_params(max_attempts=ATTEMPTS, wait_exponential_multiplier=500)  # waits of 1, 2, … seconds
    return client


def decode(names: Names, settings: PacsSettings, rules: pixels.Rules) -> Decoded:
    """Fetch and decode an image as `excise.client.dicom.pixels.decode` does.

    Raises
    ------
    DataError : the PACS does not give it, or it cannot be decoded
    """
    return pixels.decode(_fetched(names, settings), rules)


def fingerprint_of(names: Names, settings: PacsSettings) -> str:
    """Fetch an image and tell its fingerprint. Raises as `decode` does."""
    return pixels.fingerprint_of(_fetched(names, settings))


def _fetched(names: Names, settings: PacsSettings) -> Dataset:
    with _answers():
        return client_of(settings).retrieve_instance(*names)  # in the transfer syntax that it is stored in


def _all(search: Callable[..., list[dict[str, Any]]], tag: str, **about: Any) -> Iterator[str]:
    """The UIDs of all that a search finds, page by page, sorted within each; ends when a page brings nothing new."""
    seen: set[str] = set()
    while True:
        with _answers():
            page = search(limit=PAGE, offset=len(seen), **about)
            new = {str(found[tag]["Value"][0]) for found in page} - seen
        if not new:
            return
        yield from sorted(new)
        seen |= new


def _headers(client: DICOMwebClient, series: tuple[str, str], names: list[Names]) -> dict[Names, Values | str]:
    """Headers of instances of one series, or why there are none."""
    try:
        with _answers():
            if len(names) <= FEW:
                told = [client.retrieve_instance_metadata(*name) for name in names]
            else:
                told = client.retrieve_series_metadata(*series)
    except DataError as error:
        return dict.fromkeys(names, str(error))
    answers: dict[Names, Values | str] = dict.fromkeys(names, f"{UNREADABLE}: the PACS names it, but gives no header")
    for header in told:
        try:
            dataset = Dataset.from_json({tag: header[tag] for tag in _TAGS & header.keys()})
            name = (*series, str(dataset.SOPInstanceUID))
            if name in answers:
                answers[name] = values_of(dataset)
        except Exception:  # noqa: BLE001, S112 - whatever a PACS may write; it stays without a header
            continue
    return answers


@contextmanager
def _answers() -> Iterator[None]:
    """Turn whatever goes wrong with a PACS into a `DataError` that tells what, without what was asked."""
    try:
        with warnings.catch_warnings():  # of answers that are not quite the standard's; what cannot be used raises
            warnings.simplefilter("ignore")
            yield
    except requests.HTTPError as error:
        code = error.response.status_code if error.response is not None else 0
        hint = {401: ": look at data.pacs.user and secret", 403: ": look at data.pacs.user and secret"}.get(code, "")
        raise DataError(f"{UNREADABLE}: the PACS answers with {code}{hint}") from error
    except requests.JSONDecodeError as error:
        raise DataError(f"{UNREADABLE}: the PACS answers with no DICOMweb (no JSON)") from error
    except requests.RequestException as error:
        raise DataError(f"{UNREADABLE}: the PACS does not answer ({type(error).__name__}); look at data.pacs.url") from error
    except (ValueError, KeyError, IndexError, TypeError, EOFError, InvalidDicomError) as error:
        raise DataError(f"{UNREADABLE}: the PACS answers with no DICOMweb ({type(error).__name__})") from error
