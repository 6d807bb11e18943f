"""Leaving the images of a request out for good."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from excise.client.cache import ImageCache
from excise.client.forgotten import EVENT, Register
from excise.client.images import FATAL, image_cache
from excise.client.preparation import PREPARATIONS
from excise.client.requests import log_of
from excise.client.site import open_site
from excise.client.sources import open_source
from excise.client.table import Problem, Row
from excise.common.chain import append
from excise.common.errors import DataError, NothingToForget
from excise.common.files import storage_errors
from excise.common.request import ForgetRequest


@dataclass(frozen=True)
class Left:
    """What is left out from now on, in images.

    Attributes
    ----------
    images : that were used, each with its copies
    skipped : that could not be used here so far, such as those without a label, and may never be
    new : of both, that were not in the register before
    """

    images: int
    skipped: int
    new: int


def forget_for_good(site_toml: Path, request: ForgetRequest, by: str) -> Left:
    """Enter all images that `request` matches in the site's register, and purge them from its cache.

    Raises
    ------
    NothingToForget : no image matches
    StorageError : the register or the cache cannot be written
    """
    site = open_site(site_toml)
    sets, cache = site.select(request), image_cache(site.config)
    rows = [site.scan.rows[i] for i in sorted([*sets.forget.tolist(), *sets.excluded.tolist()])]
    skipped = site.skipped(request)
    if not rows and not skipped:
        raise NothingToForget(f"no image here matches: {request.where}")
    log = log_of(site.folder)
    append(log, "images are being forgotten", request=request.id, digest=request.digest, images=len(rows), by=by)
    register = Register(site.folder, site.config.split.key)
    known = [*_known(rows, cache), *_skipped(skipped, open_source(site.config).identify)]
    new = register.add(request.id, known)
    left = Left(len(rows), len(skipped), new)
    append(log, EVENT, request=request.id, digest=request.digest, **vars(left), registered=len(register), by=by)
    cache.purge(item for item, _ in known)  # after the register: were it stopped between the two, the next scan would purge
    prepared = site.config.state / PREPARATIONS  # what the model said of them, on the way
    with storage_errors(prepared):
        if prepared.exists():
            shutil.rmtree(prepared)
        for path in cache.path.parent.iterdir():  # prepared by other settings, some time ago
            if path.stem != cache.path.stem:
                path.unlink()
    open_site.cache_clear()
    return left


def _known(rows: list[Row], cache: ImageCache) -> Iterator[tuple[str, str | None]]:
    """Identifiers of images and of their copies, with their fingerprints."""
    known = cache.known()
    yield from ((item, known[row.item].pixels) for row in rows for item in row.items)


def _skipped(problems: list[Problem], identify: Callable[[Any], str]) -> Iterator[tuple[str, str | None]]:
    for problem in problems:
        try:
            pixels = None if problem.reason == FATAL else identify(problem.place)
        except DataError:  # it cannot be decoded today: its identifier is all that is known of it
            pixels = None
        yield problem.item, pixels
