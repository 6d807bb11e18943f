"""Was it forgotten well enough? The acceptance rule of a request applied to a run's results, and the tables of a run.

Plain data without layout: `server/report.py` and the terminal show the same rows. `results` is what `Coordinator.run`
returns, or what `metrics.json` holds, where null stands for NaN. A number that is missing is NaN here, never 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from excise.common.request import ForgetRequest, RequestKind

OVER_UNLEARNING = 0.05
"""Most that the accuracy on the forget set may lie below what a retrained model would reach: further down it is wrong on
purpose."""

WHAT_MAY_REMAIN = {
    RequestKind.CLASS: "accuracy on the class",
    RequestKind.LABELS: "agreement with the withdrawn labels",
}
"""Of the kinds that have a `forget_limit`, the name of its check."""

IDEAL_MEMBERSHIP = 0.5
"""Area under the curve of a membership test that learns nothing."""

SMALLEST_UNIT = 0.01
"""Unit of a missed limit that is smaller than this, or zero."""

SLACK = 1e-9  # 0.95 − 0.94 is 0.010000000000000009 in floating point, and is meant to pass a limit of 0.01

Results = Mapping[str, Any]


@dataclass(frozen=True)
class Check:
    """One clause of the acceptance rule.

    Attributes
    ----------
    name : what is looked at
    rule : the clause in words, with its limit
    measured : the number that is compared; NaN when it was not measured
    limit : the largest number that passes
    passed : whether the clause holds; False when it was not measured
    note : which site, or "not measured"; may be empty
    unit : in which a miss is counted: the limit, or what one image makes where that is more
    """

    name: str
    rule: str
    measured: float
    limit: float
    passed: bool
    note: str = ""
    unit: float = SMALLEST_UNIT


@dataclass(frozen=True)
class Verdict:
    """Whether the result is good enough: every clause must hold."""

    accepted: bool
    checks: tuple[Check, ...]

    @property
    def excess(self) -> float:
        """How far the result is from acceptance: by how much each clause is missed, in its unit, summed.

        0 when accepted, infinite when something was not measured.
        """
        missed = [(c.measured - c.limit) / c.unit for c in self.checks if not c.passed]
        return math.inf if any(map(math.isnan, missed)) else sum(missed)


@dataclass(frozen=True)
class SummaryRow:
    """One metric of the three models.

    Attributes
    ----------
    name : what is measured
    original, retrained, unlearned : the metric of each model; NaN when it was not measured
    gap : unlearned − retrained
    ideal : what to hope for, in words or as a number
    intervals : lower and upper end for each of the three models, in that order; NaN where not measured, () where there is none
    """

    name: str
    original: float
    retrained: float
    unlearned: float
    gap: float
    ideal: str
    intervals: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class CostRow:
    """What one resource cost in the three phases; NaN for a phase that was not run.

    Attributes
    ----------
    name : the resource
    unit : "s", "images", "rounds" or "bytes"
    training, retraining, unlearning : amounts in that unit
    ratio : unlearning ÷ retraining
    """

    name: str
    unit: str
    training: float
    retraining: float
    unlearning: float
    ratio: float


def number(value: object) -> float:
    """`value` as a float; NaN for None and for whatever is no number."""
    return float(value) if isinstance(value, int | float) else math.nan


def score(results: Results, model: str, metric: str) -> float:
    """A pooled score of "original", "unlearned" or "retrained"; NaN when the model or the score is missing."""
    return number(results.get(model, {}).get("pooled", {}).get(metric))


def site_score(results: Results, model: str, site: str, metric: str) -> float:
    """A score of one model at one site; NaN when the site did not tell it."""
    return number(results.get(model, {}).get("sites", {}).get(site, {}).get(metric))


def verdict(results: Results, request: ForgetRequest) -> Verdict:
    """Apply the acceptance rule of `request`."""
    rule = request.acceptance
    drop = score(results, "original", "held_out_accuracy") - score(results, "unlearned", "held_out_accuracy")
    site, site_drop = worst_drop(results)
    images = site_score(results, "original", site, "held_out_images")
    checks = [
        _check(
            "held-out accuracy lost",
            f"held-out accuracy over all sites falls by at most {rule.held_out_drop:.3f} against the deployed model",
            drop,
            rule.held_out_drop,
        ),
        _check(
            "held-out accuracy lost at the worst site",
            f"no site loses more than {rule.worst_site_drop:.3f} of its held-out accuracy",
            site_drop,
            rule.worst_site_drop,
            site,
            granularity=1 / images if images > 0 else 0.0,
        ),
        _check(
            "retain accuracy lost",
            f"accuracy on retain images falls by at most {rule.retain_drop:.3f}",
            score(results, "original", "retain_accuracy") - score(results, "unlearned", "retain_accuracy"),
            rule.retain_drop,
        ),
    ]
    forget = score(results, "unlearned", "forget_accuracy")
    if request.forget_limit is not None:
        limit, name = request.forget_limit, WHAT_MAY_REMAIN[request.kind]
        checks.append(_check(name, f"{name} is at most {limit:.3f}", forget, limit))
    else:
        checks.append(_membership(results, rule.membership_tolerance))
        checks.append(_over_unlearning(results, forget))
    return Verdict(all(check.passed for check in checks), tuple(checks))


def _membership(results: Results, limit: float) -> Check:
    """Forgotten images are to be as any unseen image: an AUC of 0.5, but for how hard they happen to be.

    A retrained model's own AUC tells how much that is; what lies between the two is as good as either.
    """
    own, known = score(results, "unlearned", "membership_auc"), [IDEAL_MEMBERSHIP]
    text = f"membership AUC of the forget set differs from {IDEAL_MEMBERSHIP:.1f} by at most {limit:.3f}"
    if "retrained" in results:
        known.append(score(results, "retrained", "membership_auc"))
        text += f", or from the retrained model's {known[1]:.3f}, or lies between"
    distance = math.nan if any(map(math.isnan, (own, *known))) else max(min(known) - own, own - max(known), 0.0)
    return _check("distance of the membership AUC from that of unseen images", text, distance, limit)


def _over_unlearning(results: Results, forget: float) -> Check:
    """To a retrained model, forgotten images are as any unseen image.

    Without one, the deployed model's held-out accuracy on the forget set's classes tells how good that is.
    """
    if "retrained" in results:
        whose, below = "the retrained model's", score(results, "retrained", "forget_accuracy") - forget
    else:
        whose = "the deployed model's on held-out images of the same classes"
        below = score(results, "original", "matched_held_out_accuracy") - score(
            results, "unlearned", "matched_forget_accuracy"
        )
    text = f"forget accuracy is at most {OVER_UNLEARNING:.3f} below {whose} (no over-unlearning)"
    return _check("over-unlearning: forget accuracy too low", text, below, OVER_UNLEARNING)


def _check(name: str, rule: str, measured: float, limit: float, note: str = "", granularity: float = 0.0) -> Check:
    if math.isnan(measured):
        note = f"{note}: not measured" if note else "not measured"
    unit = max(limit, SMALLEST_UNIT, granularity)
    return Check(name, rule, measured, limit, measured <= limit + SLACK, note, unit)  # NaN compares false


def worst_drop(results: Results) -> tuple[str, float]:
    """The site that loses most held-out accuracy, and how much.

    A site that told its accuracy of one model only makes the answer NaN: the worst drop may be its. A site that told
    neither holds too few images to be judged, and is left out.
    """
    worst, most = "", math.nan
    for site in site_names(results):
        before, after = (site_score(results, model, site, "held_out_accuracy") for model in ("original", "unlearned"))
        if math.isnan(before) and math.isnan(after):
            continue
        if math.isnan(before - after):
            return site, math.nan
        if math.isnan(most) or before - after > most:
            worst, most = site, before - after
    return worst, most


def site_names(results: Results) -> list[str]:
    """Every site that is named in the results, sorted."""
    named = [results.get("sites", {}), *(results.get(model, {}).get("sites", {}) for model in ("original", "unlearned"))]
    return sorted({site for sites in named for site in sites})


_SUMMARY = (  # name, key in the pooled scores, ideal
    ("forget accuracy", "forget_accuracy", "as retrained"),
    ("retain accuracy", "retain_accuracy", "≥ retrained"),
    ("held-out accuracy", "held_out_accuracy", "≥ retrained"),
    ("balanced held-out accuracy", "held_out_balanced_accuracy", "≥ retrained"),
    ("held-out accuracy, worst site", "worst_site_held_out_accuracy", "≥ retrained"),
    ("membership AUC", "membership_auc", f"{IDEAL_MEMBERSHIP:.3f}"),
    ("calibration error, held-out (ECE)", "held_out_ece", "0.000"),
)


def summary_rows(results: Results) -> tuple[SummaryRow, ...]:
    """The main scores of the three models, one row each, and ToW, which compares each model with the retrained one."""
    rows = []
    for name, key, ideal in _SUMMARY:
        original, retrained, unlearned = (score(results, model, key) for model in ("original", "retrained", "unlearned"))
        intervals = _membership_intervals(results) if key == "membership_auc" else ()
        rows.append(SummaryRow(name, original, retrained, unlearned, unlearned - retrained, ideal, intervals))
    tow = {model: _tow(results, model) for model in ("original", "retrained", "unlearned")}
    gap = tow["unlearned"] - tow["retrained"]
    rows.append(SummaryRow("match with retrained (ToW)", tow["original"], tow["retrained"], tow["unlearned"], gap, "1.000"))
    return tuple(rows)


def _membership_intervals(results: Results) -> tuple[tuple[float, float], ...]:
    told = results.get("verification", {}).get("membership_auc", {})
    models = [told.get(model, {}) for model in ("original", "retrained", "unlearned")]
    return tuple((number(one.get("low")), number(one.get("high"))) for one in models)


def _tow(results: Results, model: str) -> float:
    from excise.common.metrics import tug_of_war  # brings torch, which who only shows verdicts does without

    keys = ("forget_accuracy", "retain_accuracy", "held_out_accuracy")
    return tug_of_war(*(score(results, model, key) - score(results, "retrained", key) for key in keys))


_COST = (  # name, unit, key in the cost
    ("wall time", "s", "seconds"),
    ("images processed", "images", "passes"),
    ("rounds", "rounds", "rounds"),
    ("sent up by the sites", "bytes", "bytes_up"),
    ("sent down to the sites", "bytes", "bytes_down"),
)


def cost_rows(results: Results) -> tuple[CostRow, ...]:
    """What training, retraining and unlearning cost. A model whose weights were given cost nothing that is known: NaN."""
    rows = []
    for name, unit, key in _COST:
        training, retraining, unlearning = (
            number(results.get(model, {}).get("cost", {}).get(key)) for model in ("original", "retrained", "unlearned")
        )
        ratio = unlearning / retraining if retraining > 0 else math.nan
        rows.append(CostRow(name, unit, training, retraining, unlearning, ratio))
    return tuple(rows)
