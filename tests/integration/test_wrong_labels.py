"""A request of kind `labels` through the real apps: the model says another class, and is judged by that."""

from __future__ import annotations

from pathlib import Path

from excise.common.messages import UnlearnInstruction
from excise.server.report import write_report
from excise.server.verdict import WHAT_MAY_REMAIN, verdict
from tests.scenarios import asked_of, prepared, run

REQUEST = {"kind": "labels", "acceptance": {"label_agreement": 0.6}}
UNLEARNING = {"preset": "labels", "psi": 0.4, "local": {"rounds": 3, "steps": 20}}
TRAINING = {"rounds": 8}


def test_withdrawn_labels_are_said_no_more_and_the_verdict_asks_for_that(tmp_path: Path) -> None:
    plan, sites = prepared(tmp_path, request=REQUEST, unlearning=UNLEARNING, training=TRAINING)
    results = run(plan, sites, tmp_path / "run")
    before, after = (results[model]["pooled"]["forget_accuracy"] for model in ("original", "unlearned"))
    assert before > 0.9
    assert after < 0.6
    checks = {check.name: check for check in verdict(results, plan.request).checks}
    asked = checks[WHAT_MAY_REMAIN[plan.request.kind]]
    assert (asked.measured, asked.limit, asked.passed) == (after, 0.6, True)
    assert not any("membership" in name or "over-unlearning" in name for name in checks)
    page = write_report(tmp_path / "run", results, plan)
    assert "agreement with the withdrawn labels" in page.read_text()


def test_sites_are_asked_for_another_class_and_need_no_reference(tmp_path: Path) -> None:
    plan, sites = prepared(tmp_path, request=REQUEST, unlearning={**UNLEARNING, "local": {"rounds": 1, "steps": 2}})
    asked = asked_of(plan, sites, tmp_path / "run", UnlearnInstruction)
    assert {one.settings.target.kind for one in asked} == {"nearest"}
    assert all(one.reference == {} for one in asked)
    assert {one.request.kind for one in asked} == {"labels"}
