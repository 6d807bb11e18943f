"""The evidence of a run: what was asked, who agreed, what was done, what was measured, and what none of this proves.

Headings follow FDA's guidance on predetermined change control plans (2024): description of modification, modification
protocol, impact assessment. The document is made once, when the run has its revised model, and never changes; signatures and
the coordinator's later statements stand beside it (`common/evidence.py`).
"""

from __future__ import annotations

import json
import tomllib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sqlalchemy import select

from excise.common import chain
from excise.common.bundle import bundle_digest
from excise.common.canonical import canonical, digest_of, finite
from excise.common.decision import Standing
from excise.common.errors import ConfigError
from excise.common.evidence import COORDINATOR, FORMAT
from excise.common.signing import public_hex, read_key, sign
from excise.common.weights import digest, load_weights
from excise.server.config import ServerConfig
from excise.server.evidence_pack import unsigned, write_pack
from excise.server.life import State
from excise.server.plan import Plan
from excise.server.record import DEPLOYED, REVISED, RunFolder
from excise.server.registry import make_statement, run_of
from excise.server.requests import approvals, step
from excise.server.setup import SIGNING_KEY
from excise.server.store import Store
from excise.server.store.tables import Model, Move, Run, Site, now
from excise.server.verdict import verdict

NOT_PROVED = (
    "That no trace of the forgotten images is left in the model. A membership test and a comparison of accuracies can show "
    "that a model still knows images; that they show nothing is no proof that it does not.",
    "That the sites measured what they say. Each signs what it told; nobody else saw its images.",
    "That copies of the model which were made before, its training logs or backups were changed or deleted.",
    "That the forget set is complete. Each site resolves the request on its own images; the commitment fixes which ones it "
    "took, so that this can be checked at the site later, and tells nobody else of them.",
    "That the law is satisfied. The legal basis is the text of whoever drafted the request; nobody interpreted it here.",
    "What code the sites ran. Each tells its release and a digest of its source; its own people answer for both.",
    "That nothing was stated later. A statement, such as that the model was rolled back, may be missing from a copy of this "
    "file: ask the coordinator for the present one.",
    "Formal (epsilon, delta) unlearning. The method is approximate; its quality is what was measured, on these images.",
)


def seal(store: Store, folder: Path, config: ServerConfig, run: str) -> str:
    """Make the evidence of a run that has its revised model, once; its requests become candidates. Returns its digest.

    Raises
    ------
    RequestError : there is no such run, or its requests are not running
    ConfigError : it has no revised model yet
    StorageError : it cannot be kept
    """
    made = run_of(store, run)
    if not made.document:
        document = canonical(_document(store, folder, config, made))
        key = read_key(folder / SIGNING_KEY)
        with store.change() as change:
            row = change.session.get_one(Run, run, with_for_update=True)
            if not row.document:
                row.document, row.digest = document, digest_of(document)
                row.key, row.signature = public_hex(key), sign(key, document.encode())
                step(change, json.loads(row.requests), State.CANDIDATE, COORDINATOR, "the run has its revised model")
                change.log("evidence sealed", run=run, digest=row.digest)
    write_pack(store, config, run)
    return run_of(store, run).digest


def verify(store: Store, folder: Path, config: ServerConfig, run: str, by: str, override: str = "") -> None:
    """Find that the evidence of a run is complete and its result good enough: its requests become verified.

    Parameters
    ----------
    override : why the result is taken although it misses the acceptance rule, or although a site did not sign

    Raises
    ------
    ConfigError : something is missing, and nothing overrides it; says what
    RequestError : its requests are no candidates
    DataError : the audit log is not as it was written
    """
    store.check_log()
    missing = _missing(store, run_of(store, run))
    if missing and not override:
        raise ConfigError(
            f"'{run}' cannot be verified: {'; '.join(missing)}. Reject it, wait for the sites, or override this in writing "
            "(--override WHY)"
        )
    why = f"overridden: {override} ({'; '.join(missing)})" if missing else "the acceptance rule is met and every site signed"
    with store.change() as change:
        row = change.session.get_one(Run, run, with_for_update=True)
        moved = step(change, json.loads(row.requests), State.VERIFIED, by, why)
        if moved:
            make_statement(change, folder, row, "verified", by, why)
            change.log("run verified", run=run, by=by, why=why)
    write_pack(store, config, run)


def _missing(store: Store, run: Run) -> list[str]:
    """What stands against using the model of a run, in words.

    Raises
    ------
    ConfigError : it has no evidence yet
    """
    if not run.document:
        raise ConfigError(f"the run '{run.name}' has no evidence yet: excise server resume {run.name}")
    document = json.loads(run.document)
    impact, absent, silent = document["impact_assessment"], document["took_no_part"], unsigned(store, run.name)
    found = [
        f"{check['name']}: {_three(check['measured'])} (limit {_three(check['limit'])})"
        for check in impact["checks"]
        if not check["passed"]
    ]
    for request, told in impact["requests"].items():
        if told["accepted"] is not True:
            found.append(f"the rule of '{request}' is {'not measured' if told['accepted'] is None else 'not met'}")
    if absent:
        found.append(f"asked, but took no part: {', '.join(absent)}")
    for request in json.loads(run.requests):
        changed = [one for one in approvals(store, request) if one.standing != Standing.APPROVED]
        found += [f"{one.site}: '{request}' is {one.standing} there by now" for one in changed]
    if silent:
        found.append(f"no signature of {', '.join(silent)}")
    return found


def _three(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3f}"


def _document(store: Store, folder: Path, config: ServerConfig, run: Run) -> dict[str, Any]:
    at = config.runs / run.name
    if not (at / REVISED).exists() or not (at / "metrics.json").exists():
        raise ConfigError(f"the run '{run.name}' has no revised model yet: excise server resume {run.name}")
    settings = (at / "plan.toml").read_text()
    plan, results = Plan.model_validate(tomllib.loads(settings)), json.loads((at / "metrics.json").read_text())
    judged = verdict(results, plan.request)
    events = RunFolder(at).events()
    approved = json.loads(run.approvals)
    withdrawn = [
        {"request": request, "site": one.site, "decision": one.decision, "signature": one.signature, "key": one.key}
        for request in json.loads(run.requests)
        for one in approvals(store, request)
        if one.decision and one.standing != Standing.APPROVED
    ]
    parts = plan.parts or (plan.request,)
    with store.reading() as session:
        lived = session.scalars(select(Move).where(Move.request.in_(json.loads(run.requests))).order_by(Move.id)).all()
        keys = {site.name: site.signing_key for site in session.scalars(select(Site))}
        base = session.get_one(Model, run.base)
    took_part, before = sorted(results["sites"]), digest(load_weights(at / DEPLOYED))
    if before != base.digest:
        raise ConfigError(f"{at / DEPLOYED} is not model {base.version}, with which the run began: put that one back")
    return {
        "format": FORMAT,
        "made_at": now(),
        "coordinator": {"name": config.name, "key": public_hex(read_key(folder / SIGNING_KEY))},
        "run": run.name,
        "sites": {site: {"key": keys[site], "counts": results["sites"][site]} for site in took_part},
        "took_no_part": sorted({one["site"] for one in approved} - set(took_part)),
        "description_of_modification": {
            "requests": [{"request": json.loads(part.to_json()), "digest": part.digest} for part in parts],
            "model_before": {"version": run.base, "digest": before},
            "model_after": {"digest": digest(load_weights(at / REVISED))},
            "forget_set_commitments": results.get("commitments", {}),
        },
        "modification_protocol": {
            "method": "federated unlearning by perturbed sign gradients: boundary search inside, joint retraining outside",
            "plan": json.loads(plan.model_dump_json(exclude={"request", "parts", "deployed", "retrained"})),
            "plan_sha256": digest_of(settings),
            "seed": plan.seed,
            "code": {
                "bundle_sha256": bundle_digest(),
                "coordinator": [
                    {"at": event["at"], "release": event["release"], "source_sha256": event["source"]}
                    for event in events
                    if event["event"] == "started"
                ],
                "sites": results.get("code", {}),
            },
            "approvals": approved,
            "withdrawn": withdrawn,
            "life": [
                {"request": one.request, "from": one.before, "to": one.after, "by": one.by, "why": one.why, "at": one.at}
                for one in lived
            ],
            "refused": [
                {key: event[key] for key in ("at", "round", "site", "code")} for event in events if event["event"] == "refused"
            ],
        },
        "impact_assessment": {
            "accepted": judged.accepted,
            "checks": [finite(asdict(check)) for check in judged.checks],
            **{name: results[name] for name in ("original", "unlearned", "retrained", "verification") if name in results},
            "requests": results.get("requests", {}),
        },
        "audit_log": {"last": chain.last(store.log)[0]},
        "does_not_prove": list(NOT_PROVED),
    }
