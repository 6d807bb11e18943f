"""The register of what a site has forgotten: never again in training, in held-out sets or in a cache, under whatever name.

    forgotten.jsonl   first a check of the site's secret, then one line an image: the request, and keyed hashes of its
                      identifier and of its fingerprint (null where it could not be decoded)

It names nobody: without the site's secret (`split.key` in site.toml) a line says nothing of an image. An image that comes back
in a later scan, with another UID or in another file, has the same fingerprint and is left out again.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from excise.client.database import exclusively
from excise.client.keyed import check, check_of, keyed
from excise.common.errors import DataError
from excise.common.files import storage_errors, write_atomically

EVENT = "images forgotten"
"""The event of the site's log that tells, as ``registered``, how many images the register held then."""


class Register:
    """The register of one site.

    Parameters
    ----------
    folder : of the site, where site.toml is
    secret : of the site, `split.key`

    Raises
    ------
    DataError : the register is damaged, incomplete or of another secret; nothing may be used until it is back
    """

    def __init__(self, folder: Path, secret: str) -> None:
        self.path, self._secret = folder / "forgotten.jsonl", secret
        told = _registered(folder / "audit.jsonl")  # before the register: another process may write both meanwhile
        self._read()
        if len(self) < told:
            raise DataError(
                f"{self.path} holds {len(self)} images, and audit.jsonl tells of {told}: put it back from your backup, or "
                "what was forgotten would come back"
            )

    def _read(self) -> None:
        try:
            first, *lines = self.path.read_text().splitlines() if self.path.exists() else [json.dumps(self._head)]
            told = str(json.loads(first)["check"])
            entries = list(map(json.loads, lines))
            self._items = {str(entry["item"]) for entry in entries}
            self._pixels = {str(entry["pixels"]) for entry in entries if entry["pixels"] is not None}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{self.path} is damaged: put it back from your backup, or what was forgotten would come back"
            ) from error
        check(told, self._secret, self.path)
        self._lines = lines

    def __len__(self) -> int:
        return len(self._items)

    def holds(self, item: str, pixels: str | None = None) -> bool:
        """Whether an image of this identifier, or of this fingerprint, was forgotten."""
        if not self._items:
            return False
        return self._keyed(item) in self._items or (bool(pixels) and self._keyed(str(pixels)) in self._pixels)

    def add(self, request_id: str, images: Iterable[tuple[str, str | None]]) -> int:
        """Enter images, each by its identifier and its fingerprint; returns how many are new.

        Raises
        ------
        StorageError : it cannot be written; what it held stays
        """
        with exclusively(self.path):
            self._read()  # somebody else may have entered some
            new = {
                self._keyed(item): {
                    "request": request_id,
                    "item": self._keyed(item),
                    "pixels": None if pixels is None else self._keyed(pixels),
                }
                for item, pixels in images
                if not self.holds(item) or (pixels is not None and self._keyed(pixels) not in self._pixels)
            }
            lines = [json.dumps(self._head), *self._lines, *map(json.dumps, new.values())]
            write_atomically(self.path, "".join(f"{line}\n" for line in lines))
            self._read()
        return len(new)

    @property
    def _head(self) -> dict[str, str]:
        return {"check": check_of(self._secret)}

    def _keyed(self, value: str) -> str:
        return keyed(self._secret, value)


def _registered(log: Path) -> int:
    """How many images the register held when the log last told of it."""
    told = 0
    if log.exists():
        with storage_errors(log):
            lines = log.read_text().splitlines()
        for line in (line for line in lines if EVENT in line):
            with suppress(ValueError, KeyError, TypeError):  # lines that were altered are for excise site audit verify
                told = max(told, int(json.loads(line)["registered"]))
    return told


def commitment(secret: str, request_digest: str, items: Iterable[str]) -> str:
    """HMAC-SHA256 over a request and the images that it means here, 64 hexadecimal digits.

    It may leave: it tells nothing of them, and the site can show later, with its secret, which they were.
    """
    mac = hmac.new(secret.encode(), request_digest.encode(), hashlib.sha256)
    for item in sorted(items):
        mac.update(b"\0" + item.encode("utf-8", "surrogateescape"))
    return mac.hexdigest()
