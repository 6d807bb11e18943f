"""Who is there, and how many images does a request concern?"""

from __future__ import annotations

import excise.client
import excise.common
from excise import __version__
from excise.client.forgotten import commitment
from excise.client.preparation import forgotten_classes
from excise.client.selection import Selection
from excise.client.site import Site
from excise.common.messages import SiteStatus, StatusQuery
from excise.common.request import ForgetRequest
from excise.common.source import source_digest


def answer(site: Site, query: StatusQuery) -> SiteStatus:
    """Count the images of each set; refuse here, before anything is trained, what cannot be carried out on these images.

    Raises
    ------
    RequestError : a request of kind class matches images without the labels it names
    """
    sets = site.select(query.request)
    for request in (query.request, *query.parts):
        if request:
            forgotten_classes(site, site.y_N[site.select(request).forget], request)
    told = site.config.policy.told
    forget, retain = told(len(sets.forget)), told(len(sets.retain))
    return SiteStatus(
        site=site.config.name,
        train=forget + retain,
        forget=forget,
        excluded=told(len(sets.excluded)),
        reference=told(len(sets.reference)),
        held_out=told(len(sets.held_out)),
        skipped=told(len(site.scan.problems)),
        forgotten=told(site.forgotten),
        parts=tuple(float(told(len(site.select(part).forget))) for part in query.parts),
        classes=site.config.data.classes,
        commitment=_commitment(site, query.request, sets) if query.request else "",
        release=__version__,
        source=source_digest(excise.client, excise.common),
    )


def _commitment(site: Site, request: ForgetRequest, sets: Selection) -> str:
    matched = [*sets.forget.tolist(), *sets.excluded.tolist()]
    return commitment(site.config.split.key, request.digest, (site.scan.rows[i].item for i in matched))
