"""Fingerprints of images that a site does not use, such as those without a label, kept so that each is decoded once.

The same image may be in use under another name: what a request says of the one, it says of the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from excise.client.database import exclusively, reading, writing
from excise.client.dicom.headers import UNREADABLE
from excise.client.parallel import in_parallel
from excise.client.table import Problem
from excise.common.errors import DataError

BATCH = 32
UNKNOWN = ""
"""Fingerprint of an image that cannot be decoded."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS identity (item TEXT PRIMARY KEY, stamp TEXT NOT NULL, pixels TEXT NOT NULL) WITHOUT ROWID;
"""


class Identities:
    """What was found so far, in ``identities.sqlite`` of the site's state."""

    def __init__(self, state: Path) -> None:
        self.database = state / "identities.sqlite"
        with exclusively(self.database), writing(self.database) as db:
            db.executescript(_SCHEMA)

    def of(
        self, images: Sequence[Problem], identify: Callable[[Any], str], apart: bool = True, retry: bool = False
    ) -> dict[str, str]:
        """Fingerprints by item; those that are not known yet are found out, each batch kept when it is done.

        Parameters
        ----------
        identify : the fingerprint of the image at a place; raises `DataError` when there is none
        apart : in other processes, which a damaged file may end
        retry : try those again that could not be decoded before

        Raises
        ------
        StorageError : it cannot be kept
        """
        with reading(self.database) as db:
            known = {item: (stamp, pixels) for item, stamp, pixels in db.execute("SELECT * FROM identity")}
        found = {one.item: known[one.item][1] for one in images if known.get(one.item, ("",))[0] == one.stamp}
        wanted = iter([one for one in images if one.item not in found or (retry and found[one.item] == UNKNOWN)])
        batches = iter(lambda: list(islice(wanted, BATCH)), [])
        places = ([(one.item, one.stamp, one.place) for one in batch] for batch in batches)
        work = partial(_identified, identify)
        with exclusively(self.database), writing(self.database) as db:
            for batch, answers in in_parallel(work, places, (UNKNOWN, True), None if apart else 0, apart):
                for (item, stamp, _), (pixels, lasts) in zip(batch, answers, strict=True):
                    found[item] = pixels
                    if lasts:
                        db.execute("INSERT OR REPLACE INTO identity VALUES (?, ?, ?)", (item, stamp, pixels))
                db.commit()
        return found


def _identified(identify: Callable[[Any], str], batch: Sequence[tuple[str, str, Any]]) -> list[tuple[str, bool]]:
    return list(_answers(identify, batch))


def _answers(identify: Callable[[Any], str], batch: Sequence[tuple[str, str, Any]]) -> Iterator[tuple[str, bool]]:
    """Each fingerprint, and whether it stays what it is."""
    for _, _, place in batch:
        try:
            yield identify(place), True
        except DataError as error:
            yield UNKNOWN, not str(error).startswith(UNREADABLE)
