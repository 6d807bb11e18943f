"""A PACS as a place, by DICOMweb (PS3.18): QIDO-RS finds, WADO-RS fetches headers and images. Nothing is ever written to it.

The pixels of a SOP Instance never change under its UID; who it is of may be corrected. A header is therefore read again when
what a search tells of its study or series has changed. What the PACS does not give today is asked for again by the next scan.
"""

from __future__ import annotations

import hashlib
import json
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
from retrying import RetryError

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
PATIENCE = 3
"""Studies in a row that the PACS may refuse before the scan is given up."""
_PASSING = {"00080056", "00081190", "00201206", "00201208", "00201209"}
"""Of what a search tells availability, addresses and numbers of instances: they change without the header."""
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
        """Every instance of every series of the studies that match; a study that cannot be looked into is a problem.

        Raises
        ------
        DataError : the PACS does not answer as it should, or to `PATIENCE` studies in a row
        """
        client, failed = client_of(self.settings), 0
        for study, of_study in _all(client.search_for_studies, STUDY, search_filters=dict(self.settings.search)):
            try:
                files = list(_files(client, study, of_study))
            except DataError as error:
                failed += 1
                if failed == PATIENCE:
                    raise
                yield Problem(study, str(error))
            else:
                failed = 0
                yield from files

    def reader(self) -> Callable[[list[File]], list[Values | str]]:
        """Reads headers, a series at once."""
        return self._read

    def decode(self, path: bytes, rules: pixels.Rules) -> Decoded:
        """Fetch and decode the image of this path."""
        return pixels.decode(self._fetched(path), rules)

    def identify(self, path: bytes) -> str:
        """Fetch it and tell its fingerprint."""
        return pixels.fingerprint_of(self._fetched(path))

    def _fetched(self, path: bytes) -> Dataset:
        with _answers():
            return client_of(self.settings).retrieve_instance(*names_of(path))  # in the transfer syntax it is stored in

    def _read(self, files: list[File]) -> list[Values | str]:
        found: dict[Names, Values | str] = {}
        names = [names_of(file.path) for file in files]
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
    session.trust_env = False  # a proxy that is meant for the coordinator is none for images, nor is a .netrc for the PACS
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


def names_of(path: bytes) -> Names:
    """The UIDs that make up a path."""
    study, series, instance = path.decode().split("/")
    return study, series, instance


def _files(client: DICOMwebClient, study: str, of_study: dict[str, Any]) -> Iterator[File]:
    for series, of_series in _all(client.search_for_series, SERIES, study_instance_uid=study):
        about = {"study_instance_uid": study, "series_instance_uid": series}
        told = {tag: value for tag, value in (of_study | of_series).items() if tag not in _PASSING}
        stamp = int.from_bytes(hashlib.sha256(json.dumps(told, sort_keys=True).encode()).digest()[:7])
        for instance, _ in _all(client.search_for_instances, INSTANCE, **about):
            yield File(f"{study}/{series}/{instance}".encode(), time=stamp)


def _all(search: Callable[..., list[dict[str, Any]]], tag: str, **about: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """The UIDs of all that a search finds, and what it tells of each, page by page; ends when a page brings nothing new."""
    seen: set[str] = set()
    while True:
        with _answers():
            page = search(limit=PAGE, offset=len(seen), **about)
            new = {uid: found for found in page if (uid := str(found[tag]["Value"][0])) not in seen}
        if not new:
            return
        yield from sorted(new.items())
        seen |= new.keys()


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
    except (requests.RequestException, RetryError) as error:
        raise DataError(f"{UNREADABLE}: the PACS does not answer ({type(error).__name__}); look at data.pacs.url") from error
    except (ValueError, KeyError, IndexError, TypeError, EOFError, InvalidDicomError) as error:
        raise DataError(f"{UNREADABLE}: the PACS answers with no DICOMweb ({type(error).__name__})") from error
