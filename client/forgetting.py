"""Leaving the images of a request out for good."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from excise.client.cache import ImageCache
from excise.client.config import read_site_config
from excise.client.forgotten import EVENT, Register
from excise.client.images import image_cache
from excise.client.preparation import PREPARATIONS
from excise.client.requests import Requests, log_of
from excise.client.site import Site, open_site
from excise.client.sources import index_of
from excise.common.chain import append
from excise.common.errors import ConfigError, NothingToForget
from excise.common.files import storage_errors
from excise.common.request import ForgetRequest

BEGUN = "images are being forgotten"
"""The event that stands in the site's log before anything is done; `EVENT` stands there when all is."""
PROMOTED = "promoted"
"""The coordinator's word for a request that the model in use has forgotten."""


@dataclass(frozen=True)
class Left:
    """What is left out from now on, in images.

    Attributes
    ----------
    images : that were used
    skipped : that could not be used here so far, such as those without a label
    new : names and fingerprints that were not in the register before
    unknown : of the skipped ones those that cannot be decoded today: under another name they would not be recognised
    """

    images: int
    skipped: int
    new: int
    unknown: int


def forget_for_good(site_toml: Path, request: ForgetRequest, by: str, anyway: str = "") -> Left:
    """Enter all images that `request` matches in the site's register, and purge them from its cache.

    The data are looked through first, as `excise site scan` does. Stopped at any moment, it is finished by being done again.
    What is left out takes no part in unlearning, so of a coordinator's request the model must have forgotten the images first.

    Parameters
    ----------
    anyway : why it is done although the coordinator promoted no model that forgot them; it is logged

    Raises
    ------
    ConfigError : the site has a coordinator, which promoted no such model yet as far as is known here; nothing was done
    NothingToForget : no image matches
    DataError : the data cannot be read; nothing was done
    StorageError : the register or the cache cannot be written
    """
    config, anyway = read_site_config(site_toml), anyway.strip()
    state = Requests(site_toml.parent).noted(request).get("state", "not known there")
    if config.coordinator is not None and state != PROMOTED and not anyway:
        raise ConfigError(
            f"'{request.id}' is {state} at the coordinator, as it told last: images that are left out before a model which "
            "forgot them is promoted are not unlearned, and stay in the model. Wait until excise site requests show says "
            f"'{PROMOTED}', or say why not: --anyway WHY"
        )
    if config.data.is_dicom:
        index_of(config).scan()
        open_site.cache_clear()
    site, log = open_site(site_toml), log_of(site_toml.parent)
    sets, skipped = site.select(request), site.skipped(request)
    rows = sorted([*sets.forget.tolist(), *sets.excluded.tolist()])
    if not rows and not skipped and not _unfinished(log, request):
        raise NothingToForget(f"no image here matches: {request.where}")
    append(
        log,
        BEGUN,
        request=request.id,
        digest=request.digest,
        images=len(rows),
        by=by,
        **({"anyway": anyway, "state": state} if anyway else {}),
    )
    identities = site.identities(skipped, retry=True)
    used = [(item, site.x.fingerprints[i]) for i in rows for item in site.scan.rows[i].items]
    register, cache = Register(site.folder, config.split.key), image_cache(config)
    new = register.add(request.id, [*used, *((name, identities[one.item] or None) for one in skipped for name in one.names)])
    cache.purge([item for item, _ in used] + [one.item for one in skipped])
    _purge_others(site, cache)
    left = Left(len(rows), len(skipped), new, sum(not pixels for pixels in identities.values()))
    append(log, EVENT, request=request.id, digest=request.digest, **vars(left), registered=len(register), by=by)
    open_site.cache_clear()
    return left


def _purge_others(site: Site, cache: ImageCache) -> None:
    """What the model said of images on the way, and what was prepared by other settings, some time ago."""
    prepared = site.config.state / PREPARATIONS
    with storage_errors(prepared):
        if prepared.exists():
            shutil.rmtree(prepared)
        for path in cache.path.parent.iterdir():
            if path.stem != cache.path.stem:
                path.unlink()


def _unfinished(log: Path, request: ForgetRequest) -> bool:
    """Whether forgetting `request` was begun here and never came to its end."""
    begun = False
    if log.exists():
        for line in log.read_text().splitlines():
            with suppress(ValueError, KeyError, TypeError):  # lines that were altered are for excise site audit verify
                event = json.loads(line)
                if event["digest"] == request.digest and event["event"] in (BEGUN, EVENT):
                    begun = event["event"] == BEGUN
    return begun
