"""What a run measures of its revised model beside the scores.

How sure the membership test is; which site fares worst; whether the forget set comes back in further training; and, where a
request asks for it, what the features still tell.

None of it decides anything. What a site does not tell is not measured: NaN here, null in ``metrics.json``, never 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from excise.common.errors import QuorumError, SiteError
from excise.common.weights import Weights, digest
from excise.server.admission import DIVERGED
from excise.server.embeddings import embed
from excise.server.federation import Federation
from excise.server.intervals import LEVEL, accuracy_interval, membership_interval
from excise.server.plan import ORIGINAL
from excise.server.resurfacing import lines, resurfacing
from excise.server.scores import Audit, membership
from excise.server.verdict import IDEAL_MEMBERSHIP, Results, site_score, worst_drop

UNLEARNED = "unlearned"
REFUSALS = frozenset({*DIVERGED, SiteError.FORBIDDEN, SiteError.OUT_OF_TIME})
"""Codes of sites that will answer no differently when they are asked again: what was asked of them is not measured, and the
run ends all the same. A site that is silent, or whose disk is full, stops the run, which then goes on where it stood."""


def verify(
    federation: Federation, models: Mapping[str, Weights], audits: Mapping[str, Audit], results: Results
) -> dict[str, Any]:
    """Measure, and tell it in the events.

    Parameters
    ----------
    models, audits : original, unlearned, and retrained where there is one; the audits not brief
    results : of the run so far, with what the sites told of the original and of the unlearned model

    Returns
    -------
    ``level`` and ``resamples`` of the intervals; ``membership_auc`` by model: value, low, high; ``worst_site`` by score: site,
    value, low, high and, of held-out accuracy, its change; ``resurfacing`` by model (`resurfacing.resurfacing`), None when it
    was not asked for, {} when it could not be measured; ``linear_probe`` the same (`probe`); ``embeddings`` the same, but not
    by model (`embeddings.embed`)
    """
    wanted, plan = federation.plan.verification, federation.plan
    found: dict[str, Any] = {
        "level": LEVEL,
        "resamples": wanted.resamples,
        "membership_auc": {name: _membership(federation, audit) for name, audit in audits.items()},
        "worst_site": {
            "held_out_accuracy": _worst_accuracy(results),
            "membership_auc": _worst_membership(federation, audits[UNLEARNED]),
        },
        "resurfacing": _resurfacing(federation, models, audits) if wanted.resurfacing else None,
        "linear_probe": _tried(federation, "linear_probe", lambda: probe(federation, models))
        if plan.request.linear_probe
        else None,
        "embeddings": embed(federation, models[ORIGINAL], models[UNLEARNED]) if wanted.embeddings else None,
    }
    federation.folder.event("verified", **_summary(found))
    return found


def _membership(federation: Federation, audit: Audit) -> dict[str, float]:
    strata, wanted = federation.plan.model.strata, federation.plan.verification
    # One seed for all: models are compared on the same resamples.
    low, high = membership_interval(audit.told, strata, wanted.resamples, federation.seed("interval"))
    return {"value": membership(audit.told, strata), "low": low, "high": high}


def _worst_accuracy(results: Results) -> dict[str, Any]:
    """The site that lost most held-out accuracy (`verdict.worst_drop`)."""
    site, drop = worst_drop(results)
    value, worth = (site_score(results, UNLEARNED, site, f"held_out_{key}") for key in ("accuracy", "effective"))
    low, high = accuracy_interval(value, worth)
    return {"site": site, "value": value, "change": 0.0 - drop, "low": low, "high": high}


def _worst_membership(federation: Federation, audit: Audit) -> dict[str, Any]:
    """The site whose own membership AUC is farthest from chance, on its own images alone."""
    strata, wanted = federation.plan.model.strata, federation.plan.verification
    aucs = {site: membership({site: told}, strata) for site, told in sorted(audit.told.items())}
    aucs = {site: auc for site, auc in aucs.items() if not math.isnan(auc)}
    if not aucs:
        return {"site": "", "value": math.nan, "low": math.nan, "high": math.nan}
    worst = max(aucs, key=lambda site: abs(aucs[site] - IDEAL_MEMBERSHIP))
    low, high = membership_interval({worst: audit.told[worst]}, strata, wanted.resamples, federation.seed("interval", worst))
    return {"site": worst, "value": aucs[worst], "low": low, "high": high}


def _resurfacing(federation: Federation, models: Mapping[str, Weights], audits: Mapping[str, Audit]) -> dict[str, Any]:
    """Of the revised model, and of the retrained one where there is one; what could not be measured is left out."""
    teacher = digest(models[ORIGINAL])
    found = {}
    for name in models:
        if name != ORIGINAL:  # it has forgotten nothing that could come back

            def measure(name: str = name) -> dict[str, Any]:
                return resurfacing(federation, name, models[name], teacher, audits[name])

            if told := _tried(federation, "resurfacing", measure):
                found[name] = told
    return found


def probe(federation: Federation, models: Mapping[str, Weights]) -> dict[str, Any]:
    """By model the AUC of a linear probe (`client/probe.py`) at each site and over all, each site as its forget images weigh.

    Returns
    -------
    By model ``value``, ``images`` and ``sites``; {} where no site told anything

    Raises
    ------
    QuorumError : too few sites answered
    """
    replies = federation.probe(models)
    found = {}
    for name in models:
        sites = {
            site: reply.metrics[f"{name}/probe_auc"] for site, reply in replies.items() if f"{name}/probe_auc" in reply.metrics
        }
        images = {site: replies[site].images for site in sites}
        if total := sum(images.values()):
            value = sum(auc * images[site] for site, auc in sites.items()) / total
            found[name] = {"value": value, "images": total, "sites": sites}
    return found


def _tried(federation: Federation, what: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `measure` finds; {} where sites refuse it for good."""
    try:
        return measure()
    except QuorumError as error:
        if not error.codes or not set(error.codes) <= REFUSALS:
            raise
        federation.folder.event("not_measured", what=what, codes=sorted(set(error.codes)))
        return {}


def _summary(found: Mapping[str, Any]) -> dict[str, Any]:
    """What an event tells: the unlearned model's numbers, rounded."""
    told: dict[str, Any] = {"membership_auc": _rounded(found["membership_auc"][UNLEARNED])}
    told["worst_site"] = {name: _rounded(worst) for name, worst in found["worst_site"].items()}
    if after := (found["resurfacing"] or {}).get(UNLEARNED):
        told["resurfacing"] = lines(after)
    if probed := (found["linear_probe"] or {}).get(UNLEARNED):
        told["linear_probe"] = round(probed["value"], 4)
    return told


def _rounded(told: Mapping[str, Any]) -> dict[str, Any]:
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in told.items()}
