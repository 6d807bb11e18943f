"""The register of what a site has forgotten: never again in training, in held-out sets or in a cache, under whatever name.

    forgotten.jsonl   one line an image: the request, and keyed hashes (HMAC-SHA256) of its identifier and of its pixels

It names nobody: without the site's secret (`split.key` in site.toml) a line says nothing of an image. An image that comes back
in a later scan, with another UID or in another file, has the same pixels and is left out again.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterable
from pathlib import Path

from excise.common.errors import DataError
from excise.common.files import write_atomically


class Register:
    """The register of one site.

    Parameters
    ----------
    folder : of the site, where site.toml is
    secret : of the site, `split.key`

    Raises
    ------
    DataError : the register was damaged; nothing may be used until it is back
    """

    def __init__(self, folder: Path, secret: str) -> None:
        self.path, self._secret = folder / "forgotten.jsonl", secret.encode()
        try:
            self._lines = self.path.read_text().splitlines() if self.path.exists() else []
            entries = list(map(json.loads, self._lines))
            self._items = {str(entry["item"]) for entry in entries}
            self._pixels = {str(entry["pixels"]) for entry in entries}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{self.path} is damaged: put it back from your backup, or what was forgotten would come back"
            ) from error

    def __len__(self) -> int:
        return len(self._items)

    def holds(self, item: str, pixels: str | None = None) -> bool:
        """Whether an image of this identifier, or of these pixels (their SHA-256), was forgotten."""
        if not self._items:
            return False
        return self._keyed(item) in self._items or (bool(pixels) and self._keyed(str(pixels)) in self._pixels)

    def add(self, request_id: str, images: Iterable[tuple[str, str]]) -> int:
        """Enter images, each by its identifier and the SHA-256 of its pixels; returns how many are new.

        Raises
        ------
        StorageError : it cannot be written; what it held stays
        """
        new = [
            {"request": request_id, "item": self._keyed(item), "pixels": self._keyed(pixels)}
            for item, pixels in images
            if not self.holds(item)
        ]
        self._lines += map(json.dumps, new)
        write_atomically(self.path, "".join(f"{line}\n" for line in self._lines))
        self._items |= {entry["item"] for entry in new}
        self._pixels |= {entry["pixels"] for entry in new}
        return len(new)

    def _keyed(self, value: str) -> str:
        return hmac.new(self._secret, value.encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()


def commitment(secret: str, request_digest: str, items: Iterable[str]) -> str:
    """HMAC-SHA256 over a request and the images that it means here, 64 hexadecimal digits.

    It may leave: it tells nothing of them, and the site can show later, with its secret, which they were.
    """
    mac = hmac.new(secret.encode(), request_digest.encode(), hashlib.sha256)
    for item in sorted(items):
        mac.update(b"\0" + item.encode("utf-8", "surrogateescape"))
    return mac.hexdigest()
