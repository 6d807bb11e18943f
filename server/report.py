"""The report of a run: one HTML page that opens offline, tells what was done, and says how to read each picture.

The same results give the same bytes, so a report can be hashed into the evidence. Nothing in it is fetched or run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from excise.common.files import write_atomically
from excise.server import pictures
from excise.server.drawing import SETS
from excise.server.plan import Plan
from excise.server.verdict import Check, Results, cost_rows, number, site_names, site_score, summary_rows, verdict

RESURFACING = "after one more pass over retain images, in a model that was thrown away"
MISSING = "\N{EN DASH}"


@dataclass(frozen=True, kw_only=True)
class ReportExtras:
    """What only a simulation has to show, since it needs images.

    Attributes
    ----------
    examples : images of the forget set, (H, W) in [0, 1], each with a caption
    embedding_before, embedding_after : the images under the original and the unlearned model, (N, 2), same projection
    embedding_set : the set of each image: "forget", "retain" or "held-out"; N of them
    note : what a reader must know about the data, such as that device tags are simulated
    """

    examples: Sequence[tuple[NDArray[np.floating], str]] = ()
    embedding_before: NDArray[np.floating] | None = None
    embedding_after: NDArray[np.floating] | None = None
    embedding_set: Sequence[str] = ()
    note: str = ""

    def __post_init__(self) -> None:
        if unknown := set(self.embedding_set) - set(SETS):
            raise ValueError(f"embedding_set holds {sorted(unknown)}; the sets are {sorted(SETS)}")
        for name in ("embedding_before", "embedding_after"):
            points = getattr(self, name)
            if points is not None and points.shape != (len(self.embedding_set), 2):
                raise ValueError(f"{name} has shape {points.shape}, expected ({len(self.embedding_set)}, 2)")


def write_report(folder: Path, results: dict[str, Any], plan: Plan, extras: ReportExtras | None = None) -> Path:
    """Write `folder`/report.html and return its path.

    Parameters
    ----------
    folder : folder of the run
    results : what `Coordinator.run` returned, or what ``metrics.json`` holds; ``retrained`` may be absent
    plan : what was run
    extras : pictures that need images

    Raises
    ------
    StorageError : the disk is full or the folder cannot be written; an earlier report is untouched
    """
    path = folder / "report.html"
    write_atomically(path, render_report(results, plan, extras))
    return path


def render_report(results: Results, plan: Plan, extras: ReportExtras | None = None) -> str:
    """The page itself, as text."""
    extras = extras or ReportExtras()
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            request=plan.request,
            note=extras.note,
            verdict=verdict(results, plan.request),
            summary=summary_rows(results),
            has_retrained="retrained" in results,
            sites=[_site_row(results, site) for site in site_names(results)],
            cost=cost_rows(results),
            cost_line=cost_line(results),
            kept_line=kept_line(results),
            search_line=search_line(results),
            requests=results.get("requests", {}),
            candidates=results.get("candidates", {}),
            pictures={name: Markup(svg) for name, svg in _pictures(results, plan, extras).items()},  # noqa: S704 - drawn by us
            verification=verification_rows(results),
            limits=_limits(results, plan, extras),
            digest=results.get("unlearned", {}).get("digest", MISSING),
            settings=tomli_w.dumps(plan.model_dump(mode="json", exclude_none=True)),
        )
    )


@cache
def _environment() -> Environment:
    """Made once: it keeps the templates that it compiled."""
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, undefined=StrictUndefined
    )
    made.filters |= {
        "number": number,
        "three": three,
        "signed": signed,
        "whole": whole,
        "amount": amount,
        "measured": measured,
        "between": between,
    }
    return made


# ---- numbers as text --------------------------------------------------------------------------------------------------


def three(value: float) -> str:
    """Three decimals with a true minus; a dash for NaN.

    >>> three(0.12345), three(-0.5), three(-0.0001)
    ('0.123', '−0.500', '0.000')
    """
    if not math.isfinite(value):
        return MISSING
    text = f"{value:.3f}"
    return text.replace("-", "" if float(text) == 0 else "−")


def measured(check: Check) -> str:
    """What a clause of the acceptance rule measured, with as many decimals as show that its limit was missed.

    >>> measured(Check("", "", 0.0104, 0.01, False)), measured(Check("", "", 0.0096, 0.01, True))
    ('0.0104', '0.010')
    """
    if not check.passed and check.measured > check.limit:
        for digits in range(3, 8):
            if float(text := f"{check.measured:.{digits}f}") > check.limit:
                return text
    return three(check.measured)


def signed(value: float) -> str:
    """As `three`, with a plus before what is positive.

    >>> signed(0.012), signed(-0.012), signed(0.0)
    ('+0.012', '−0.012', '0.000')
    """
    text = three(value)
    return f"+{text}" if value > 0 and float(text) > 0 else text


def between(ends: Sequence[float]) -> str:
    """An interval; "" where it was not measured.

    >>> between((0.4321, 0.6)), between((math.nan, math.nan))
    ('0.432 to 0.600', '')
    """
    return f"{three(ends[0])} to {three(ends[1])}" if all(map(math.isfinite, ends)) else ""


def whole(value: float) -> str:
    """A count, thousands parted by commas; a dash for NaN."""
    return f"{value:,.0f}" if math.isfinite(value) else MISSING


def amount(value: float, unit: str) -> str:
    """An amount of a resource with its unit.

    >>> amount(12.34, "s"), amount(12345, "images"), amount(2_500_000, "bytes"), amount(6, "rounds")
    ('12.3 s', '12,345', '2.5 MB', '6')
    """
    if not math.isfinite(value):
        return MISSING
    if unit == "s":
        return f"{value:,.1f} s"
    if unit == "bytes":
        for name, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
            if value >= size:
                return f"{value / size:.1f} {name}"
        return f"{value:.0f} B"
    return whole(value)


def cost_line(results: Results) -> str:
    """What unlearning cost, in one sentence: for the page and for the terminal."""
    seconds, images, rounds, up, down = cost_rows(results)
    text = (
        f"Unlearning took {amount(seconds.unlearning, 's')}, {whole(rounds.unlearning)} rounds and "
        f"{whole(images.unlearning)} images processed, {amount(up.unlearning, 'bytes')} up and "
        f"{amount(down.unlearning, 'bytes')} down"
    )
    if math.isnan(images.ratio):
        return f"{text}; there is no retraining to compare with."
    return (
        f"{text}: {three(seconds.ratio)} of retraining's time and {three(images.ratio)} of its images. "
        "Scores that were taken for this report alone are not counted."
    )


def kept_line(results: Results) -> str:
    """Which round's model was kept, and why; "" when no round was run."""
    unlearned = results.get("unlearned", {})
    history, kept = unlearned.get("history", ()), unlearned.get("kept_round")
    if not history or kept is None:
        return ""
    text = f"Round {kept} of {len(history)} was kept: "
    excess = [entry.get("excess") for entry in history]
    if excess[kept - 1] == 0:
        return f"{text}it met the acceptance rule on reference images."
    if kept == len(history):
        judged = any(value is not None and math.isfinite(value) for value in excess)
        return f"{text}the last one." + (
            " No round that was judged met the acceptance rule on reference images." if judged else ""
        )
    return f"{text}those after it came clearly less close to the acceptance rule on reference images, which none met."


def search_line(results: Results) -> str:
    """What the boundary search came to, and how targets were corrected since; "" when it did not run or told nothing."""
    history = results.get("unlearned", {}).get("history", ())
    metrics = history[0].get("metrics", {}) if history else {}
    crossed, length = number(metrics.get("crossing_rate")), number(metrics.get("path_length"))
    if math.isnan(crossed):
        return ""
    factors = [factor for entry in history if not math.isnan(factor := number(entry.get("metrics", {}).get("overshoot")))]
    return (
        f"The search carried {crossed:.1%} of the forget images over a boundary of the deployed model, along paths of "
        f"{three(length)} on average (Euclidean, in pixel units of [0, 1])."
    ) + (
        " After the first round the sites asked for losses of "
        f"{', '.join(f'{factor:.2f}' for factor in factors)} times the reference's, by what the model had reached."
        if factors
        else ""
    )


def verification_rows(results: Results) -> list[dict[str, Any]]:
    """What was measured beside the scores: name, numbers of the three models, of what they are and how they are read."""
    found: Results = results.get("verification") or {}
    rows: list[dict[str, Any]] = []

    def row(name: str, told: Mapping[str, Any], key: str, difference: bool, note: str) -> None:
        values = [number((told.get(model) or {}).get(key)) for model in ("original", "retrained", "unlearned")]
        rows.append({"name": name, "values": values, "difference": difference, "note": note})

    worst: Results = found.get("worst_site") or {}
    for key, name in (
        ("held_out_accuracy", "held-out accuracy, the site that lost most"),
        ("membership_auc", "membership AUC, the site farthest from chance"),
    ):
        if (told := worst.get(key, {})).get("site"):
            ends = between((number(told.get("low")), number(told.get("high"))))
            lost = f", {signed(number(told['change']))} against the deployed model" if "change" in told else ""
            row(
                name,
                {"unlearned": told},
                "value",
                False,
                f"{told['site']}{lost}{'; 95 %: ' + ends if ends else '; no interval'}",
            )
    if (later := found.get("resurfacing")) is not None:
        row("forget accuracy regained", later, "forget_accuracy", True, RESURFACING)
        row("… beside unseen images of the same classes", later, "beside_unseen", True, "what memory brings back; should be 0")
        row("membership AUC regained", later, "membership_auc", True, "towards members above 0")
    if (probed := found.get("linear_probe")) is not None:
        row("linear probe of the features, AUC", probed, "value", False, "0.500: they tell nothing; compare with retrained")
    return rows


# ---- parts of the page ------------------------------------------------------------------------------------------------


def _site_row(results: Results, site: str) -> dict[str, Any]:
    counts = results.get("sites", {}).get(site, {})
    models = ("original", "retrained", "unlearned")
    held_out = [site_score(results, model, site, "held_out_accuracy") for model in models]
    return {
        "name": site,
        "counts": [number(counts.get(key)) for key in ("forget", "retain", "held_out", "excluded", "skipped")],
        "held_out": held_out,
        "change": held_out[2] - held_out[0],
        "forget": [site_score(results, model, site, "forget_accuracy") for model in models],
    }


def _pictures(results: Results, plan: Plan, extras: ReportExtras) -> dict[str, str]:
    original, unlearned = results.get("original", {}), results.get("unlearned", {})
    history: Sequence[Mapping[str, Any]] = unlearned.get("history", ())
    scores = {row.name: row for row in summary_rows(results)}
    forget, auc = scores["forget accuracy"], scores["membership AUC"]
    sites = {row["name"]: row for row in (_site_row(results, site) for site in site_names(results))}
    changes = {site: (row["change"], row["held_out"][1] - row["held_out"][0]) for site, row in sites.items()}
    ratios = {row.name: row.ratio for row in cost_rows(results)}
    before, after = extras.embedding_before, extras.embedding_after
    told = ", ".join(f"{name} {three(ratio)}" for name, ratio in ratios.items())
    return {
        "rounds": pictures.round_curves(
            original.get("pooled", {}),
            history,
            results.get("retrained", {}).get("pooled"),
            unlearned.get("kept_round"),
            f"Curves over the unlearning rounds. Forget accuracy goes from {three(forget.original)} to "
            f"{three(forget.unlearned)}, membership AUC from {three(auc.original)} to {three(auc.unlearned)}.",
        ),
        "losses": pictures.loss_histograms(
            original.get("losses", {}),
            unlearned.get("losses", {}),
            "Histograms of the loss of forget and held-out images before and after unlearning. "
            f"Membership AUC {three(auc.original)} before, {three(auc.unlearned)} after.",
        ),
        "verification": pictures.membership_intervals(
            _intervals(results),
            "Membership AUC with its 95 % interval: "
            + ", ".join(f"{name} {three(value)} ({between(ends)})" for name, (value, *ends) in _intervals(results).items()),
        ),
        "sites": pictures.site_changes(
            changes,
            plan.request.acceptance.worst_site_drop,
            "Bars of the change of held-out accuracy: "
            + ", ".join(f"{site} {signed(change)}" for site, (change, _) in changes.items()),
        ),
        "embedding": ""
        if before is None or after is None
        else pictures.embedding_map(
            before,
            after,
            extras.embedding_set,
            "Two maps of the same images, under the original and under the unlearned model; "
            + ", ".join(f"{list(extras.embedding_set).count(name)} {name}" for name in SETS),
        ),
        "examples": pictures.example_images(
            extras.examples, f"{len(extras.examples)} images of the forget set: " + ", ".join(c for _, c in extras.examples)
        ),
        "convergence": pictures.convergence(
            history,
            "Curves of the measured ascent at each step of the boundary search, and of the global gradient's norm by round.",
        ),
        "candidates": pictures.candidate_map(
            results.get("candidates", {}),
            "Candidates by forgetting and retention. On the front: "
            + ", ".join(name for name, c in results.get("candidates", {}).items() if c["on_front"]),
        ),
        "cost": pictures.cost_bars(ratios, f"Bars of the cost of unlearning divided by that of retraining: {told}"),
    }


def _intervals(results: Results) -> dict[str, tuple[float, float, float]]:
    """Membership AUC, lower and upper end of each model and of the worst site, where there is an interval."""
    found: Results = results.get("verification") or {}
    told = dict(found.get("membership_auc") or {})
    worst = (found.get("worst_site") or {}).get("membership_auc", {})
    if worst.get("site"):
        told[f"unlearned at {worst['site']}"] = worst
    each = {name: (number(one.get("value")), number(one.get("low")), number(one.get("high"))) for name, one in told.items()}
    return {name: numbers for name, numbers in each.items() if all(map(math.isfinite, numbers))}


def _limits(results: Results, plan: Plan, extras: ReportExtras) -> str:
    parts = [extras.note] if extras.note else []
    if plan.model.multi_label:
        parts.append(
            "An image has any number of labels: accuracies and losses are means over them, those on the forget set over the "
            "labels that had to be forgotten."
        )
    parts.append(
        "A membership test by a threshold on the loss is a weak test: a stronger attacker, with shadow models or with the "
        "original model to compare with, may still tell who was a member. Scores look at the model's answers: even good ones "
        "do not show that nothing of the images is left in the weights, and further training may bring some of it back. The "
        "numbers come from one run with one seed and carry the chance of a limited number of images, most of all on small "
        "sites and small forget sets."
    )
    if plan.request.forget_limit is None:
        parts.append("Chance level (0.500) is what the membership AUC of images never seen would be, up to that same chance.")
    if "retrained" not in results:
        parts.append("Without a retrained reference this page cannot tell forgetting from damage on the forget set.")
    parts.append(
        "Copies of the images elsewhere, earlier versions of the model and what was learned from its answers are not touched."
    )
    return " ".join(parts)
