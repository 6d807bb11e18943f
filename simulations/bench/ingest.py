"""Ingest against the clock: headers and images per second, ours against a plain pydicom loop and against MONAI, and memory.

Every figure is the median of several runs, the ways in turn, on files made for it: real transfer syntaxes, made-up pixels.
"""

from __future__ import annotations

import cProfile
import json
import math
import os
import pstats
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import torch
from loky import ProcessPoolExecutor
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels.processing import apply_modality_lut
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEG2000Lossless, MRImageStorage, RLELossless

from excise.client.config import DataSettings, SiteConfig
from excise.client.dicom.folder import Folder
from excise.client.dicom.headers import KEYWORDS
from excise.client.dicom.index import Index
from excise.client.dicom.pixels import fingerprint_of
from excise.client.images import load_images, prepare
from excise.client.parallel import in_parallel
from excise.client.sources import open_source

SIDE, SIZE = 256, 64
"""Pixels of a file's image, and of the prepared one."""
SYNTAXES = {"uncompressed": ExplicitVRLittleEndian, "RLE": RLELossless, "JPEG 2000": JPEG2000Lossless}
FEWER = {"JPEG 2000": 4}
"""Of this one a fourth of the files will do: decoding it takes ten times as long."""
CLASSES = ("clear", "ill")


@dataclass(frozen=True)
class Rates:
    """Files or images per second, each the median of the runs."""

    plain: float
    excise: float
    monai: float = math.nan

    @property
    def ratio(self) -> float:
        """How many times as fast ours is as the plain loop."""
        return self.excise / self.plain


@dataclass(frozen=True)
class Decoding:
    """Images of one transfer syntax.

    Attributes
    ----------
    cold : nothing was prepared before; ours includes the index
    warm : everything was
    shares : of the time of ours, cold and in one process, by what it went to
    two : how many times as many images two processes at once decode as one, when they do nothing else
    """

    cold: Rates
    warm: Rates
    shares: dict[str, float]
    two: float


@dataclass(frozen=True)
class Indexed:
    """What indexing many headers took."""

    files: int
    seconds: float
    again: float
    """Seconds of a scan that finds nothing new."""
    megabytes: float
    """Largest resident memory of all its processes together; what they share is counted in each."""


def write_files(folder: Path, count: int, syntax: UID) -> SiteConfig:
    """`count` grey 16-bit images and their labels."""
    rng = np.random.default_rng(0)
    x = np.linspace(0, 6, SIDE)
    lines = ["SOPInstanceUID,label"]
    for i in range(count):
        waves = np.sin(x * (1 + i % 7))[:, None] * np.cos(x * (1 + i % 5))[None]
        dataset = _dataset(f"1.2.826.0.1.{i + 1}", f"P{i // 4}")
        dataset.PixelData = (1000 * (waves + 1) + rng.integers(0, 60, (SIDE, SIDE))).astype("<u2").tobytes()
        if syntax != ExplicitVRLittleEndian:
            plugin = "pylibjpeg" if syntax == RLELossless else ""  # the other one is in Python, and slow
            dataset.compress(syntax, generate_instance_uid=False, encoding_plugin=plugin)
        path = folder / "dicom" / f"{i // 100}" / f"{i}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        dataset.save_as(path, enforce_file_format=True)
        lines.append(f"{dataset.SOPInstanceUID},{CLASSES[i % 2]}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    os.sync()  # else the disk is still writing while the first ways are timed
    data = DataSettings(path=folder / "dicom", labels=folder / "labels.csv", classes=CLASSES, size=SIZE)
    return SiteConfig(name="bench", data=data, state=folder / "state")


def _dataset(uid: str, patient: str) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = MRImageStorage, uid
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = f"{uid}.1", f"{uid}.2"
    dataset.StudyDate, dataset.AccessionNumber, dataset.StudyDescription = "20240102", "A1", "head"
    dataset.PatientID, dataset.PatientName, dataset.PatientSex, dataset.Modality = patient, "made^up", "O", "MR"
    dataset.Manufacturer, dataset.ManufacturerModelName, dataset.StationName = "EXCISE", "Bench", "MR1"
    dataset.SoftwareVersions, dataset.ProtocolName, dataset.MagneticFieldStrength = "1.0", "t1", "3"
    dataset.Rows = dataset.Columns = SIDE
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    return dataset


# ---- headers ------------------------------------------------------------------------------------------------------------


def headers(folder: Path, count: int, repeats: int) -> Rates:
    """Headers per second, of files with pixels: reading all that a predicate may ask for, and a scan into a new index."""
    write_headers(folder / "files", count, bytes(2 * SIDE * SIDE))
    paths = sorted(path for path in (folder / "files").rglob("*") if path.is_file())

    def plain() -> None:
        for path in paths:
            dataset = pydicom.dcmread(path, stop_before_pixels=True)
            [str(dataset.get(keyword)) for keyword in KEYWORDS]

    def ours() -> None:
        shutil.rmtree(folder / "state", ignore_errors=True)
        Index(folder / "state" / "index.sqlite", Folder(folder / "files")).scan()

    seconds = _in_turn([plain, ours], repeats)
    return Rates(len(paths) / seconds[0], len(paths) / seconds[1])


# ---- images -------------------------------------------------------------------------------------------------------------


def images(config: SiteConfig, repeats: int) -> Decoding:
    """Images per second, decoded and prepared, and what the time goes to."""
    paths = sorted(path for path in config.data.path.rglob("*") if path.is_file())
    monai_cache = config.state.parent / "monai"

    def plain() -> None:
        torch.stack([torch.from_numpy(_plainly(path)) for path in paths])

    def ours() -> None:
        load_images(config)[1][:]

    def ours_cold() -> None:
        shutil.rmtree(config.state, ignore_errors=True)
        ours()

    some = paths[: math.ceil(len(paths) / 10)]  # it is slow, and as slow for many

    def monai_cold() -> None:
        shutil.rmtree(monai_cache, ignore_errors=True)
        _by_monai(some, monai_cache)

    def monai() -> None:
        _by_monai(some, monai_cache)

    counts = [len(paths)] * 3 + [len(some)] * 2
    seconds = _in_turn([plain, ours_cold, ours, monai_cold, monai], repeats)
    rates = [count / taken for count, taken in zip(counts, seconds, strict=True)]
    cold, warm = Rates(rates[0], rates[1], rates[3]), Rates(rates[0], rates[2], rates[4])
    return Decoding(cold, warm, _shares(config), _two_at_once(paths))


def _shares(config: SiteConfig) -> dict[str, float]:
    """Profile loading everything anew, in this process."""
    source, profile = open_source(config), cProfile.Profile()
    profile.enable()
    for place in source.places:
        prepare(source.read(place).image, config.data.size, config.data.channels)
    profile.disable()
    stats = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    seconds = {name: sum(found[3] for (_, _, called), found in stats.items() if called == name) for name in _PARTS}
    whole = sum(found[2] for found in stats.values())
    shares = {_PARTS[name]: taken / whole for name, taken in seconds.items()}
    return shares | {"the rest": 1 - sum(shares.values())}


_PARTS = {"frame": "decoder", "dcmread": "header", "fingerprint": "fingerprint", "_grey": "window", "prepare": "shrinking"}
"""Functions of ours and of pydicom by what they do; none of them calls another."""


def start_seconds() -> float:
    """How long it takes until as many processes as there are processors can prepare images."""
    began = time.perf_counter()
    batches = ([i] for i in range(2 * (os.cpu_count() or 1)))
    list(in_parallel(_imported, batches, 0))
    return time.perf_counter() - began


def _imported(items: list[int]) -> list[int]:
    return items  # this module, which brings all that preparing needs, is imported by now


def _two_at_once(paths: list[Path]) -> float:
    some = paths[:400]
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(_seconds_decoding, [some[:2]] * 2))  # starts both
        alone = pool.submit(_seconds_decoding, some).result()
        together = list(pool.map(_seconds_decoding, [some, some]))
    return float(2 * alone / max(together))


def _seconds_decoding(paths: list[Path]) -> float:
    datasets = [pydicom.dcmread(path) for path in paths]
    began = time.perf_counter()
    for dataset in datasets:
        fingerprint_of(dataset)
    return time.perf_counter() - began


def _plainly(path: Path) -> np.ndarray:
    dataset = pydicom.dcmread(path)
    values = apply_modality_lut(dataset.pixel_array, dataset).astype(np.float32)
    values = (values - values.min()) / max(float(values.max() - values.min()), 1e-9)
    return prepare(values, SIZE, 1)


def _by_monai(paths: list[Path], cache: Path) -> None:
    from monai.data.dataset import PersistentDataset
    from monai.transforms.compose import Compose
    from monai.transforms.intensity.dictionary import ScaleIntensityd
    from monai.transforms.io.dictionary import LoadImaged
    from monai.transforms.spatial.dictionary import Resized
    from monai.transforms.utility.dictionary import EnsureChannelFirstd

    steps = Compose(
        [
            LoadImaged("image", reader="PydicomReader"),
            EnsureChannelFirstd("image"),
            ScaleIntensityd("image"),
            Resized("image", (SIZE, SIZE), mode="bilinear", anti_aliasing=True),
        ]
    )
    kept = PersistentDataset([{"image": str(path)} for path in paths], steps, cache_dir=cache)
    torch.stack([torch.as_tensor(kept[i]["image"]) for i in range(len(kept))])


def _in_turn(ways: list[Callable[[], None]], repeats: int) -> list[float]:
    """Median seconds of each way."""
    seconds: list[list[float]] = [[] for _ in ways]
    for _ in range(repeats):
        for way, taken in zip(ways, seconds, strict=True):
            began = time.perf_counter()
            way()
            taken.append(time.perf_counter() - began)
    return list(map(statistics.median, seconds))


# ---- memory -------------------------------------------------------------------------------------------------------------

_INDEXING = """
import json, sys, time
from pathlib import Path
from excise.client.dicom.folder import Folder
from excise.client.dicom.index import Index

folder, database = map(Path, sys.argv[1:])
read, seconds = [], []
for _ in range(2):
    began = time.perf_counter()
    read.append(Index(database, Folder(folder)).scan().read)
    seconds.append(time.perf_counter() - began)
print(json.dumps([read[0], *seconds]))
"""


def indexed(folder: Path, count: int) -> Indexed:
    """Index `count` files without pixels, in a process of its own with its workers."""
    write_headers(folder / "headers", count)
    command = [sys.executable, "-c", _INDEXING, str(folder / "headers"), str(folder / "headers.sqlite")]
    largest = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:  # noqa: S603 - ourselves
        while process.poll() is None:
            largest = max(largest, _resident(process.pid))
            time.sleep(0.05)
        told, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"indexing ended with code {process.returncode}")
    files, seconds, again = json.loads(told)
    return Indexed(files, seconds, again, largest / 2**20)


def _resident(group: int) -> int:
    """Bytes of memory that the processes of a group hold now; what they share is counted in each."""
    total = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        if int(fields[2]) == group:
            total += int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
    return total


def write_headers(folder: Path, count: int, pixels: bytes = b"") -> None:
    """`count` files, small ones without `pixels`, each of its own image and every tenth of another patient."""
    template = folder.parent / "template.dcm"
    folder.mkdir(parents=True, exist_ok=True)
    uid, patient = "1.2.826.0.1.9999999", "P999999"
    made = _dataset(uid, patient)
    if pixels:
        made.PixelData = pixels
    made.save_as(template, enforce_file_format=True)
    content = template.read_bytes()
    for i in range(count):
        at = folder / f"{i // 1000}"
        at.mkdir(exist_ok=True)
        other = content.replace(uid.encode(), f"1.2.826.0.1.{i + 1_000_000}".encode())
        (at / f"{i}").write_bytes(other.replace(patient.encode(), f"P{100_000 + i // 10}".encode()))
