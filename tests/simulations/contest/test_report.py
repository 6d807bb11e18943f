"""The result pages tell the truth of made-up records: who wins, ties and loses, by how much, and what is not known."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from excise.simulations.contest.record import Record
from excise.simulations.contest.report.contests import AUC, GOLD, TOW, Contest, contests_of
from excise.simulations.contest.report.page import anchored, write_report
from excise.simulations.contest.report.pictures import Point, front, points_of
from excise.simulations.contest.report.ranking import overall
from excise.simulations.contest.report.standing import costs, ranks, standings
from excise.simulations.contest.report.tables import Cell, settings_of, tables_of
from excise.simulations.contest.report.winners import winners
from excise.simulations.contest.report.words import Honest, honest, not_run, ran, rules
from tests.deployment import ROOT
from tests.simulations.contest.made import kept, over_seeds, record

PAGE = ROOT / "docs" / "results" / "benchmark.md"

OURS = "excise, mean"
SCRUB = "SCRUB (one place)"
Excise = Callable[..., tuple[int, str, str]]


def contest(*records: list[Record]) -> Contest:
    (found,) = contests_of(one for some in records for one in some)
    return found


def said(*contests: Contest) -> list[str]:
    return [f"{point.head}: {point.text}" for point in honest(contests).points]


# ---- who wins -----------------------------------------------------------------------------------------------------------


def test_who_wins_is_told_with_figures_and_nothing_is_lost() -> None:
    won = contest(over_seeds(OURS, [0.95, 0.96, 0.94], auc=0.51), over_seeds("PUF", [0.90, 0.91, 0.89], auc=0.45))
    tow, auc = standings(won)
    assert (tow.word, auc.word) == ("first", "first")
    assert tow.leads[0].by.mean == pytest.approx(0.05)
    assert auc.leads[0].by.mean == pytest.approx(0.04)  # 0.01 from retrained's, against 0.05
    assert costs(won) == pytest.approx({"images": 0.05, "seconds": 0.05})
    told = honest([won])
    assert told.points == ()
    assert "first in 2, ties in 0 and is behind in 0" in told.summary
    assert "It loses to no other method: ToW 0.950; AUC distance 0.010." in told.summary
    assert "costs 0.050 of its images, 0.050 of its seconds." in told.summary
    row = winners([won]).lines[0]
    assert [cell.text for cell in row.cells] == ["ToW", OURS, OURS, "0.950", "–", "+0.050", "PUF", "first"]
    assert row.cells[1].small == "0.950"


def test_a_difference_that_seeds_do_not_decide_is_a_tie_and_no_loss() -> None:
    tied = contest(over_seeds(OURS, [0.90, 0.90, 0.90]), over_seeds("PUF", [0.95, 0.88, 0.91]))
    tow, auc = standings(tied)
    assert tow.leads[0].by.mean < 0 < tow.leads[0].by.high
    assert (tow.word, auc.word) == ("tie", "tie")  # equal AUCs tie as well
    assert said(tied) == []
    assert {name: str(rank) for name, rank in ranks(tied.ranked(TOW)).items()} == {"PUF": "=1", OURS: "=2"}


def test_a_lead_that_seeds_do_not_decide_is_a_tie_too() -> None:
    ahead = contest(over_seeds(OURS, [0.95, 0.88, 0.91]), over_seeds("PUF", [0.90, 0.90, 0.90]), over_seeds("NoT", [0.5] * 3))
    tow, _ = standings(ahead)
    assert tow.leads[0].by.mean > 0 > tow.leads[0].by.low
    assert (tow.leads[1].won, tow.word) == (True, "tie")


def test_what_comes_back_though_nobody_is_ranked_by_it_is_told() -> None:
    gold = {"resurfaced": 0.1, "worst_site_accuracy": 0.8, "probe_accuracy": 0.5}

    def of(name: str, rises: list[float]) -> list[Record]:
        told = [
            record(name, i, resurfaced=rise, worst_site_accuracy=0.6 + rise / 10, probe_accuracy=0.52)
            for i, rise in enumerate(rises)
        ]
        return [replace(one, retrained={**one.retrained, **gold}) for one in told]

    assert said(contest(of(OURS, [0.3, 0.35, 0.4]), of("PUF", [0.9] * 3))) == [
        "brain-mri, resurfaced: an epoch on retain images alone brings 0.250 more of the forgotten back than in the retrained "
        "model.",
        "brain-mri, worst site: 0.165 less is right at the worst site than in the retrained model.",
    ]
    assert [one for one in said(contest(of(OURS, [0.0, 0.11, 0.9]), of("PUF", [0.9] * 3))) if "resurfaced" in one] == []


def test_the_rules_say_with_whom_ours_was_compared() -> None:
    ours = over_seeds(OURS, [0.9] * 3)
    assert "none of those with all images in one place was run" in rules([contest(ours, over_seeds("PUF", [0.9] * 3))])[0]
    assert "those with all images in one place as well" in rules([contest(ours, over_seeds(SCRUB, [0.9] * 3))])[0]


def test_a_search_that_learned_nothing_is_told() -> None:
    def searched(trials: int) -> str:
        records = [replace(one, searched=replace(one.searched, trials=trials)) for one in over_seeds(OURS, [0.9] * 3)]
        return " ".join(rules([contest(records)]))

    assert "searched with 4 trials of each method" in searched(4)
    assert "Settings were searched" not in searched(12)


def test_a_loss_is_told_with_its_figures_and_to_whom() -> None:
    lost = contest(
        over_seeds(OURS, [0.90, 0.91, 0.89], share=0.2),
        over_seeds(SCRUB, [0.94, 0.96, 0.93], share=0.3),  # ahead by 0.04, 0.05, 0.04
        over_seeds("PUF", [0.91, 0.92, 0.90]),
        over_seeds("NoT", [0.909, 0.919, 0.899]),
        over_seeds("FedOSD", [0.5, 0.5, 0.5]),
    )
    assert said(lost) == [
        "brain-mri, ToW: 0.900, behind SCRUB (one place) by 0.043 [0.040 to 0.050] at 0.300 of retraining's images "
        "and PUF by 0.010 [0.010 to 0.010]. 1 more is ahead.",
        "brain-mri, cost: 0.200 of retraining's images and 0.200 of retraining's seconds, where at most 0.125 was to be.",
    ]
    assert (
        "is first in 0, ties in 1 and is behind in 1: by ToW first in 0, ties in 0 and is behind in 1; "
        "by AUC distance first in 0, ties in 1 and is behind in 0. "
    ) in honest([lost]).summary
    places = {name: str(rank) for name, rank in ranks(lost.ranked(TOW)).items()}
    assert places == {SCRUB: "=1", "PUF": "2", "NoT": "3", OURS: "4", "FedOSD": "5"}
    assert str(ranks(lost.ranked(TOW, federated=True))["PUF"]) == "=1"


def test_the_nearest_best_is_not_enough_when_a_second_rival_is_surely_ahead() -> None:
    lost = contest(
        over_seeds(OURS, [0.90, 0.90, 0.90]), over_seeds("PUF", [0.99, 0.89, 0.99]), over_seeds("NoT", [0.92, 0.92, 0.92])
    )
    (tow, _) = standings(lost)
    assert [lead.rival.name for lead in tow.leads] == ["PUF", "NoT"]
    assert [lead.rival.name for lead in tow.lost] == ["NoT"]
    assert tow.word == "behind"


def test_one_seed_has_no_interval_and_who_is_worse_is_behind() -> None:
    one = contest([record(OURS, tow=0.90, auc=0.53)], [record("PUF", tow=0.91, auc=0.52)], [record("NoT", tow=0.8)])
    points = said(one)
    assert points[0] == ("brain-mri, ToW: 0.900, behind PUF by 0.010 (one seed: no interval, so no tie).")
    assert points[1].startswith("brain-mri, AUC distance: 0.030, behind NoT (ToW 0.800) by 0.010")
    assert [str(rank) for rank in ranks(one.ranked(TOW)).values()] == ["3", "1", "2"]
    assert "With one seed there is no interval" in " ".join(rules([one]))


def test_others_of_ours_and_retraining_count_neither_for_nor_against_it() -> None:
    found = contest(
        over_seeds(OURS, [0.9] * 3),
        over_seeds("excise, ties", [0.99] * 3),
        over_seeds(GOLD, [1.0] * 3),
        over_seeds("PUF", [0.8] * 3),
    )
    assert [one.word for one in standings(found)] == ["first", "tie"]
    assert list(found.ranked(TOW)) == ["PUF", OURS, "excise, ties"]
    assert "Others of ours, here 1," in rules([found])[0]
    assert winners([found]).lines[0].cells[1] == Cell("excise, ties", "0.990")


def test_what_a_second_retraining_has_is_told_beside() -> None:
    def told(again: list[float]) -> tuple[str, Honest, str]:
        found = contest(over_seeds(OURS, [0.90, 0.91, 0.89]), over_seeds("PUF", [0.91, 0.92, 0.90]), over_seeds(GOLD, again))
        (tow, _) = winners([found]).lines
        return tow.cells[4].text, honest([found]), " ".join(rules([found]))

    shown, said_near, explained = told([0.93, 0.88, 0.92])
    assert shown == "0.910"
    assert f"{GOLD}: a second retraining" in explained
    near = "A second retraining has 0.910, and ours is not surely farther from the retrained model."
    assert said_near.points[0].text == f"0.900, behind PUF by 0.010 [0.010 to 0.010]. {near}"
    assert "In 2 of 2 it is as near to the retrained model as a second retraining is" in said_near.summary
    _, said_far, _ = told([0.95, 0.97, 0.96])
    assert said_far.points[0].text.endswith("A second retraining has 0.960.")
    assert "In 1 of 2 it is as near" in said_far.summary
    without = contest(over_seeds(OURS, [0.9] * 3), over_seeds("PUF", [0.8] * 3))
    assert winners([without]).lines[0].cells[4].text == "–"
    assert "second retraining" not in honest([without]).summary + " ".join(rules([without]))


# ---- what there is not ----------------------------------------------------------------------------------------------------


def test_a_failed_method_stands_in_the_table_with_its_reason_and_has_no_rank() -> None:
    found = contest(
        over_seeds(OURS, [0.9, 0.9]), [record("PUF", 0), record("PUF", 1, failed="not finite")], over_seeds("NoT", [0.8, 0.8])
    )
    lines = {line.name: line for line in tables_of(found)[0].lines}
    assert lines["PUF"].told == "failed: not finite (seed 1)"
    assert [str(lines[name].cells[0].text) for name in (OURS, "NoT")] == ["=1", "2"]
    assert [lead.rival.name for lead in standings(found)[0].leads] == ["NoT"]
    assert list(lines)[:3] == ["ideal", "original", "retrained"]
    assert ran([found]).lines[0].cells[3].text == "1"


def test_where_ours_failed_or_was_not_run_that_is_told() -> None:
    failed = contest([record(OURS, failed="broken")], [record("PUF")])
    absent = contest([record("PUF", scenario="other")])
    assert said(failed, absent) == [
        'brain-mri: "excise, mean" failed: broken (seed 0).',
        'other: "excise, mean" was not run.',
    ]
    assert honest([failed]).summary.startswith("Nothing can be said of ours")
    assert winners([failed, absent]).lines[0].cells[-1].text == "failed"


def test_what_was_not_run_is_told_from_the_records() -> None:
    found = contest(
        over_seeds(OURS, [0.9] * 3), over_seeds("NoT", [0.9] * 3), over_seeds("PUF", [0.9] * 4), [record("FedOSD")]
    )
    assert found.seeds == (0, 1, 2)
    told = {item.head: item.text for item in not_run([found], ["brain-mri", "fashion-x"], [OURS, "PUF", "SalUn"])}
    assert told == {
        "Scenarios": "fashion-x.",
        "Methods in brain-mri": "SalUn.",
        "U-LiRA and RMIA": "tried in no scenario; the option --shadows tries them.",
        "Seeds in brain-mri": "FedOSD with seeds 1, 2: not ranked.",
        "Further seeds in brain-mri": "some methods have seed 3 as well; no figure is of that.",
    }
    assert "FedOSD" not in found.ranked(TOW)
    lines = {line.name: line for line in tables_of(found)[0].lines}
    assert lines["FedOSD"].told == "not run with seed 1, 2; not ranked"


def test_where_shadow_models_were_made_is_told() -> None:
    without, of_some = contest([record(OURS)]), contest([replace(record(OURS, scenario="traced"), shadows=8)])
    told = {item.head: item.text for item in not_run([without, of_some], [], [])}
    assert told["U-LiRA and RMIA"] == "tried in traced alone; the option --shadows tries them."
    assert "U-LiRA and RMIA" not in {item.head for item in not_run([of_some], [], [])}


def test_traces_are_told_of_the_seeds_and_by_the_records_that_have_shadow_models() -> None:
    def traced(one: Record, auc: float) -> Record:
        original, retrained = {**one.original, "ulira_auc": 0.9}, {**one.retrained, "ulira_auc": 0.5}
        return replace(one, shadows=8, original=original, retrained=retrained, values={**one.values, "ulira_auc": auc})

    ours, others = over_seeds(OURS, [0.9] * 3), over_seeds("PUF", [0.9] * 3)
    found = contest(others, [traced(ours[0], 0.6), traced(ours[1], 0.7), ours[2]])
    assert found.traced == (0, 1)
    more = tables_of(found)[1]
    at = more.columns.index("U-LiRA AUC")
    told = {line.name: line.cells[at].text for line in more.lines}
    assert told == {"ideal": "0.500", "original": "0.900", "retrained": "0.500", OURS: "0.650", "PUF": "–"}
    assert [one for one in said(found) if "U-LiRA" in one] == [
        "brain-mri, U-LiRA: an attacker for each image tells the forgotten by 0.150 more than in the retrained model."
    ]
    not_told = {item.head: item.text for item in not_run([found], [], [])}
    assert not_told["U-LiRA and RMIA"] == "tried in brain-mri (seeds 0, 1) alone; the option --shadows tries them."


def test_two_scenarios_of_one_name_are_two_contests() -> None:
    found = contests_of([record(OURS, key="a-1", scenario="a"), record(OURS, key="a-2", scenario="a")])
    assert [one.title for one in found] == ["a (a-1)", "a (a-2)"]


def test_contests_come_in_the_order_of_the_scenarios_and_others_after_them() -> None:
    found = contests_of([record(OURS, scenario=name) for name in ("mine", "of-16", "of-4")], ["of-4", "of-16"])
    assert [one.title for one in found] == ["of-4", "of-16", "mine"]


def test_metrics_that_are_not_known_are_dashes_and_columns_without_any_are_left_out() -> None:
    one, two = record(OURS, relearn_ratio=0.75), record("PUF")
    _, more, gaps = tables_of(contest([one], [two]))
    assert more.columns == ("AUC", "JS, forget", "relearn ratio")
    assert {line.name: line.cells[2].text for line in more.lines}["PUF"] == "–"
    assert {line.name: line.cells[2].text for line in more.lines}[OURS] == "0.750"
    assert {line.name: line.cells[0].text for line in gaps.lines}[OURS] == "0.000"  # forget accuracy 0.8, as retrained
    ideals = {name: cell.text for name, cell in zip(more.columns, more.lines[0].cells, strict=True)}
    assert ideals == {"AUC": "as retrained", "JS, forget": "0.000", "relearn ratio": "1.000"}
    assert settings_of(contest([one])).lines[0].cells[0].text == "rate = 0.25"


# ---- over scenarios, and pictures -------------------------------------------------------------------------------------------


def many(scenarios: int, seeds: int = 3) -> list[Contest]:
    tows = {OURS: 0.95, "PUF": 0.9, "NoT": 0.8}
    made = [
        record(name, seed, tow, scenario=f"s{i}")
        for i in range(scenarios)
        for name, tow in tows.items()
        for seed in range(seeds)
    ]
    return contests_of([*made, record("FedOSD", scenario="s0")])


def test_enough_blocks_give_a_critical_difference_and_few_an_interval_plot() -> None:
    found = overall(many(4), TOW)
    assert found
    assert {name: rank.mean for name, rank in found.ranks.items()} == {OURS: 1, "PUF": 2, "NoT": 3}
    assert found.difference == pytest.approx(2.343 * (3 * 4 / (6 * 12)) ** 0.5, abs=1e-3)  # Demšar's table 5(a)
    assert found.groups == ()  # 1 apart, and the difference is 0.957
    assert "critical-difference diagram" in found.words
    assert "methods differ" in found.words
    assert "Left out, since some block lacks them: FedOSD" in found.words
    few = overall(many(3), AUC)
    assert few
    assert few.difference is None
    assert "an interval plot" in few.words
    assert {rank.mean for rank in few.ranks.values()} == {2.0}  # all tie


def test_a_method_that_failed_is_last_in_its_block() -> None:
    found = overall([contest([record(OURS, tow=0.1)], [record("PUF", failed="broken")])], TOW)
    assert found
    assert {name: rank.mean for name, rank in found.ranks.items()} == {OURS: 1, "PUF": 2}
    assert "Last where they failed: PUF" in found.words


def test_points_are_distances_to_the_retrained_model_and_the_front_is_the_nearest() -> None:
    found = contest([record(OURS, tow=0.85, share=0.1)], [record("PUF", tow=0.9, retain_accuracy=0.6)])
    points = {point.runs.name: point for point in points_of(found)}
    assert points[OURS].forget == pytest.approx(0.05)  # 0.75 against 0.8
    assert points["PUF"].retain == pytest.approx(0.3)
    assert points[OURS].cost == pytest.approx(0.1)
    runs = points[OURS].runs
    a, b, c = (Point(runs, *place, 1, 1) for place in ((0.1, 0.5), (0.2, 0.6), (0.3, 0.1)))
    assert front([b, c, a]) == [a, c]


# ---- the pages ------------------------------------------------------------------------------------------------------------


class Elements(HTMLParser):
    """Elements and attributes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_the_command_writes_both_pages_and_pictures_that_stand_alone(tmp_path: Path, excise: Excise) -> None:
    records = [one for i in range(3) for name in (OURS, "PUF", SCRUB) for one in over_seeds(name, [0.9] * 4, scenario=f"s{i}")]
    records += over_seeds(GOLD, [0.93] * 4, scenario="s1", share=1.0)
    home = kept(tmp_path / "home", [*records, record("SSD (one place)", scenario="s0", failed="broken")])
    code, _, told = excise("bench", "report", "--home", home, "--page", tmp_path / "p.md", "--html", tmp_path / "h.html")
    assert code == 0, told
    assert "h.html" in told
    markdown, html = (tmp_path / "p.md").read_text(), (tmp_path / "h.html").read_text()
    pictures = re.findall(r"\]\((\S+\.svg)\)", markdown)
    assert sorted(pictures) == sorted(path.name for path in tmp_path.glob("*.svg"))
    assert len(pictures) == 5
    for name in pictures:
        assert ET.fromstring((tmp_path / name).read_text()).tag == "{http://www.w3.org/2000/svg}svg"
    marks = [len(re.findall(r'id="[^"]*PathCollection_', (tmp_path / f"p-s{i}.svg").read_text())) for i in range(3)]
    assert marks[1] == marks[2] + 3  # the hollow star, in either panel and in the legend
    elements = Elements(html).found
    assert sum(tag == "svg" for tag, _ in elements) == 5
    assert not {tag for tag, _ in elements} & {"script", "link", "img", "iframe", "object"}
    links = [value or "" for _, of in elements for key, value in of.items() if key in ("href", "src", "xlink:href")]
    assert all(link.startswith("#") for link in links)
    assert not re.search(r"@import|url\((?!#)", html)
    ids = [of["id"] for _, of in elements if "id" in of]
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in links} <= set(ids)
    for words in ("Where ours does not win", "Who wins", "not ranked", "fashion-mislabelled", "critical-difference diagram"):
        assert words in markdown
        assert words in html
    assert html.count("<details>") == markdown.count("<details>") == 9


def test_the_page_of_the_documentation_is_of_the_records_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Drawing takes three quarters of the time, and is not compared.
    monkeypatch.setattr("excise.simulations.contest.report.pictures.draw", lambda *_: "<svg/>")
    page, *_ = write_report(PAGE.with_suffix(""), tmp_path / "benchmark.md")
    assert page.read_text() == PAGE.read_text(), "excise bench report --home docs/results/benchmark"


def test_hostile_names_and_reasons_are_shown_as_text(tmp_path: Path) -> None:
    evil = '<script>alert(1)</script>|$x^$ "><img src=x onerror=1> --> ]]>'
    records = [
        record(OURS, scenario=evil, key="a"),
        record(f"m {evil}", scenario=evil, key="a", tow=0.95),
        record("PUF", scenario=evil, key="a", failed=f"why\n{evil}"),
    ]
    records = [replace(one, paper=evil) for one in records]
    page, html, *pictures = write_report(kept(tmp_path / "home", records), tmp_path / "page.md")
    elements = Elements(html.read_text()).found
    assert not {tag for tag, _ in elements} & {"script", "img"}
    assert not [key for _, of in elements for key in of if key.startswith("on")]
    assert "&lt;script&gt;alert(1)" in html.read_text()
    text = page.read_text()
    assert "<script" not in text
    assert "<img" not in text
    rows = [line for line in text.splitlines() if line.startswith("| PUF")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {12, 6}  # ranks and scores; best settings
    assert pictures
    for picture in pictures:
        ET.fromstring(picture.read_text())


def test_scenarios_whose_names_have_no_letters_for_files_have_names_of_their_own() -> None:
    found = anchored(contests_of([record(OURS, scenario=name, key=name) for name in ("脳", "肺", "brain")]))
    assert {anchor: one.title for anchor, one in found.items()} == {"brain": "brain", "scenario": "肺", "scenario-2": "脳"}


def test_without_results_it_says_what_to_run(tmp_path: Path, excise: Excise) -> None:
    code, _, error = excise("bench", "report", "--home", tmp_path / "none")
    assert code == 2
    assert re.search(r"no results of the benchmark.*excise bench --scenario brain-mri", " ".join(error.split()))
    assert not (tmp_path / "docs").exists()


def test_an_option_before_the_command_is_not_ignored(tmp_path: Path, excise: Excise) -> None:
    code, _, error = excise("bench", "--home", tmp_path, "--seeds", "2", "report")
    assert code == 2
    assert "--home, --seeds before 'report'" in error
    assert "excise bench report" in " ".join(error.split())
