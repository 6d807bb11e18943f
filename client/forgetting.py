"""Leaving the images of a request out for good."""

from __future__ import annotations

import shutil
from pathlib import Path

from excise.client.forgotten import Register
from excise.client.images import image_cache
from excise.client.preparation import PREPARATIONS
from excise.client.site import open_site
from excise.common.errors import NothingToForget
from excise.common.files import storage_errors
from excise.common.request import ForgetRequest


def forget_for_good(site_toml: Path, request: ForgetRequest) -> tuple[int, int]:
    """Enter all images that `request` matches in the site's register, and purge them from its cache.

    Returns
    -------
    How many they are, and how many of them were not in the register before.

    Raises
    ------
    NothingToForget : no image matches
    StorageError : the register or the cache cannot be written
    """
    site = open_site(site_toml)
    sets, cache = site.select(request), image_cache(site.config)
    items = [site.scan.rows[i].item for i in sorted([*sets.forget.tolist(), *sets.excluded.tolist()])]
    if not items:
        raise NothingToForget(f"no image here matches: {request.where}")
    known = cache.known()
    new = Register(site.folder, site.config.split.key).add(request.id, ((item, str(known[item].pixels)) for item in items))
    cache.purge(items)  # after the register: were it stopped between the two, the next scan would purge them
    prepared = site.config.state / PREPARATIONS  # what the model said of them, on the way
    with storage_errors(prepared):
        if prepared.exists():
            shutil.rmtree(prepared)
        for path in cache.path.parent.iterdir():  # prepared by other settings, some time ago
            if path.stem != cache.path.stem:
                path.unlink()
    open_site.cache_clear()
    return len(items), new
