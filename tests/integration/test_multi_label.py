"""Images with any number of labels, through the sites and the whole simulation."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from excise.client import rounds
from excise.client.preparation import forgotten_classes
from excise.client.rounds.unlearn import _reference_of
from excise.client.site import open_site
from excise.common.errors import ConfigError, DataError, QuorumError, RequestError
from excise.common.messages import AuditQuery, ReferenceQuery, StatusQuery, UnlearnInstruction
from excise.common.models import build_model
from excise.common.weights import snapshot
from excise.simulations.run import Simulation, new_run_folder, simulate
from tests.scenarios import SIDE, asked_of, hurried, prepared, quiet, run, scenario

Json = dict[str, Any]
NAMES = ("bright", "striped")
ENOUGH: Json = {"rounds": 8, "batch_size": 8, "learning_rate": 0.1, "augment": False}  # to learn both labels


def pictures(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise that may be bright and may have stripes: (count, SIDE, SIDE) and labels (count, 2)."""
    rng = np.random.default_rng(0)
    labels = np.stack([np.arange(count) // 2 % 2, np.arange(count) // 4 % 2], axis=1)
    images = rng.integers(0, 120, (count, SIDE, SIDE))
    images += 60 * labels[:, 0, None, None]
    images[:, ::2] += 70 * labels[:, 1, None, None]
    return images.astype(np.uint8), labels


def write_npz(folder: Path, count: int = 240) -> None:
    images, labels = pictures(count)
    np.savez(folder / "images.npz", images=images, labels=labels, patients=np.arange(count) // 2)


def write_csv(folder: Path, count: int = 240) -> None:
    images, labels = pictures(count)
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "label", "patient"])
        for i, (image, found) in enumerate(zip(images, labels, strict=True)):
            Image.fromarray(image).save(folder / f"{i}.png")
            writer.writerow([f"{i}.png", " | ".join(np.array(NAMES)[found == 1]), f"p{i // 2}"])


def simulated(folder: Path, **changes: Any) -> Simulation:
    changes = {"model": {"multi_label": True}, "training": ENOUGH} | changes
    wanted = scenario(folder, **changes)
    return simulate(wanted, new_run_folder(folder / "runs", wanted), folder / "cache", "inprocess", quiet)


def test_samples_with_labels_are_forgotten_and_reported(tmp_path: Path) -> None:
    write_npz(tmp_path)
    done = simulated(tmp_path, request={"kind": "samples", "where": 'site = site-2 and class = "1"'})
    before, after = (done.results[model]["pooled"] for model in ("original", "unlearned"))
    assert before["held_out_accuracy"] > 0.8  # of labels, one by one
    assert after["held_out_accuracy"] > 0.7
    assert done.results["sites"]["site-2"]["forget"] > 0
    told = {key for key in after if key.startswith("held_out_accuracy_class_")}
    assert told == {f"held_out_accuracy_class_{s}" for s in range(4)}  # both sides of both labels
    assert abs(after["membership_auc"] - 0.5) < 0.3
    assert "An image has any number of labels" in (done.folder / "report.html").read_text()


def test_retain_images_calibrate_each_side_of_each_label(tmp_path: Path) -> None:
    write_npz(tmp_path)
    plan, sites = prepared(
        tmp_path,
        model={"multi_label": True},
        unlearning={"target": {"level": "retain"}},
    )
    asked = asked_of(hurried(plan), sites, tmp_path / "run", UnlearnInstruction)
    assert len(asked) == 6  # three sites, two rounds
    for instruction in asked:
        assert set(instruction.trained) == set(instruction.reference) == {"all", "0", "1", "2", "3"}
        assert instruction.trained != instruction.reference


def test_one_label_is_forgotten_and_the_other_is_kept(tmp_path: Path) -> None:
    write_csv(tmp_path)
    done = simulated(
        tmp_path,
        data={"source": "csv", "path": ".", "labels": "table.csv"},
        request={"kind": "class", "where": "class = striped"},
        unlearning={"preset": "classes", "local": {"rounds": 3, "steps": 20}},
    )
    results = done.results
    before, after, retrained = (results[model]["pooled"] for model in ("original", "unlearned", "retrained"))
    assert before["forget_accuracy"] > 0.8
    assert after["forget_accuracy"] < 0.1  # nobody is found to have the label `striped` any more
    assert retrained["forget_accuracy"] < 0.1
    assert after["forget_accuracy_class_1"] > 0.8  # those of them that are `bright` are still found to be so
    assert after["held_out_accuracy"] > 0.8
    assert all(site["forget"] > 0 for site in results["sites"].values())


def test_sites_read_labels_and_predicates_find_each(tmp_path: Path) -> None:
    write_csv(tmp_path)
    _, labels = pictures(240)
    changes: Json = {"data": {"source": "csv", "path": ".", "labels": "table.csv"}, "partition": {"sites": 1}}
    changes["model"] = {"multi_label": True}
    plan, sites = prepared(tmp_path, **changes, request={"kind": "class", "where": "class = striped and not class = bright"})
    site = open_site(sites.configs[0])
    assert sites.classes == NAMES
    assert site.y_N.tolist() == labels.tolist()
    chosen = site.select(plan.request)
    found = sorted([*chosen.forget.tolist(), *chosen.excluded.tolist()])
    assert found == np.flatnonzero((labels == [0, 1]).all(1)).tolist()


@pytest.mark.parametrize(
    ("where", "named"),
    [
        ("class = striped", [1]),
        ('class = striped and patient matches "p*"', [1]),
        ("class = striped and not class = bright", [1]),
        ("class in (striped, bright)", [0, 1]),
        ("(class = striped and site = site-1) or class = bright", [0, 1]),
        ("class != striped", None),
        ('class = striped or patient matches "p*"', None),
        ("class = striped or class != bright", None),
    ],
)
def test_a_class_request_forgets_the_labels_it_names_and_must_name_some(
    tmp_path: Path, where: str, named: list[int] | None
) -> None:
    write_csv(tmp_path)
    changes: Json = {"data": {"source": "csv", "path": ".", "labels": "table.csv"}, "partition": {"sites": 1}}
    changes["model"] = {"multi_label": True}
    plan, sites = prepared(tmp_path, **changes, request={"kind": "class", "where": where}, unlearning={"preset": "classes"})
    site = open_site(sites.configs[0])
    if named is None:
        with pytest.raises(RequestError, match="none of the labels it names"):
            rounds.status.answer(site, StatusQuery(request=plan.request))
    else:
        rounds.status.answer(site, StatusQuery(request=plan.request))
        forget = site.select(plan.request).forget
        assert len(forget) > 0
        assert list(forgotten_classes(site, site.y_N[forget], plan.request)) == named


def test_a_rare_label_is_told_of_nowhere(tmp_path: Path) -> None:
    images, labels = pictures(240)
    rare = np.zeros((240, 1), dtype=np.int64)
    rare[::20] = 1  # some images, few of any set
    np.savez(tmp_path / "images.npz", images=images, labels=np.concatenate([labels, rare], axis=1))
    plan, sites = prepared(
        tmp_path,
        model={"multi_label": True},
        partition={"sites": 1},
        policy={"min_count": 10},
        request={"kind": "class", "where": 'class = "1" or class = "2"'},
        unlearning={"preset": "classes"},
    )
    site = open_site(sites.configs[0])
    weights = snapshot(build_model(plan.model))
    audit = rounds.audit.answer(site, AuditQuery(model=plan.model, candidates={"a": weights}, request=plan.request)).of("a")
    sets = site.select(plan.request)
    few = int(site.y_N[sets.forget][:, 2].sum())
    assert 0 < few < 10
    assert audit.metrics["forget_scored"] == int(site.y_N[sets.forget][:, 1].sum())  # of the common label alone
    assert not [key for key in (*audit.metrics, *audit.profiles) if key.startswith("forget") and key[-1] in "45"]
    told = rounds.reference.answer(
        site, ReferenceQuery(model=plan.model, teacher=weights, request=plan.request, points=4)
    ).profiles
    assert {"unseen/0", "unseen/1"} <= told.keys()
    assumed = _reference_of({"all": (9.0,) * 4, "0": (1.0,) * 4, "2": (3.0,) * 4, "1": (5.0,) * 4}, site.y_N)
    assert assumed[4].tolist() == [2.0] * 4  # a side nobody told of is as that side of the other labels on average
    assert assumed[5].tolist() == [5.0] * 4


def test_a_model_of_classes_does_not_fit_sites_with_labels(tmp_path: Path) -> None:
    write_npz(tmp_path)
    plan, sites = prepared(tmp_path, model={"multi_label": True})
    classes = plan.model_copy(update={"model": plan.model.model_copy(update={"multi_label": False})})
    with pytest.raises(QuorumError, match=r"site-1 \(bad_data\)"):
        run(classes, sites, tmp_path / "run")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(240, dtype=np.int64), r"expected \(images, labels\), zeros and ones"),
        (np.full((240, 2), 3), "expected zeros and ones when multi_label"),
        (np.full((240, 2), 0.5), "labels are float64"),
        (np.zeros((240, 3), dtype=bool), "holds 3 labels an image, but `classes` names 2"),
    ],
)
def test_labels_that_are_none_are_refused(tmp_path: Path, labels: np.ndarray, message: str) -> None:
    np.savez(tmp_path / "images.npz", images=pictures(240)[0], labels=labels)
    data = {"source": "npz", "path": "images.npz", "classes": ["bright", "striped"]}
    with pytest.raises(DataError, match=message):
        prepared(tmp_path, data=data, model={"multi_label": True})


def test_two_columns_of_labels_hint_at_the_setting(tmp_path: Path) -> None:
    write_npz(tmp_path)
    with pytest.raises(DataError, match="set multi_label"):
        prepared(tmp_path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"source": "image-folder", "path": "."}, "an image of 'image-folder' has one class"),
        ({"source": "npz", "path": "images.npz", "classes": ["a|b", "c"]}, r"the label 'a\|b' is empty, or has a '\|'"),
    ],
)
def test_scenarios_that_cannot_have_labels(tmp_path: Path, data: Json, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        scenario(tmp_path, data=data, model={"multi_label": True})


def test_an_unknown_label_is_left_out_and_said(tmp_path: Path) -> None:
    write_csv(tmp_path)
    _, sites = prepared(
        tmp_path,
        data={"source": "csv", "path": ".", "labels": "table.csv", "classes": ["bright", "right"]},
        model={"multi_label": True},
        partition={"sites": 1},
    )
    site = open_site(sites.configs[0])
    assert len(site.scan.rows) == 120  # the half without stripes
    assert site.y_N.shape == (120, 2)
