"""Simulated scanners: real names of real models, and for each device an intensity response of its own.

What a device does to an image is **simulated**: gamma, gain, offset, a smooth bias field, blur and Rician noise, drawn per
device from the seed. It gives a device a visible signature, as real scanners have, without hiding the anatomy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

MODELS = (
    ("SIEMENS", "Skyra", "syngo MR E11"),
    ("GE MEDICAL SYSTEMS", "DISCOVERY MR750", "27LX MR Software release"),
    ("Philips Medical Systems", "Achieva", "5.3.1"),
    ("SIEMENS", "Avanto", "syngo MR B19"),
    ("GE MEDICAL SYSTEMS", "SIGNA HDxt", "24LX MR Software release"),
    ("Philips Medical Systems", "Ingenia", "5.7.1"),
    ("TOSHIBA", "Titan", "V2.50"),
)
"""Manufacturer, ManufacturerModelName and SoftwareVersions as such files carry them."""


@dataclass(frozen=True)
class Response:
    """What a device does to an image in [0, 1]."""

    gamma: float
    gain: float
    offset: float
    bias: tuple[float, float]
    """Relative brightening from one edge to the other, down and across."""
    blur: float
    """Standard deviation, pixels of a 128-pixel image."""
    noise: float
    """Standard deviation of each of the two channels of Rician noise."""


@dataclass(frozen=True)
class Scanner:
    """One device at one hospital."""

    hospital: int
    """Counted from 1."""
    station: str
    manufacturer: str
    model: str
    software: str
    serial: str
    inverted: bool
    """Whether it writes MONOCHROME1."""
    slope: float
    intercept: float
    response: Response


def scanners(hospitals: int, seed: int) -> list[Scanner]:
    """Two or three scanners per hospital; models recur at other hospitals, devices do not."""
    rng = np.random.default_rng([seed, 1])
    devices: list[Scanner] = []
    for hospital in range(1, hospitals + 1):
        for number in range(1, 3 + hospital % 2):
            manufacturer, model, software = MODELS[len(devices) % len(MODELS)]
            devices.append(
                Scanner(
                    hospital=hospital,
                    station=f"H{hospital}MR{number}",
                    manufacturer=manufacturer,
                    model=model,
                    software=software,
                    serial=f"{rng.integers(10_000, 99_999)}",
                    inverted=len(devices) % 4 == 3,
                    # Philips writes a rescale that differs from scanner to scanner; the others store what they mean.
                    slope=round(float(rng.uniform(0.5, 3)), 4) if manufacturer.startswith("Philips") else 1.0,
                    intercept=float(rng.integers(-50, 50)) if manufacturer.startswith("Philips") else 0.0,
                    response=Response(
                        gamma=float(np.exp(rng.uniform(-0.3, 0.3))),
                        gain=float(rng.uniform(0.85, 1.1)),
                        offset=float(rng.uniform(0, 0.05)),
                        bias=(float(rng.uniform(-0.2, 0.2)), float(rng.uniform(-0.2, 0.2))),
                        blur=float(rng.uniform(0, 0.8)),
                        noise=float(rng.uniform(0.005, 0.02)),
                    ),
                )
            )
    return devices


def acquire(image_HW: NDArray[np.float64], response: Response, rng: np.random.Generator) -> NDArray[np.float64]:
    """The image as the device would have taken it, in [0, 1]."""
    height, width = image_HW.shape
    down, across = np.meshgrid(np.linspace(-0.5, 0.5, height), np.linspace(-0.5, 0.5, width), indexing="ij")
    field = 1 + response.bias[0] * down + response.bias[1] * across
    signal = gaussian_filter(image_HW, response.blur * height / 128) ** response.gamma
    signal = response.offset + response.gain * field * signal
    real, imaginary = rng.normal(0, response.noise, (2, height, width))
    taken: NDArray[np.float64] = np.clip(np.hypot(signal + real, imaginary), 0, 1)
    return taken
