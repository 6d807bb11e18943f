"""The evidence as a page that people read: self-contained, made of the signed document alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from excise.common.canonical import canonical, digest_of

SCORES = (
    ("forget accuracy", "forget_accuracy"),
    ("retain accuracy", "retain_accuracy"),
    ("held-out accuracy", "held_out_accuracy"),
    ("held-out accuracy, worst site", "worst_site_held_out_accuracy"),
    ("membership AUC", "membership_auc"),
)


def render(pack: Mapping[str, Any]) -> str:
    """The page's text; the same evidence gives the same bytes."""
    document = pack["document"]
    impact = document["impact_assessment"]
    models = [(name, impact[name]["pooled"]) for name in ("original", "unlearned", "retrained") if name in impact]
    return (
        _environment()
        .get_template("evidence.html.j2")
        .render(
            document=document,
            digest=digest_of(canonical(document)),
            signatures=pack["signatures"],
            statements=[json.loads(one["text"]) for one in pack["statements"]],
            approvals=[one | {"told": json.loads(one["decision"])} for one in document["modification_protocol"]["approvals"]],
            models=[name for name, _ in models],
            scores=[(told, [pooled.get(key) for _, pooled in models]) for told, key in SCORES],
            plan=json.dumps(document["modification_protocol"]["plan"], indent=2, sort_keys=True),
        )
    )


@cache
def _environment() -> Environment:
    """Made once: it keeps the templates that it compiled."""
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, undefined=StrictUndefined
    )
    made.filters["three"] = lambda value: "\N{EN DASH}" if value is None else f"{value:.3f}"
    return made
