"""The benchmark of privacy: its settings, what it keeps, the page and the picture that it writes."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from excise.client.accountant import epsilon
from excise.client.policy import UpdatePrivacySettings
from excise.common.errors import QuorumError
from excise.simulations.bench import privacy as bench
from excise.simulations.bench.privacy import ALL_THREE, UNDISTURBED, recipe, run_seed, variants
from excise.simulations.bench.privacy_page import SCORES, write_privacy_page
from tests.scenarios import events, quiet, scenario

Json = dict[str, Any]


def test_each_setting_turns_one_part_on_or_all() -> None:
    told = {name: one.model_dump(exclude_defaults=True) for name, one in variants(2.0).items()}
    assert [told[f"clip {share}×"] for share in ("1", "0.5", "0.25")] == [{"clip": 2.0}, {"clip": 1.0}, {"clip": 0.5}]
    assert (told["keep 10%"], told["keep 1%"]) == ({"keep_share": 0.1}, {"keep_share": 0.01})
    assert told["noise 0.1"] == {"clip": 2.0, "noise_multiplier": 0.1}
    assert told[ALL_THREE].keys() == {"clip", "noise_multiplier", "keep_share"}


def test_the_recipe_tells_scenarios_apart(tmp_path: Path) -> None:
    here = scenario(tmp_path)
    assert recipe(here) == recipe(scenario(tmp_path))
    assert recipe(here) != recipe(here.model_copy(update={"seed": 1}))


@pytest.fixture(scope="module")
def seed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Json]:
    folder = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patched:
        few = ("clip 0.25×", "keep 10%", "noise 0.1", ALL_THREE)
        patched.setattr(bench, "variants", lambda median: {name: variants(median)[name] for name in few})
        return folder, run_seed(scenario(folder), folder / "seed-0", folder / "cache", quiet)


def test_every_run_unlearns_from_the_same_model_under_its_own_setting(seed: tuple[Path, Json]) -> None:
    folder, found = seed
    results = found["results"]
    originals = [run["scores"]["original"] for run in results.values()]
    assert all(original == originals[0] for original in originals)
    assert set(results[UNDISTURBED]["scores"]) == {"original", "retrained", "unlearned"}
    for name, privacy in variants(found["median"]).items():
        if name in results:
            started = [event["event"] for event in events(folder / "seed-0" / _folder(name))]
            assert "unlearned_round" in started
            spent = set(results[name]["epsilon"].values())
            rounds = results[name]["rounds"]
            wanted = epsilon({privacy.noise_multiplier: rounds}, 1e-5) if privacy.noise_multiplier else None
            assert spent == {wanted}  # JSON has no infinity
    sites = {path.parent.name: path for path in folder.rglob("site.toml")}
    assert len(sites) == 3


def test_updates_are_measured_over_sites_and_rounds(seed: tuple[Path, Json]) -> None:
    folder, found = seed
    history = json.loads((folder / "seed-0" / UNDISTURBED / "metrics.json").read_text())["unlearned"]["history"]
    parameters = sorted(site["norm"] for entry in history for site in entry["updates"].values())
    assert sorted(own for _, own in found["lengths"].values()) == pytest.approx(parameters)
    assert all(total >= own > 0 for total, own in found["lengths"].values())
    assert found["median"] == statistics.median(total for total, _ in found["lengths"].values())


def test_what_is_done_is_not_run_again(seed: tuple[Path, Json], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, found = seed
    monkeypatch.setattr(
        bench, "variants", lambda median: {name: variants(median)[name] for name in list(found["results"])[1:]}
    )
    monkeypatch.setattr(bench, "run_plan", lambda *_: pytest.fail("run again"))
    assert run_seed(scenario(folder), folder / "seed-0", folder / "cache", quiet) == found


def test_a_run_that_breaks_the_model_is_told_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = bench.run_plan

    def breaks(plan: Any, *arguments: Any) -> Any:
        if plan.deployed is not None:
            raise QuorumError("no", ("site-1",), ("diverged",))
        return first(plan, *arguments)

    monkeypatch.setattr(bench, "run_plan", breaks)
    monkeypatch.setattr(
        bench, "variants", lambda median: {"noise 10": UpdatePrivacySettings(clip=median, noise_multiplier=10)}
    )
    found = run_seed(scenario(tmp_path), tmp_path / "seed-0", tmp_path / "cache", quiet)
    assert found["results"]["noise 10"]["failed"] == ["diverged"]


# --- the page ---------------------------------------------------------------------------------------------------------------


def made_up(shift: float, failed: str = "") -> Json:
    """A seed whose scores fall in the order of the settings."""

    def run(value: float, told: float | None) -> Json:
        scores = {"original": 0.9, "retrained": 0.75 + shift, "unlearned": value}
        return {
            "scores": {model: {key: score for _, key in SCORES} for model, score in scores.items()},
            "rounds": 2,
            "epsilon": {"a": told, "b": told},
        }

    results = {UNDISTURBED: run(0.8 + shift, None)}
    for i, (name, privacy) in enumerate(variants(1.0).items()):
        z = privacy.noise_multiplier
        results[name] = run(0.8 + shift - 0.01 * i, epsilon({z: 2}, 1e-5) if z else None)
    if failed:
        results[failed] = {"failed": ["diverged"], "epsilon": {"a": None, "b": 5.0}}
    return {"results": results, "median": 0.25, "lengths": {"0/1": [5.0, 3.0], "0/2": [5.0, 5.0]}}


def test_the_page_holds_every_setting_and_says_what_it_shows(tmp_path: Path) -> None:
    page = tmp_path / "privacy.md"
    write_privacy_page(page, scenario(tmp_path), {0: made_up(0.0), 1: made_up(0.1)})
    text = page.read_text()
    for name in (UNDISTURBED, *variants(1.0)):
        assert f"\n| {name} | " in text
    whole = " ".join(text.split())
    assert "seeds 0, 1," in whole
    assert "Batch-norm statistics are 32% of an update's squared norm" in whole  # (16/25 + 0) / 2
    assert "clipping moved forget accuracy by −0.02, membership AUC by −0.02, held-out accuracy by −0.02" in whole
    assert "keeping the largest numbers alone moved forget accuracy by −0.04" in whole
    assert "The least noise with ε of at most 10 was `noise 10`, and took 0.090 of held-out accuracy." in whole
    assert "The most noise that took no more than" not in whole  # all took more
    line = next(line for line in text.splitlines() if line.startswith("| clip 0.5×"))
    assert line == "| clip 0.5× | ∞ |" + " 0.040 ± 0.000 |" * 3 + " −0.010 ± 0.000 |" * 3
    assert "| retrained | 0.800 ± 0.635 |" in text
    assert f"| {epsilon({10.0: 2}, 1e-5):.3g} |" in next(line for line in text.splitlines() if line.startswith("| noise 10 |"))
    ElementTree.fromstring(page.with_suffix(".svg").read_text())


def test_one_seed_makes_no_claims_and_a_broken_model_is_a_dash(tmp_path: Path) -> None:
    page = tmp_path / "privacy.md"
    write_privacy_page(page, scenario(tmp_path), {0: made_up(0.0, failed="noise 10")})
    text = page.read_text()
    assert "one seed alone, so nothing is claimed beyond it" in " ".join(text.split())
    assert "| noise 10 | ∞ | – | – | – | – | – | – |" in text
    ElementTree.fromstring(page.with_suffix(".svg").read_text())


def _folder(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name)
