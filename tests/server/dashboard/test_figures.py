"""Figures of the drawn panels: what is drawn, and what is said where there is nothing to draw."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from excise.server.dashboard.figures import curve, heat, pareto
from excise.server.dashboard.panels import HEAT
from excise.server.dashboard.run_view import run_view


def test_the_deployed_model_stands_beside_what_was_tried(made: Path) -> None:
    run, told = made / "two", json.loads((made / "two" / "metrics.json").read_text())
    figure = pareto(run_view(run.parent, run.name), run.parent)
    scores = told["original"]["pooled"]
    target = told["retrained"]["pooled"]["forget_accuracy"] if "retrained" in told else scores["matched_held_out_accuracy"]
    assert figure["original"] == {"x": abs(scores["forget_accuracy"] - target), "y": scores["retain_accuracy"]}
    assert [one["name"] for one in figure["candidates"] if one["chosen"]] == [told["unlearned"]["candidate"]]


def test_a_site_whose_membership_auc_was_measured_has_a_cell_of_it(copy: Callable[..., Path]) -> None:
    run = copy()
    told = json.loads((run / "metrics.json").read_text())
    told["original"]["sites"]["site-2"]["membership_auc"] = 0.75
    told["unlearned"]["sites"]["site-2"]["membership_auc"] = 0.45
    (run / "metrics.json").write_text(json.dumps(told))
    figure = heat(run_view(run.parent, run.name), run.parent)
    column, row = [key for key, *_ in HEAT].index("membership_auc"), figure["sites"].index("site-2")
    (cell,) = [cell for cell in figure["cells"] if cell[0] == column and cell[2] is not None]
    assert cell[1] == row
    assert cell[2:4] == pytest.approx([-0.3, 1.0])
    assert cell[4] is None


def test_a_cell_of_few_images_says_how_few(made: Path) -> None:
    view = run_view(made, "one")
    view["heat"]["sites"][0]["cells"][0] |= {"change": None, "gain": None, "below": 10}
    assert heat(view, made)["cells"][0] == [0, 0, None, None, 10]


def test_best_and_last_values_are_both_told(made: Path) -> None:
    view = run_view(made, "one")
    (shown,) = view["series"]["candidates"]
    shown["best"]["forget_accuracy"] = {"round": 1, "value": 0.5}
    shown["last"]["forget_accuracy"] = {"round": 2, "value": 0.75}
    shown["best"]["retain_accuracy"] = None
    assert curve(view, made)["note"] == "forget: best 0.500 (round 1), last 0.750"


def test_of_many_sites_those_that_lost_most_are_drawn(made: Path) -> None:
    view = run_view(made, "one")
    (like, *_) = view["heat"]["sites"]
    view["heat"]["sites"] = [
        {"site": f"s{n:02}", "cells": [cell | {"change": 0.0, "gain": -n / 100} for cell in like["cells"]]} for n in range(30)
    ]
    figure = heat(view, made)
    assert figure["sites"] == [f"s{n}" for n in range(18, 30)]
    assert figure["note"] == "the 12 of 30 sites that lost most by any score"
    assert len(figure["cells"]) == 12 * len(HEAT)
    view["heat"]["sites"] = view["heat"]["sites"][:12]
    assert heat(view, made)["note"] == ""


def test_without_anything_measured_it_is_said(tmp_path: Path) -> None:
    assert pareto(None, tmp_path) == {"missing": "nothing was tried yet"}
    assert "missing" in heat(None, tmp_path)
