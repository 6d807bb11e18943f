from __future__ import annotations

import json
import math
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from excise.common.models import ModelSpec
from excise.common.request import ForgetRequest
from excise.server import report
from excise.server.plan import Plan
from excise.server.report import (
    MISSING,
    ReportExtras,
    amount,
    cost_line,
    kept_line,
    render_report,
    search_line,
    signed,
    three,
    write_report,
)

SITES = ("hospital-1", "hospital-2", "hospital-3", "hospital-4")
MODELS = {"original": (1.0, 0.99, 0.94, 0.75), "retrained": (0.9, 0.985, 0.92, 0.51), "unlearned": (0.88, 0.98, 0.935, 0.53)}
COSTS = {"original": (118.0, 72000, 40, 7e7), "retrained": (109.3, 66400, 40, 7e7), "unlearned": (11.2, 6380, 6, 1.05e7)}
SECTIONS = ("verdict", "scores", "rounds", "membership", "sites", "images", "search", "cost", "limits", "model", "settings")
PICTURES = ("rounds", "losses", "verification", "sites", "embedding", "examples", "convergence", "candidates", "cost")


def scores(forget: float, retain: float, held_out: float, auc: float) -> dict[str, float]:
    return {
        "forget_accuracy": forget,
        "retain_accuracy": retain,
        "held_out_accuracy": held_out,
        "held_out_balanced_accuracy": held_out - 0.004,
        "matched_held_out_accuracy": held_out - 0.02,
        "matched_forget_accuracy": forget,
        "worst_site_held_out_accuracy": held_out - 0.03,
        "membership_auc": auc,
        "held_out_ece": 0.031,
    }


def made_up_results(retrained: bool = True) -> dict[str, Any]:
    """What a run of four hospitals and six rounds could have measured."""
    rng = np.random.default_rng(0)
    results: dict[str, Any] = {
        "request": "scanner-7-retired",
        "seed": 0,
        "sites": {
            site: {
                "train": 450,
                "forget": 120 if i == 1 else 0,
                "retain": 330,
                "held_out": 150,
                "excluded": 31,
                "skipped": i,
            }
            for i, site in enumerate(SITES)
        },
    }
    for name, values in MODELS.items():
        told = {site: {"held_out_accuracy": values[2] + 0.01 * (i - 1.5)} for i, site in enumerate(SITES)}
        told["hospital-2"]["forget_accuracy"] = values[0]
        if name == "unlearned":
            told["hospital-2"]["held_out_accuracy"] -= 0.012
            told["hospital-4"]["held_out_accuracy"] += 0.015
        losses = {
            side: [np.sort(rng.lognormal(centre, 1.4, 64)).tolist(), [2.0] * 64]
            for side, centre in (("forget", -4.5 if name == "original" else -2.4), ("held_out", -2.3))
        }
        seconds, passes, rounds, size = COSTS[name]
        cost = {"seconds": seconds, "passes": passes, "rounds": rounds, "bytes_up": size, "bytes_down": size * 1.1}
        results[name] = {"pooled": scores(*values), "sites": told, "losses": losses, "cost": cost}
    start, end = np.array(MODELS["original"]), np.array(MODELS["unlearned"])
    results["unlearned"] |= {"digest": "5d" * 32, "kept_round": 6}
    results["unlearned"]["history"] = [
        {
            "round": r,
            "pooled": scores(*(start + (end - start) * (1 - math.exp(-r)))),
            "excess": 2.0 - 0.5 * r,
            "ascent": {"hospital-2": [0.9 * math.exp(-t / 8) + 0.2 for t in range(20)]} if r == 1 else {},
            "objective_gradient_norm": 1 / r,
            "metrics": {"crossing_rate": 0.914, "path_length": 1.2345},
        }
        for r in range(1, 7)
    ]
    if not retrained:
        del results["retrained"]
    return results


def plan(reason: str = "coil fault, found at the yearly quality control") -> Plan:
    request = ForgetRequest(id="scanner-7-retired", kind="device", where='StationName = "MR7"', reason=reason)
    return Plan(sites=4, model=ModelSpec(), request=request)


def extras(note: str = "Device tags and their intensity response are simulated.") -> ReportExtras:
    rng = np.random.default_rng(1)
    sets = ["retain"] * 150 + ["held-out"] * 80 + ["forget"] * 40
    tumour = rng.random(len(sets)) < 0.5
    before = rng.normal(0, 1, (len(sets), 2)) + np.where(tumour, 3, -3)[:, None] * [1, 0.3]
    after = before + rng.normal(0, 0.4, before.shape)
    ramp = np.linspace(0, 1, 32)
    images = [(np.clip(np.outer(ramp, ramp) * (i + 1) / 6, 0, 1), "tumour" if i % 2 else "no tumour") for i in range(12)]
    return ReportExtras(examples=images, embedding_before=before, embedding_after=after, embedding_set=sets, note=note)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages without pictures, which take most of their time."""
    monkeypatch.setattr(report, "_pictures", lambda *_: dict.fromkeys(PICTURES, ""))


@pytest.fixture(scope="module")
def page() -> str:
    return render_report(made_up_results(), plan(), extras())


class Outline(HTMLParser):
    """Collects what the tests look for: elements by id, tags, attributes, text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page_holds_every_section_and_picture(page: str) -> None:
    outline = Outline(page)
    headings = [attributes["id"] for tag, attributes in outline.tags if tag == "h2"]
    assert tuple(headings) == SECTIONS
    assert [tag for tag, _ in outline.tags].count("figure") == 7
    for said in (
        "Acceptance rule met",
        "differs from 0.5 by at most 0.050",
        "0.102 of retraining's time",
        "model.safetensors",
    ):
        assert said in unescape(page)
    assert "What this does not prove" in page
    assert page.count("Device tags and their intensity response are simulated.") == 2


def test_a_site_is_told_with_its_images(page: str) -> None:
    row = next(part for part in page.split("<tr>") if f'<th scope="row">{SITES[1]}</th>' in part)
    assert re.findall(r"<td[^>]*>(.*?)</td>", row)[:5] == ["120", "330", "150", "31", "1"]


def test_page_is_self_contained(page: str) -> None:
    outline = Outline(page)
    assert not {tag for tag, _ in outline.tags} & {"script", "link", "iframe", "img", "object", "embed", "base"}
    without_namespaces = re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
    assert "http://" not in without_namespaces
    assert "https://" not in without_namespaces
    links = [value for _, attributes in outline.tags for name, value in attributes.items() if name.endswith(("href", "src"))]
    assert links
    assert all(str(link).startswith(("#", "data:image/png;base64,", "model.safetensors")) for link in links)
    assert not re.search(r"url\((?!#)|@import|<metadata|<!--|dc:date", page)


def test_page_can_be_read_aloud(page: str) -> None:
    tags = Outline(page).tags
    assert [attributes["lang"] for tag, attributes in tags if tag == "html"] == ["en"]
    assert all(attributes.get("scope") for tag, attributes in tags if tag == "th")
    pictures = [attributes for tag, attributes in tags if tag == "svg"]
    assert all(attributes["role"] == "img" and len(attributes["aria-label"] or "") > 30 for attributes in pictures)
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_references_inside_pictures_lead_somewhere(page: str) -> None:
    ids = set(re.findall(r'\bid="([^"]+)"', page))
    used = {link or clip for link, clip in re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', page)}
    assert used
    assert used <= ids


def test_same_results_give_the_same_bytes(tmp_path: Path) -> None:
    first = write_report(tmp_path / "a", made_up_results(), plan(), extras())
    second = write_report(tmp_path / "b", made_up_results(), plan(), extras())
    assert first == tmp_path / "a" / "report.html"
    assert first.read_bytes() == second.read_bytes()
    assert [path.name for path in first.parent.iterdir()] == ["report.html"]


def test_hostile_text_stays_text() -> None:
    evil = '<script>alert("x")</script> & $\\frac{ </style> -->'
    results = made_up_results()
    for model in ("original", "unlearned"):
        results[model]["sites"][evil] = {"held_out_accuracy": 0.9}
    results["unlearned"]["history"][0]["ascent"][evil] = [0.5, 0.4]
    page = render_report(results, plan(evil), ReportExtras(examples=[(np.zeros((8, 8)), evil)], note=evil))
    assert "<script" not in page
    assert page.count("</style>") == 1
    assert "&lt;script&gt;" in page
    assert evil in Outline(page).text


def test_without_retrained_its_columns_are_dashes() -> None:
    page = render_report(made_up_results(retrained=False), plan())
    row = re.search(r'<tr><th scope="row">forget accuracy</th>(.*?)</tr>', page, re.DOTALL)
    assert row
    assert re.sub(r"<.*?>", " ", row[1]).split() == ["1.000", MISSING, "0.880", MISSING, "as", "retrained"]
    assert "No retrained reference" in page
    assert "below the deployed model&#39;s on held-out images of the same classes (no over-unlearning)" in page
    assert f"{MISSING} no retraining was run here" in page
    assert "nan" not in Outline(page).text.lower()


@pytest.mark.parametrize("missing", [math.nan, None])
def test_nan_is_a_dash_and_no_success(missing: float | None) -> None:
    results = made_up_results()
    results["unlearned"]["pooled"]["membership_auc"] = missing
    for entry in results["unlearned"]["history"]:
        entry["pooled"]["membership_auc"] = missing
    page = render_report(results, plan())
    assert "Acceptance rule not met" in page
    assert "(not measured)" in page
    row = re.search(r'<tr><th scope="row">membership AUC</th>(.*?)</tr>', page, re.DOTALL)
    assert row
    assert re.sub(r"<.*?>", " ", row[1]).split() == ["0.750", "0.510", MISSING, MISSING, "0.500"]
    assert "nan" not in re.sub(r"<path[^>]*>", "", page).lower()


def test_bare_results_still_make_a_page() -> None:
    bare: dict[str, Any] = {"pooled": {}, "sites": {}, "losses": {}, "cost": {}}
    page = render_report({"original": bare, "unlearned": {**bare, "history": [], "digest": "0"}}, plan())
    assert "<svg" not in page
    assert page.count('class="missing">') == 8  # seven pictures, and no retrained reference


def test_metrics_json_makes_the_same_page() -> None:
    results = made_up_results()
    assert render_report(json.loads(json.dumps(results)), plan()) == render_report(results, plan())


@pytest.mark.parametrize("losses", [[0.0, 0.0], [1e-9, 1e-9], [2.0]])
def test_losses_of_zero_or_all_alike_can_be_drawn(losses: list[float]) -> None:
    results = made_up_results()
    for model in ("original", "unlearned"):
        results[model]["losses"] = {"forget": [losses, [1.0] * len(losses)], "held_out": [[], []]}
    results["unlearned"]["history"][0]["ascent"] = {"a": [0.3, 0.3], "b": [0.0], "c": []}
    assert render_report(results, plan()).count("<svg") == 5


def test_extras_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="the sets are"):
        ReportExtras(embedding_set=["train"])
    with pytest.raises(ValueError, match="expected"):
        ReportExtras(embedding_before=np.zeros((3, 2)), embedding_set=["retain"])


def test_numbers_as_text() -> None:
    assert (three(-0.1234), three(math.nan), three(-0.0), signed(0.02), signed(-0.02)) == (
        "−0.123",
        MISSING,
        "0.000",
        "+0.020",
        "−0.020",
    )
    assert (amount(math.nan, "s"), amount(999, "bytes"), amount(1234.56, "s")) == (MISSING, "999 B", "1,234.6 s")


def test_cost_in_one_line() -> None:
    assert cost_line(made_up_results()) == (
        "Unlearning took 11.2 s, 6 rounds and 6,380 images processed, 10.5 MB up and 11.6 MB down: "
        "0.102 of retraining's time and 0.096 of its images. Scores that were taken for this report alone are not counted."
    )
    assert cost_line(made_up_results(retrained=False)).endswith("there is no retraining to compare with.")


@pytest.mark.parametrize(
    ("excess", "kept", "said"),
    [
        (
            [3.0, 0.0],
            2,
            "Round 2 of 2 was kept: it met the acceptance rule on reference images.",
        ),
        ([3.0, 0.0, 0.5], 2, "Round 2 of 3 was kept: it met the acceptance rule on reference images."),
        ([None, 2.0], 2, "Round 2 of 2 was kept: the last one. No round that was judged met the acceptance rule on reference"),
        ([None, None], 2, "Round 2 of 2 was kept: the last one."),
        ([2.0, None], 1, "Round 1 of 2 was kept: those after it came clearly less close to the acceptance rule"),
    ],
)
def test_the_kept_round_is_told_with_its_reason(undrawn: None, excess: list[float | None], kept: int, said: str) -> None:
    results = made_up_results()
    results["unlearned"] |= {"history": [{"round": i, "excess": e} for i, e in enumerate(excess, 1)], "kept_round": kept}
    assert kept_line(results).startswith(said)
    assert said in render_report(results, plan())


def test_the_search_is_told_in_one_line(page: str) -> None:
    told = (
        "The search carried 91.4% of the forget images over a boundary of the deployed model, along paths of 1.234 on average"
    )
    assert search_line(made_up_results()).startswith(told)
    assert told in page
    assert search_line({"unlearned": {"history": [{"metrics": {}}]}}) == search_line({}) == ""
    assert "times the reference's" not in search_line(made_up_results())
    results = made_up_results()
    for entry, factor in zip(results["unlearned"]["history"][1:3], (1.8, 0.5625), strict=True):
        entry["metrics"]["overshoot"] = factor
    assert "the sites asked for losses of 1.80, 0.56 times the reference's" in search_line(results)


def test_joined_requests_are_told_one_by_one(undrawn: None) -> None:
    results = made_up_results()
    assert 'id="requests"' not in render_report(results, plan())
    told = {"forget_images": 120.0, "forget_accuracy": 0.9, "membership_auc": 0.512}
    results["requests"] = {"scanner": {"original": told, "unlearned": told | {"forget_accuracy": math.nan}}, "b": {}}
    results["requests"]["scanner"]["accepted"] = False
    results["requests"]["tiny"] = {"original": {}, "unlearned": {}, "accepted": None}
    results["requests"]["b"] = {"original": told, "retrained": told, "unlearned": told, "accepted": True}
    (section,) = re.findall(r'<h2 id="requests">.*?</section>', render_report(results, plan()), re.DOTALL)
    rows = [re.sub(r"<.*?>", " ", row).split() for row in re.findall(r"<tr>(.*?)</tr>", section, re.DOTALL)]
    assert rows[2] == ["scanner", "120", "0.900", MISSING, MISSING, "0.512", MISSING, "0.512", "✗", "not", "met"]
    assert rows[4][-2:] == ["not", "measured"]
    assert rows[3] == ["b", "120", *["0.900"] * 3, *["0.512"] * 3, "✓", "met"]


def verified(**changes: Any) -> dict[str, Any]:
    """The made-up results with what was measured beside the scores."""
    told = {
        name: {"value": value, "low": value - 0.05, "high": value + 0.06}
        for name, value in (("original", 0.7), ("retrained", 0.5), ("unlearned", 0.52))
    }
    later = {"forget_accuracy": 0.03, "beside_unseen": 0.004, "membership_auc": -0.01, "before": {}, "after": {}, "cost": {}}
    found = {
        "level": 0.95,
        "resamples": 1000,
        "membership_auc": told,
        "worst_site": {
            "held_out_accuracy": {"site": "hospital-2", "value": 0.9, "change": -0.012, "low": 0.85, "high": 0.94},
            "membership_auc": {"site": "<b>3</b>", "value": 0.58, "low": math.nan, "high": math.nan},
        },
        "resurfacing": {"unlearned": later, "retrained": later | {"forget_accuracy": 0.01}},
        "linear_probe": {name: {"value": 0.61, "images": 40, "sites": {}} for name in told},
    }
    return made_up_results() | {"verification": found | changes}


def section_of(page: str, name: str) -> tuple[str, list[list[str]]]:
    (section,) = re.findall(rf'<h2 id="{name}">.*?</section>', page, re.DOTALL)
    rows = re.findall(r"<tr>(.*?)</tr>", section, re.DOTALL)
    return section, [[re.sub(r"<.*?>", "", cell) for cell in re.findall(r"<t[hd].*?</t[hd]>", row, re.DOTALL)] for row in rows]


def test_what_was_measured_beside_the_scores_is_told() -> None:
    results = verified()
    page = render_report(results, plan())
    _, scores = section_of(page, "scores")
    (auc,) = [row for row in scores if row[0] == "membership AUC"]
    assert auc[1] == "0.750 (0.650 to 0.760)"  # the score itself is where it always was
    assert auc[3].endswith("(0.470 to 0.580)")
    section, rows = section_of(page, "verification")
    told = {row[0]: row[1:] for row in rows}
    worst = told["held-out accuracy, the site that lost most"]
    assert worst[:3] == [MISSING, MISSING, "0.900"]
    assert worst[3] == "hospital-2, −0.012 against the deployed model; 95 %: 0.850 to 0.940"
    assert told["membership AUC, the site farthest from chance"][3] == "&lt;b&gt;3&lt;/b&gt;; no interval"
    assert told["forget accuracy regained"][:3] == [MISSING, "+0.010", "+0.030"]
    assert told["membership AUC regained"][2] == "−0.010"
    assert told["linear probe of the features, AUC"][:3] == ["0.610"] * 3
    assert "Membership AUC with its 95 % interval: original 0.700 (0.650 to 0.760)" in section
    assert render_report(json.loads(json.dumps(results).replace("NaN", "null")), plan()) == page


def test_what_was_not_asked_for_or_not_measured_is_not_told_as_zero() -> None:
    unknown = {"value": math.nan, "low": math.nan, "high": math.nan}
    nobody = {"held_out_accuracy": unknown | {"site": "", "change": math.nan}, "membership_auc": unknown | {"site": ""}}
    page = render_report(
        verified(membership_auc={"unlearned": unknown}, worst_site=nobody, resurfacing={}, linear_probe=None), plan()
    )
    section, rows = section_of(page, "verification")
    assert [row[:4] for row in rows[1:]] == [
        [name, MISSING, MISSING, MISSING]
        for name in ("forget accuracy regained", "… beside unseen images of the same classes", "membership AUC regained")
    ]
    assert "<svg" not in section
    assert "no interval: too few patients" in section
    assert 'id="verification"' not in render_report(made_up_results(), plan())


def test_candidates_are_compared() -> None:
    results = made_up_results()
    assert 'id="candidates"' not in render_report(results, plan())
    measured = {"forget gap": 0.0123, "membership": 0.02, "retain loss": 0.003, "worst site loss": math.nan}
    first = {"objectives": measured, "excess": 0.0, "on_front": True, "chosen": True}
    other = first | {"excess": math.inf, "on_front": False, "chosen": False}
    results["candidates"] = {"gentle": first, "a <hostile> name": other}
    page = render_report(results, plan())
    (section,) = re.findall(r'<h2 id="candidates">.*?</section>', page, re.DOTALL)
    rows = [re.sub(r"<.*?>", " ", row).split() for row in re.findall(r"<tr>(.*?)</tr>", section, re.DOTALL)]
    assert rows[1] == ["gentle", "0.012", "0.020", "0.003", MISSING, "0.000", "yes", "✓", "chosen"]
    assert rows[2][-2:] == [MISSING, "no"]
    assert "<svg" in section
    assert "<hostile>" not in page
    assert render_report(json.loads(json.dumps(results).replace("NaN", "null").replace("Infinity", "null")), plan()) == page


def test_without_rounds_none_was_kept() -> None:
    assert kept_line({"unlearned": {"history": [], "kept_round": None}}) == ""
