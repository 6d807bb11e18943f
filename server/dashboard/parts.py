"""Parts of pages, fetched anew when something changed that they show: all that a page wants of them in one answer."""

from __future__ import annotations

import gzip
import json
from functools import partial
from typing import Any

from fastapi import Request
from fastapi.responses import Response
from starlette.routing import Route

from excise.common.errors import ConfigError
from excise.server.dashboard import figures
from excise.server.dashboard.access import seen
from excise.server.dashboard.render import Renderer, renderer_of
from excise.server.dashboard.shown import Shown, shown_of
from excise.server.dashboard.watch import AUDIT, REQUESTS, RUNS, SITES, topic_of

RUN = topic_of("")
"""Stands for the topic of the run that is shown."""
TEXTS = {
    "headline": (RUN, REQUESTS),
    "sites": (RUN, SITES, REQUESTS),
    "requests": (RUNS, REQUESTS),
    "gates": (RUN, REQUESTS),
    "audit": (AUDIT,),
    "problems": (RUN,),
    "all-requests": (RUNS, REQUESTS),
    "reports": (RUNS, REQUESTS),
}
"""Parts that are text, and the topics that each depends on."""
CHART = "chart:"


def topics_of(part: str, run: str) -> list[str]:
    """Topics that a part depends on, where it is of this run."""
    own = topic_of(run) if run else RUNS  # the latest is another when a run begins
    return [own if topic == RUN else topic for topic in TEXTS.get(part, (RUN,))]


async def some_parts(request: Request) -> Response:
    """Parts of a page, by name: text of panels, figures of charts (``chart:NAME``). JSON, compressed.

    The query has ``names``, with commas between, and ``run``. Every page asks for this after every event: it is a plain route,
    since what FastAPI does around a call takes longer than the call.

    Raises
    ------
    ConfigError : there is no such part
    RequestError : there is no such run
    Refused : nobody is signed in
    """
    await seen(request)
    names, run = (request.query_params.get(key, "") for key in ("names", "run"))
    shown, wanted = shown_of(request), tuple(names.split(","))
    topics = sorted({topic for name in wanted for topic in topics_of(name, run)})
    key = ("parts", wanted, run)
    packed = await shown.kept.soon(key, partial(_packed, shown, renderer_of(request), wanted, run), *topics)
    return Response(packed, media_type="application/json", headers={"Content-Encoding": "gzip"})


def _packed(shown: Shown, renderer: Renderer, names: tuple[str, ...], run: str) -> bytes:
    each = {
        name: shown.kept.get(("part", name, run), partial(_part, shown, renderer, name, run), *topics_of(name, run))
        for name in names
    }
    return gzip.compress(json.dumps(each, allow_nan=False).encode(), 6, mtime=0)


def _part(shown: Shown, renderer: Renderer, name: str, run: str) -> Any:
    if name.startswith(CHART) and (chart := name.removeprefix(CHART)) in figures.CHARTS:
        return figures.CHARTS[chart](shown.view(run), shown.source.runs)
    if name == "all-requests":
        return renderer.text("_requests.html", **shown.requests())
    if name == "reports":
        return renderer.text("_reports.html", **shown.reports())
    if name in TEXTS:
        values = shown.overview(run) if name == "requests" and shown.source.store is None else shown.panels(run)
        return renderer.text(f"_{name}.html", **values)
    raise ConfigError(f"no part '{name}'")


PARTS = Route("/parts", some_parts)
