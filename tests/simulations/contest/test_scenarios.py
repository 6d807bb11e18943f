"""The benchmark's scenarios: who holds what is forgotten, how much of it there is, and what else differs between them."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor

from excise.client.site import open_site
from excise.common.request import RequestKind
from excise.simulations.contest import fashion
from excise.simulations.contest.fashion import WITHDRAWN, Recipe, fashion_file
from excise.simulations.contest.scenarios import FORGOTTEN, SCENARIOS, scenario_named
from excise.simulations.scenario import Scenario
from excise.simulations.sites import make_sites

IMAGES = 1000
ONE_SITE = [name for name in SCENARIOS if "-one-of-" in name or "one-site" in name or name == "fashion-mislabelled"]
OF_CLASS = {"fashion-10-percent": 10, "fashion-50-percent": 50}
"""How many of the 100 images of the class are forgotten."""


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred images of each class in place of 60,000."""

    def read(*_: object) -> tuple[Tensor, Tensor]:
        noise = torch.rand(IMAGES, 1, 28, 28, generator=torch.Generator().manual_seed(0))
        return noise, torch.arange(IMAGES) % 10

    monkeypatch.setattr(fashion, "read_fashion", read)
    monkeypatch.setattr(fashion, "read_mnist", read)


def held(scenario: Scenario, home: Path) -> tuple[Counter[str], Counter[str], Counter[int]]:
    """Images of each site, those of them that match the request, and of these how many have each class; of any split."""
    every, matching, classes = Counter[str](), Counter[str](), Counter[int]()
    for config in make_sites(scenario, home).configs:
        site = open_site(config)
        rows = site.select(scenario.request)
        of = torch.cat([rows.forget, rows.excluded])
        every[config.parent.name] += len(site.y_N)
        matching[config.parent.name] += len(of)
        classes.update(site.y_N[of].tolist())
    return every, matching, classes


@pytest.mark.parametrize("name", ONE_SITE)
def test_one_site_alone_holds_all_that_is_forgotten(name: str, tmp_path: Path) -> None:
    scenario = scenario_named(name, tmp_path)
    every, matching, classes = held(scenario, tmp_path)
    wanted = 4 if (number := re.search(r"-one-of-(\d+)", name)) is None else int(number[1])
    assert len(every) == scenario.partition.sites == wanted
    assert min(every.values()) > 0
    assert [site for site, images in matching.items() if images] == ["site-1"]
    if scenario.request.kind is RequestKind.LABELS:
        assert matching.total() == 0.3 * IMAGES
    else:
        assert classes == {FORGOTTEN: 100 if scenario.request.kind is RequestKind.CLASS else 10}


@pytest.mark.parametrize(("name", "images"), OF_CLASS.items())
def test_a_share_of_a_class_is_forgotten(name: str, images: int, tmp_path: Path) -> None:
    _, _, classes = held(scenario_named(name, tmp_path), tmp_path)
    assert classes == {FORGOTTEN: images}


def test_a_hundredth_is_one_of_all_images(tmp_path: Path) -> None:
    _, matching, classes = held(scenario_named("fashion-1-percent", tmp_path), tmp_path)
    assert classes.total() == IMAGES / 100
    assert len(classes) > 1
    assert sum(images > 0 for images in matching.values()) > 1


@pytest.mark.parametrize("name", ["fashion-class-all-sites", "mnist-class"])
def test_all_sites_hold_the_class(name: str, tmp_path: Path) -> None:
    every, matching, classes = held(scenario_named(name, tmp_path), tmp_path)
    assert classes == {FORGOTTEN: 100}
    assert len(every) == 4
    assert min(matching.values()) > 0


def test_the_heterogeneity_sweep_differs_in_the_spread_alone(tmp_path: Path) -> None:
    iid, low, high = (scenario_named(f"fashion-10-percent{of}", tmp_path) for of in ("", "-dirichlet-0.1", "-dirichlet-0.5"))
    assert [(one.partition.kind, one.partition.alpha) for one in (low, high)] == [("dirichlet", 0.1), ("dirichlet", 0.5)]
    assert iid.partition.kind == "iid"
    for one in (low, high):
        assert one.partition.sites == iid.partition.sites
        assert one.request.where == iid.request.where
        same = {"name", "partition", "request"}
        assert one.model_dump(exclude=same) == iid.model_dump(exclude=same)
    uneven = []
    for one in (iid, high, low):
        every, _, _ = held(one, tmp_path)
        assert every.total() == IMAGES
        uneven.append(max(every.values()) - min(every.values()))
    assert uneven[0] <= 1 < uneven[1] < uneven[2]


def test_names_of_a_sweep_sort_as_its_numbers() -> None:
    sites = [name for name in SCENARIOS if "-one-of-" in name]
    assert sites == sorted(sites)
    assert [int(name.rpartition("-")[2]) for name in sites] == [2, 4, 8, 16, 32, 64]
    assert sorted(OF_CLASS) == list(OF_CLASS)


def test_three_lists_of_patients_apart_from_each_other(tmp_path: Path) -> None:
    scenario = scenario_named("fashion-three-in-a-row", tmp_path)
    assert [request.id for request in scenario.requests] == ["list-1", "list-2", "list-3"]
    found = list[Counter[str]]()
    for config in make_sites(scenario, tmp_path).configs:
        found += [Counter(str(row.patient).rpartition("-")[0] for row in open_site(config).scan.rows)]
    counts = sum(found, Counter[str]())
    assert counts == {"patient": IMAGES - 90, **{f"{WITHDRAWN}-{number}": 30 for number in (1, 2, 3)}}
    assert all(of[f"{WITHDRAWN}-1"] for of in found)


def test_lists_have_files_of_their_own(tmp_path: Path) -> None:
    one, three = (fashion_file(tmp_path, Recipe(share=0.03, lists=lists)) for lists in (1, 3))
    assert one != three
    assert one.name == f"4000-{WITHDRAWN}-0.03-of-all-0.npz"
