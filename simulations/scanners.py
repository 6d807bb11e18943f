"""The scanners of the simulated hospitals: models that exist, at hospitals that do not, each with a response of its own.

Letters: H rows, W columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

Grey = NDArray[np.float32]


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


REQUEST_STATION = "H2MR1"
"""Station of the scanner that the default request forgets."""


def default_request_device() -> RequestDevice:
    """Name the scanner that the default request forgets: the same one for every seed and every number of hospitals.

    It holds about a fifth of all pictures. Its model may stand at other hospitals too, where it is kept, so a request must
    name the station or the site, not the model alone.
    """
    (scanner,) = (d.scanner for d in make_devices(2, 0) if d.station == REQUEST_STATION)
    return RequestDevice(2, scanner.model, REQUEST_STATION)


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
