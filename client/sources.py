"""The kinds of places that images come from, each read into the same `Scan` and a way to load one image.

An image is loaded as float32 in [0, 1], rows × columns or rows × columns × 3. Problems are kept, not raised: one bad file
must not stop a site. What makes the whole source unusable raises `DataError`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from excise.client.config import DataSettings, SiteConfig
from excise.client.dicom.index import read_headers, read_labels
from excise.client.dicom.pixels import PIPELINE, decode
from excise.client.table import Problem, Row, Scan, split_of
from excise.common.errors import DataError

Loader = Callable[[int], NDArray[np.float32]]
"""Loads the image of a row, by its number. Raises `DataError` when it cannot."""


@dataclass(frozen=True)
class Source:
    """A site's images before preparation.

    Attributes
    ----------
    scan : usable rows and problems
    load : loads the image of a row
    stamp : changes when the images change; part of the cache key
    """

    scan: Scan
    load: Loader
    stamp: str


def open_source(config: SiteConfig) -> Source:
    """Scan the data that `config` names.

    Raises
    ------
    DataError : the folder, the file or the labels cannot be used at all
    """
    return _READERS[config.data.source](config)


def _dicom(config: SiteConfig) -> Source:
    headers, problems = read_headers(config.data.path)
    labels = read_labels(_labels_path(config.data), "SOPInstanceUID")
    rows: list[Row] = []
    paths: list[Path] = []
    for header in headers:
        uid = str(header.fields["SOPInstanceUID"])
        if uid not in labels:
            problems.append(Problem(uid, "image without a label"))
            continue
        # PatientID is unique only together with its issuer (PS3.3 C.7.1.1).
        patient = f"{header.fields['PatientID']}@{header.fields['IssuerOfPatientID'] or ''}"
        row = _row(config, uid, patient, labels[uid]["label"], problems, dict(header.fields))
        if row:
            rows.append(row)
            paths.append(header.path)
    found = {str(header.fields["SOPInstanceUID"]) for header in headers}
    problems += [Problem(uid, "label without an image") for uid in labels if uid not in found]
    return Source(Scan(rows, problems), lambda i: decode(paths[i]), f"{PIPELINE}|{_stamp(paths)}")


def _image_folder(config: SiteConfig) -> Source:
    """One folder per class; the patient is the part of the file name before the first underscore, if there is one."""
    root = config.data.path
    if not root.is_dir():
        raise DataError(f"no image folder at {root}")
    rows: list[Row] = []
    paths: list[Path] = []
    problems: list[Problem] = []
    for path in sorted(p for p in root.glob("*/*") if p.is_file()):
        item = str(path.relative_to(root))
        patient = path.stem.split("_", 1)[0] if "_" in path.stem else item
        row = _row(config, item, patient, path.parent.name, problems, {})
        if row:
            rows.append(row)
            paths.append(path)
    return Source(Scan(rows, problems), lambda i: _load_picture(paths[i], config.data.channels), _stamp(paths))


def _csv(config: SiteConfig) -> Source:
    """Columns ``image`` (path below `data.path`) and ``label``.

    A predicate can ask for other columns that bear a name of `excise.common.predicate.FIELDS`, such as StationName.
    """
    data = config.data
    rows: list[Row] = []
    paths: list[Path] = []
    problems: list[Problem] = []
    for name, line in read_labels(_labels_path(data), "image").items():
        path = data.path / name
        if not path.is_file():
            problems.append(Problem(name, "label without an image"))
            continue
        others: dict[str, str | None] = {key: value or None for key, value in line.items() if key not in ("image", "label")}
        row = _row(config, name, line.get(data.patient_column) or name, line["label"], problems, others)
        if row:
            rows.append(row)
            paths.append(path)
    return Source(Scan(rows, problems), lambda i: _load_picture(paths[i], data.channels), _stamp(paths))


def read_npz(path: Path) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[Any] | None]:
    """Images, labels and patients (None without a key ``patients``) of a MedMNIST-style file, its parts joined.

    Keys are ``images`` and ``labels``, or ``train_images``, ``val_images``, ``test_images`` and so on. Images are uint8 or
    floats in [0, 1], (N, rows, columns[, 3]).

    Raises
    ------
    DataError : no such file, not npz, or without these keys
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except (OSError, ValueError) as error:
        raise DataError(f"no readable npz file at {path}: {error}") from error
    prefixes = [p for p in ("", "train_", "val_", "test_") if f"{p}images" in arrays]
    lacking = [f"{p}labels" for p in prefixes if f"{p}labels" not in arrays] if prefixes else ["images"]
    if lacking:
        raise DataError(f"{path} lacks {', '.join(lacking)}; it has {', '.join(sorted(arrays))}")

    def joined(kind: str) -> NDArray[Any]:
        return np.concatenate([arrays[f"{p}{kind}"] for p in prefixes])

    images, labels = joined("images"), joined("labels")
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or len(labels) != len(images):
        raise DataError(f"{path}: {len(images)} images but labels of shape {labels.shape}; expected one class per image")
    patients = joined("patients") if all(f"{p}patients" in arrays for p in prefixes) else None
    return images, labels.astype(np.int64), patients


def _npz(config: SiteConfig) -> Source:
    images, labels, patients = read_npz(config.data.path)
    rows: list[Row] = []
    kept: list[int] = []
    problems: list[Problem] = []
    names = config.data.classes
    for i, label in enumerate(labels):
        name = names[label] if 0 <= label < len(names) else str(label)
        row = _row(config, str(i), str(patients[i]) if patients is not None else str(i), name, problems, {})
        if row:
            rows.append(row)
            kept.append(i)
    scale = np.float32(255 if images.dtype == np.uint8 else 1)
    return Source(
        Scan(rows, problems), lambda i: np.asarray(images[kept[i]] / scale, dtype=np.float32), _stamp([config.data.path])
    )


_READERS: dict[str, Callable[[SiteConfig], Source]] = {
    "dicom": _dicom,
    "image-folder": _image_folder,
    "csv": _csv,
    "npz": _npz,
}


def _row(
    config: SiteConfig, item: str, patient: str, label: str, problems: list[Problem], fields: dict[str, str | None]
) -> Row | None:
    if label not in config.data.classes:
        problems.append(Problem(item, f"label '{label}' is none of the classes {', '.join(config.data.classes)}"))
        return None
    fields |= {"site": config.name, "class": label, "patient": patient.split("@")[0], "item": item}
    return Row(item, patient, config.data.classes.index(label), split_of(patient, config.split), fields)


def _labels_path(data: DataSettings) -> Path:
    if data.labels is None:
        raise DataError(f"a '{data.source}' source needs data.labels, a CSV file")
    return data.labels


def _load_picture(path: Path, channels: int) -> NDArray[np.float32]:
    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("L" if channels == 1 else "RGB"), dtype=np.float32) / np.float32(255)
    except (OSError, UnidentifiedImageError, SyntaxError) as error:
        raise DataError(f"not a readable image: {error}") from error


def _stamp(paths: Sequence[Path]) -> str:
    return "|".join(f"{path}:{(stat := path.stat()).st_size}:{stat.st_mtime_ns}" for path in paths)
