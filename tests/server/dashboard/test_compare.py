from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from excise.common.errors import RequestError
from excise.server.dashboard.compare import compare

Copy = Callable[..., Path]
Json = dict[str, Any]


def compared(folder: Path, a: str, b: str) -> Json:
    told: Json = json.loads(json.dumps(compare(folder, a, b), allow_nan=False))
    return told


def results(run: Path) -> Json:
    told: Json = json.loads((run / "metrics.json").read_text())
    return told


def test_a_run_does_not_differ_from_itself(made: Path) -> None:
    told = compared(made, "one", "one")
    assert not any(row["differs"] or row["better"] for row in told["rows"])
    assert not any(cell["differs"] for table in told["classes"] for row in table["rows"] for cell in row["cells"])
    assert told["settings"] == []
    assert told["membership"] == {"a": None, "b": None}  # no site of the tiny run has both sides of a class


def test_rows_say_which_is_better(copy: Copy) -> None:
    for name, (forget, retain, auc, ece) in {"a": (0.8, 0.9, 0.6, 0.1), "b": (0.5, 0.95, 0.45, 0.2)}.items():
        run = copy("one", name)
        told = results(run)
        scores = {"forget_accuracy": forget, "retain_accuracy": retain, "membership_auc": auc, "held_out_ece": ece}
        told["unlearned"]["pooled"] |= scores
        told["unlearned"]["pooled"]["held_out_accuracy"] = None if name == "a" else 0.5
        told["retrained"]["pooled"]["forget_accuracy"] = 0.75
        told["unlearned"]["cost"]["passes"] = 100 if name == "a" else 200
        (run / "metrics.json").write_text(json.dumps(told))
    rows = {row["key"]: row for row in compared(run.parent, "a", "b")["rows"]}
    better = {
        key: rows[key]["better"] for key in ("forget_accuracy", "retain_accuracy", "membership_auc", "held_out_ece", "passes")
    }
    assert better == {
        "forget_accuracy": "a",  # nearer to the retrained model's 0.75
        "retain_accuracy": "b",
        "membership_auc": "b",
        "held_out_ece": "a",
        "passes": "a",
    }
    assert rows["retain_accuracy"]["difference"] == pytest.approx(0.05)
    unknown = rows["held_out_accuracy"]
    assert (unknown["a"], unknown["difference"], unknown["differs"], unknown["better"]) == (None, None, True, None)


@pytest.mark.parametrize(("seconds", "better"), [((7.8, 8.2), None), ((7.8, 9.8), "a"), ((0.0, 0.0), None)])
def test_times_that_differ_by_noise_are_the_same(copy: Copy, seconds: tuple[float, float], better: str | None) -> None:
    for name, time in zip("ab", seconds, strict=True):
        run = copy("one", name)
        told = results(run)
        told["unlearned"]["cost"]["seconds"] = time
        (run / "metrics.json").write_text(json.dumps(told))
    (row,) = [row for row in compared(run.parent, "a", "b")["rows"] if row["key"] == "seconds"]
    assert (row["better"], row["differs"]) == (better, better is not None)


@pytest.mark.parametrize("knows", ["a", "b"])
def test_classes_have_the_names_that_either_run_knows(copy: Copy, knows: str) -> None:
    for name in "ab":
        run = copy("one", name)
        told = tomllib.loads((run / "config.toml").read_text())
        told.setdefault("data", {})["classes"] = ["healthy", "tumour"] if name == knows else []
        (run / "config.toml").write_text(tomli_w.dumps(told))
    assert compared(run.parent, "a", "b")["classes"][1]["classes"] == ["healthy", "tumour"]


WORST = {"site": "site-3", "value": 0.7, "low": 0.4, "high": 0.9}


def with_worst(run: Path) -> Path:
    """The run, in which one site's own membership test found something."""
    told = results(run)
    told["verification"]["worst_site"]["membership_auc"] = WORST
    (run / "metrics.json").write_text(json.dumps(told))
    return run


def test_two_candidates_of_one_run(copy: Copy) -> None:
    run = with_worst(copy("two"))
    told, of = compared(run.parent, "two/gentle", "two/nearest"), results(run)["candidates"]
    assert (told["a"]["digest"], told["b"]["digest"]) == (of["gentle"]["digest"], of["nearest"]["digest"])
    settings = {row["key"]: (row["a"], row["b"]) for row in told["settings"]}
    assert settings["unlearning.local.rounds"] == (1, 2)
    assert settings["unlearning.target.kind"] == ("calibrated", "nearest")
    assert not [key for key in settings if key.startswith(("training", "request", "candidates"))]
    chosen = [of[name]["chosen"] for name in ("gentle", "nearest")]
    assert [told["membership"][side] for side in "ab"] == [WORST if one else None for one in chosen]


def test_a_run_is_its_chosen_candidate(copy: Copy) -> None:
    run = with_worst(copy("two"))
    chosen = results(run)["unlearned"]["candidate"]
    told = compared(run.parent, "two", f"two/{chosen}")
    scores = [row for row in told["rows"] if row["key"].endswith(("accuracy", "auc", "ece"))]
    assert not any(row["differs"] for row in scores)
    assert told["settings"] == []
    assert told["membership"] == {"a": WORST, "b": WORST}


def test_classes_at_each_site(copy: Copy) -> None:
    copy("one", "a")
    run = copy("one", "b")
    told = results(run)
    before = told["unlearned"]["sites"]["site-1"]["retain_accuracy_class_1"]
    told["unlearned"]["sites"]["site-1"]["retain_accuracy_class_1"] = before - 0.25
    (run / "metrics.json").write_text(json.dumps(told))
    tables = {table["set"]: table for table in compared(run.parent, "a", "b")["classes"]}
    assert tables["retain"]["classes"] == ["class 0", "class 1"]
    differ = [(row["site"], n) for row in tables["retain"]["rows"] for n, cell in enumerate(row["cells"]) if cell["differs"]]
    assert differ == [("site-1", 1)]
    assert tables["retain"]["rows"][0]["cells"][1]["difference"] == pytest.approx(-0.25)


def test_settings_that_differ_without_what_names_a_patient(copy: Copy) -> None:
    copy("one", "a")
    run = copy("one", "b")
    text = (run / "config.toml").read_text().replace("site = site-2 and class = 1", "patient = CANARY")
    (run / "config.toml").write_text(text.replace("seed = 0", "seed = 7"))
    told = compared(run.parent, "a", "b")
    assert {row["key"]: (row["a"], row["b"]) for row in told["settings"]} == {
        "seed": (0, 7),
        "request.where": ("site = site-2 and class = 1", "by patient (values are not shown)"),
    }
    assert "CANARY" not in json.dumps(told)


def test_where_weights_are_is_no_setting_that_differs(copy: Copy) -> None:
    for name in ("a", "b"):
        run = copy("one", name)
        text = (run / "config.toml").read_text()
        (run / "plan.toml").write_text(f'deployed = "{run}/deployed.safetensors"\nretrained = "{run}/r.safetensors"\n{text}')
    assert compared(run.parent, "a", "b")["settings"] == []


def test_a_run_without_results_shows_its_settings(copy: Copy) -> None:
    copy("one", "a")
    (copy("one", "b") / "metrics.json").unlink()
    told = compared(copy("two", "c").parent, "a", "b")
    assert (told["a"]["measured"], told["b"]["measured"]) == (True, False)
    assert all(row["b"] is None and row["better"] is None for row in told["rows"])
    assert told["membership"]["b"] is None


@pytest.mark.parametrize("name", ["none", "one/none", "two/none", "../one", "two/../one", ""])
def test_what_is_not_there_is_refused(name: str, made: Path) -> None:
    with pytest.raises(RequestError):
        compare(made, "one", name)
