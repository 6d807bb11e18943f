"""The panels that show what a run measured: headline numbers, gates, candidates, change by site.

`results` is what `files.read_results` returns: of the right types, but any part of it may be missing. A number that is missing
is None, never 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from excise.common.request import ForgetRequest
from excise.server.dashboard.formats import signed, three
from excise.server.dashboard.story import Story
from excise.server.verdict import IDEAL_MEMBERSHIP, OVER_UNLEARNING, WHAT_MAY_REMAIN, Check, score, verdict, worst_drop

Table = dict[str, Any]
LOST, TOO_LOW = " lost", "over-unlearning: forget accuracy too low"
"""In the names of clauses: of those that judge a loss, and of the one that judges the forget accuracy from below."""
MORE, LESS, NEARER = "more", "less", "nearer"
"""What is better: more, less, or what is nearer to its aim: chance, or the target of the forget accuracy."""

HEAT: tuple[tuple[str, str, str, str], ...] = (
    ("retain_accuracy", "retain accuracy", MORE, "retain_images"),
    ("held_out_accuracy", "held-out accuracy", MORE, "held_out_images"),
    ("membership_auc", "membership AUC, distance to 0.5", NEARER, "forget_images"),
    ("held_out_ece", "ECE, held-out", LESS, "held_out_images"),
    ("forget_accuracy", "forget accuracy", NEARER, "forget_images"),
)
"""Columns of the heat map: key, label, what is better, and the number of images that it is measured on."""
_COUNTED = {"retain_images": "retain", "held_out_images": "held_out", "forget_images": "forget"}


def known(value: float | None) -> float | None:
    """`value`, None for what is no number to show."""
    return value if value is not None and math.isfinite(value) else None


def minus(one: float | None, other: float | None) -> float | None:
    """Their difference, None where one of them is not known."""
    return None if one is None or other is None else one - other


def ratio(one: float | None, other: float | None) -> float | None:
    """Their quotient, None where one of them is not known, or `other` is 0."""
    return None if one is None or not other else one / other


def pooled(results: Mapping[str, Any] | None, model: str, metric: str) -> float | None:
    """A score over all sites; None where it is missing."""
    return known(score(results or {}, model, metric))


def gates(results: Mapping[str, Any] | None, request: ForgetRequest | None) -> list[Table]:
    """The clauses of the acceptance rule, as `verdict.Check` has them, and ``said``, what was measured and the limit in words.

    None before there are results.
    """
    if not results or request is None:
        return []
    whose = "the retrained model's" if "retrained" in results else "that on unseen images of its classes"
    return [
        {**asdict(check), "measured": known(check.measured), "unit": known(check.unit), "said": _said(check, whose)}
        for check in verdict(results, request).checks
    ]


def _said(check: Check, whose: str) -> str:
    """A clause in words. What it calls lost, which is negative where there is a gain, is told as the change that it is."""
    measured, limit = known(check.measured), three(check.limit)
    change = signed(None if measured is None else 0.0 - measured)
    if check.name == TOO_LOW:
        return f"forget accuracy against {whose}: {change} (may lie {limit} below at most)"
    if LOST in check.name:
        return f"{check.name.replace(LOST, '')}: {change} (may fall by {limit} at most)"
    return f"{check.name}: {three(measured)} (at most {limit})"


def headline(results: Mapping[str, Any] | None, request: ForgetRequest | None, story: Story) -> Table:
    """The numbers at the top of the page, each with what it is to be.

    Keys: ``forget``, ``retain``, ``membership``, ``worst_site``, ``cost``; in each but the last ``passed`` is None until it is
    known. Before there are results they are of the last round, and ``of`` says so.
    """
    latest = last_round(story)
    passed = {check["name"]: check["passed"] for check in gates(results, request) if check["measured"] is not None}
    rule = request.acceptance if request else None
    limit = request.forget_limit if request else None
    forget = pooled(results, "unlearned", "forget_accuracy") if results else latest.get("forget_accuracy")
    target, whose = forget_target(results, request)
    before, after = (pooled(results, model, "retain_accuracy") for model in ("original", "unlearned"))
    told = (results or {}).get("verification", {}).get("membership_auc", {}).get("unlearned")
    interval = told or (story.verified or {}).get("membership_auc") or {}
    auc = pooled(results, "unlearned", "membership_auc") if results else interval.get("value", latest.get("membership_auc"))
    return {
        "of": "result" if results else f"round {latest['round']}" if latest else None,
        "forget": {
            "value": forget,
            "target": target,
            "whose": whose,
            "at_most": limit is not None,
            "slack": None if limit is not None else OVER_UNLEARNING,
            "passed": passed.get(WHAT_MAY_REMAIN[request.kind] if request and limit is not None else TOO_LOW),
        },
        "retain": {
            "value": after if results else latest.get("retain_accuracy"),
            "change": minus(after, before),
            "limit": -rule.retain_drop if rule else None,
            "passed": passed.get("retain accuracy lost"),
        },
        "membership": {
            "value": auc,
            "low": interval.get("low"),
            "high": interval.get("high"),
            "target": IDEAL_MEMBERSHIP,
            "slack": rule.membership_tolerance if rule and limit is None else None,
            "passed": passed.get("distance of the membership AUC from that of unseen images"),
        },
        "worst_site": _worst_site(results, story)
        | {
            "limit": -rule.worst_site_drop if rule else None,
            "passed": passed.get("held-out accuracy lost at the worst site"),
        },
        "cost": cost(results),
    }


def forget_target(results: Mapping[str, Any] | None, request: ForgetRequest | None) -> tuple[float | None, str]:
    """What the accuracy on the forget set is to be, and whose it is: at most that where there is a limit, else near to it."""
    if request and request.forget_limit is not None:
        return request.forget_limit, "the acceptance rule"
    if results and "retrained" in results:
        return pooled(results, "retrained", "forget_accuracy"), "the retrained model"
    return pooled(results, "original", "matched_held_out_accuracy"), "the deployed model on unseen images of the same classes"


def _worst_site(results: Mapping[str, Any] | None, story: Story) -> Table:
    told = ((results or {}).get("verification", {}) or story.verified or {}).get("worst_site", {}).get("held_out_accuracy", {})
    interval = {key: told.get(key) for key in ("low", "high")}
    if results:
        site, drop = worst_drop(results)
        own = told.get("site") == site
        change = known(drop)
        return {
            "site": site or None,
            "change": None if change is None else 0.0 - change,
            **(interval if own else dict.fromkeys(interval)),
        }
    return {"site": told.get("site") or None, "change": told.get("change"), **interval}


def cost(results: Mapping[str, Any] | None) -> Table:
    """What unlearning cost, and what share of retraining that is; None where no model was retrained here."""
    amounts = {key: _cost(results, key) for key in ("seconds", "passes", "rounds", "bytes_up", "bytes_down")}
    ours = {key: pair[0] for key, pair in amounts.items()}
    shares = {f"{key}_share": ratio(*pair) for key, pair in amounts.items()}
    return {"images": ours.pop("passes"), **ours, "images_share": shares.pop("passes_share"), **shares}


def _cost(results: Mapping[str, Any] | None, key: str) -> tuple[float | None, float | None]:
    unlearned, retrained = ((results or {}).get(model, {}).get("cost", {}).get(key) for model in ("unlearned", "retrained"))
    return unlearned, retrained


def last_round(story: Story) -> Table:
    """The latest round of the candidate that was unlearned last; {} before the first."""
    rounds = story.rounds.get(story.candidate) or {}
    number = max(rounds, default=0)
    return {"round": number, **rounds[number]} if rounds else {}


def candidates(
    results: Mapping[str, Any] | None, request: ForgetRequest | None, story: Story, named: Mapping[str, Any]
) -> list[Table]:
    """Every way that was tried, one entry each: what it reached, and whether it is on the front, and chosen.

    Before there are results they hold the last round of each, and ``on_front`` and ``chosen`` as far as the events tell.
    """
    target, _ = forget_target(results, request)
    made: Mapping[str, Any] = (results or {}).get("candidates") or {}
    if results and not made:
        name = results.get("unlearned", {}).get("candidate", "unlearned")
        made = {name: {**results.get("unlearned", {}), "chosen": True}}
    names = list(dict.fromkeys((*named, *made, *story.rounds, *story.lost)))
    found = []
    for name in names:
        one = made.get(name, {})
        rounds = story.rounds.get(name) or {}
        scores = one.get("pooled") or (rounds[max(rounds)] if rounds else {})
        forget = scores.get("forget_accuracy")
        found.append(
            {
                "name": name,
                "forget_accuracy": forget,
                "forget_gap": one.get("objectives", {}).get("forget gap", _gap(forget, target, request)),
                "retain_accuracy": scores.get("retain_accuracy"),
                "held_out_accuracy": scores.get("held_out_accuracy"),
                "membership_auc": scores.get("membership_auc"),
                "excess": one.get("excess"),
                "price": one.get("price"),
                "on_front": one.get("on_front", None if story.front is None else name in story.front),
                "chosen": one.get("chosen", None if not story.chosen else name == story.chosen),
                "digest": one.get("digest"),
                "kept_round": one.get("kept_round", story.done.get(name, {}).get("kept_round")),
                "rounds": max(rounds, default=None),
                "diverged": story.lost.get(name, []),
            }
        )
    return found


def deployed(results: Mapping[str, Any] | None, request: ForgetRequest | None, target: float | None) -> Table | None:
    """What `candidates` says of each way, of the model that they all began from; None where it was not measured."""
    forget, retain = (pooled(results, "original", f"{name}_accuracy") for name in ("forget", "retain"))
    gap = _gap(forget, target, request)
    return None if gap is None or retain is None else {"forget_gap": gap, "retain_accuracy": retain}


def _gap(forget: float | None, target: float | None, request: ForgetRequest | None) -> float | None:
    """Distance to the target; where there is a limit, what is left."""
    if request and request.forget_limit is not None:
        return forget
    difference = minus(forget, target)
    return None if difference is None else abs(difference)


def heat(
    results: Mapping[str, Any] | None, counts: Mapping[str, Mapping[str, int]], min_count: int | None, target: float | None
) -> Table:
    """Change of each score at each site, after − before.

    Parameters
    ----------
    counts : numbers of images that each site told
    min_count : fewest images of which anything is shown; None when that is not known, then sites alone decide
    target : of the forget accuracy: nearer to it is better; None when there is none, then nothing is said of it

    Returns
    -------
    ``metrics`` : key, label and what is better, one per column
    ``sites`` : ``site`` and ``cells``, one per column: ``before``, ``after``, ``change``, ``gain`` (positive is better, None
        where it is not known) and ``below`` (the least number of images, where there were fewer; else None)
    """
    before, after = ((results or {}).get(model, {}).get("sites", {}) for model in ("original", "unlearned"))
    sites = sorted({*counts, *before, *after})
    rows = []
    for site in sites:
        cells = []
        for key, _, better, images in HEAT:
            held = after.get(site, {}).get(images, counts.get(site, {}).get(_COUNTED[images]))
            few = min_count is not None and held is not None and held < min_count
            pair = (None, None) if few else (before.get(site, {}).get(key), after.get(site, {}).get(key))
            aim = {"forget_accuracy": target, "membership_auc": IDEAL_MEMBERSHIP}.get(key)
            gain = _gain(pair[0], pair[1], better, aim)
            cells.append(
                {
                    "before": pair[0],
                    "after": pair[1],
                    "change": minus(pair[1], pair[0]),
                    "gain": gain,
                    "below": min_count if few else None,
                }
            )
        rows.append({"site": site, "cells": cells})
    return {"metrics": [{"key": key, "label": label, "better": better} for key, label, better, _ in HEAT], "sites": rows}


def _gain(before: float | None, after: float | None, better: str, aim: float | None) -> float | None:
    """By how much it became better; None where that is not known."""
    if before is None or after is None or (better == NEARER and aim is None):
        return None
    if aim is not None:
        return abs(before - aim) - abs(after - aim)
    return after - before if better == MORE else before - after
