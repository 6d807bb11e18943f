"""One run for the Overview: every panel of it, as values that go into JSON as they are."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from excise.common.canonical import finite
from excise.common.request import ForgetRequest
from excise.server.dashboard import panels
from excise.server.dashboard.files import damaged, digests, read_results, rounds_by_site
from excise.server.dashboard.formats import without_paths
from excise.server.dashboard.runs import Known, Runs, moment
from excise.server.dashboard.story import CONVERGENCE, SCORES, Story
from excise.server.verdict import IDEAL_MEMBERSHIP

Table = dict[str, Any]


def run_view(folder: Path | Runs, name: str, now: float | None = None) -> Table:
    """All that the Overview shows of a run. Nothing in it is NaN, and what is missing is None.

    Returns
    -------
    ``run`` : its card (`runs.RunCard`)
    ``request`` : id, kind, scope, reason, acceptance; None where it cannot be read
    ``headline`` : `panels.headline`
    ``gates`` : clauses of the acceptance rule, once there are results; ``latest`` is the last round of any
    ``accepted`` : whether all clauses hold; None before there are results
    ``deployed`` : forget gap and retain accuracy of the deployed model, as of candidates; None before it was measured
    ``series`` : rounds of each candidate (`series`), with ``original`` and ``retrained``, the scores of those models
    ``candidates``, ``heat`` : `panels.candidates`, `panels.heat`
    ``parts`` : of joined requests, the scores on each, and whether its rule is met
    ``sites`` : what was heard of each site
    ``waits`` : ``sites``, ``since``, ``round``, ``number``; None when nobody is awaited
    ``digests`` : SHA-256 of the model ``before`` and ``after``
    ``problems`` : what is wrong, in words; empty when nothing is

    Raises
    ------
    RequestError : there is no such run
    """
    now, runs = time.time() if now is None else now, folder if isinstance(folder, Runs) else Runs(folder)
    with runs.run(name) as known:
        view: Table = finite(_view(known, now))
    return view


def _view(known: Known, now: float) -> Table:
    story, settings, path = known.story, known.settings, known.path
    request = settings.request
    results, wrong = read_results(path)
    target, _ = panels.forget_target(results, request)
    checks = panels.gates(results, request)
    card = known.card(now)
    counts = {site: told.counts for site, told in story.sites.items() if told.counts is not None}
    return {
        "run": asdict(card) | {"waits_for": list(card.waits_for), "candidates": list(card.candidates)},
        "request": _request(request, settings.scope),
        "headline": panels.headline(results, request, story),
        "gates": checks,
        "accepted": all(check["passed"] for check in checks) if checks else None,
        "latest": panels.last_round(story) or None,
        "deployed": panels.deployed(results, request, target),
        "series": {
            "candidates": series(story, request, target),
            "original": _line(results, "original"),
            "retrained": _line(results, "retrained"),
            "forget_target": target,
        },
        "candidates": panels.candidates(results, request, story, settings.candidates),
        "heat": panels.heat(results, counts, settings.min_count, target),
        "parts": (results or {}).get("requests", {}),
        "sites": sites(known, card.state == "running"),
        "waits": story.waits if card.state == "running" else None,
        "digests": dict(digests(path, _digest(results, "original"), _digest(results, "unlearned") or story.digest)),
        "problems": problems(known, wrong),
    }


def _request(request: ForgetRequest | None, scope: str) -> Table | None:
    if request is None:
        return None
    told = {"id": request.id, "kind": request.kind.value, "scope": scope, "reason": request.reason}
    return told | {"acceptance": request.acceptance.model_dump()}


def _line(results: Mapping[str, Any] | None, model: str) -> Table | None:
    return {key: panels.pooled(results, model, key) for key in SCORES} if results and model in results else None


def _digest(results: Mapping[str, Any] | None, model: str) -> str:
    return (results or {}).get(model, {}).get("digest") or ""


def series(story: Story, request: ForgetRequest | None, target: float | None) -> list[Table]:
    """The rounds of each candidate, for charts.

    Returns
    -------
    Per candidate ``name``, ``rounds`` (their numbers), a list as long of each score, of ``excess`` and of the convergence
    numbers (None where it was not measured); ``best`` and ``last`` by score: round and value; ``kept_round``
    """
    keys = (*SCORES, "excess", "objective_gradient_norm", *CONVERGENCE)
    found = []
    for name, rounds in story.rounds.items():
        numbers = sorted(rounds)
        lists = {key: [rounds[n][key] for n in numbers] for key in keys}
        points = {key: [(n, v) for n, v in zip(numbers, lists[key], strict=True) if v is not None] for key in SCORES}
        found.append(
            {
                "name": name,
                "rounds": numbers,
                **lists,
                "best": {key: _best(key, points[key], request, target) for key in SCORES},
                "last": {key: {"round": of[-1][0], "value": of[-1][1]} if of else None for key, of in points.items()},
                "kept_round": story.done.get(name, {}).get("kept_round"),
            }
        )
    return found


def _best(key: str, points: list[tuple[int, float]], request: ForgetRequest | None, target: float | None) -> Table | None:
    """The best round: the earlier of equal ones. None where it is not known what is good."""
    aim = {"forget_accuracy": target, "membership_auc": IDEAL_MEMBERSHIP}.get(key, 1.0)
    if key == "forget_accuracy" and request and request.forget_limit is not None:
        aim = 0.0
    if not points or aim is None:
        return None
    number, value = min(points, key=lambda point: abs(point[1] - aim))
    return {"round": number, "value": value}


def sites(known: Known, running: bool) -> list[Table]:
    """Every site that the plan names or that was heard, by name; of a run that is carried out also whether it is awaited.

    Returns
    -------
    Per site ``site``, ``state`` ("awaited", "away", "refused", "silent", "answered", "asked" or "never heard"), ``since``,
    ``counts`` (None when never heard), ``last_round`` (``candidate`` and ``round`` of the last that used its answer),
    ``refused`` (how often, by code), ``last_refusal``, ``late``
    """
    story = known.story
    used = rounds_by_site(known.path)
    waits = (story.waits if running else None) or {"sites": [], "since": None}
    found = []
    for site in sorted({*known.settings.sites, *story.sites, *waits["sites"]}):
        told = story.sites.get(site)
        last = told.last if told else None
        refused = last if last and last["what"] != "answered" else None
        if site in waits["sites"]:
            state, since = "awaited", waits["since"]
        elif told is None:
            state, since = ("asked" if running else "never heard"), None
        elif not told.here:
            state, since = "away", None
        elif refused and not _answered_since(story, used.get(site), refused):
            state, since = refused["what"], refused["at"]
        else:
            state, since = ("answered" if told.counts is not None or last else "asked"), None
        found.append(
            {
                "site": site,
                "state": state,
                "since": since,
                "counts": told.counts if told else None,
                "last_round": used.get(site),
                "refused": dict(told.refused) if told else {},
                "last_refusal": refused,
                "late": told.late if told else 0,
            }
        )
    return found


def _answered_since(story: Story, used: Table | None, refusal: Table) -> bool:
    """Whether an answer of the site was used in a round after its refusal."""
    entry = story.rounds.get(used["candidate"], {}).get(used["round"]) if used else None
    return entry is not None and moment(entry["at"]) > moment(refusal["at"])


def problems(known: Known, wrong: list[str]) -> list[str]:
    """What is wrong with a run or its folder, in words."""
    story, settings = known.story, known.settings
    found = [*wrong]
    if settings.problem:
        found.append(settings.problem)
    if known.malformed:
        found.append(f"{known.malformed} malformed {'line' if known.malformed == 1 else 'lines'} in events.jsonl")
    found += [f"{count} × event of an unknown kind: {kind[:100]}" for kind, count in sorted(story.unknown.items())]
    found += [f"the checkpoint of {one['phase']} was damaged: taken up after round {one['rounds']}" for one in story.damaged]
    kept = damaged(known.path)
    found += [f"set aside as damaged: {name}" for name in kept]
    found += [f"not measured: {what} ({', '.join(codes)})" for what, codes in sorted(story.not_measured.items())]
    found += [f"the candidate {name} diverged ({', '.join(codes)})" for name, codes in sorted(story.lost.items())]
    if failure := story.failure:
        told = failure["message"].replace(f"{known.path}/", "")  # its name may hold spaces
        found.append(f"failed: {without_paths(told) or failure['error']}")
    return found
