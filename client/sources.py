"""The kinds of places that images come from, each read into the same `Scan` and a way to load one image.

Problems are kept, not raised: one bad file must not stop a site. What makes the whole source unusable raises `DataError`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from excise.client.config import SEPARATOR, DataSettings, SiteConfig
from excise.client.decoded import Decoded, fingerprint
from excise.client.dicom.folder import Folder, shown
from excise.client.dicom.index import Index
from excise.client.dicom.pixels import Rules
from excise.client.dicom.web import Pacs
from excise.client.labels import read_labels
from excise.client.table import Problem, Row, Scan, split_of
from excise.common.errors import DataError
from excise.common.predicate import Value


@dataclass(frozen=True)
class Source:
    """A site's images before preparation.

    Attributes
    ----------
    scan : usable rows and problems
    places : where the image of each row is: a path, or a number
    read : reads the image at a place; raises `DataError` when it cannot
    stamps : one for each row, changes when its image changes
    identify : the fingerprint of the image at a place, of images that are not used too; raises `DataError` when it cannot
    parallel : whether `read` and places may go to another process
    """

    scan: Scan
    places: Sequence[Any]
    read: Callable[[Any], Decoded]
    stamps: Sequence[str]
    identify: Callable[[Any], str]
    parallel: bool = True

    @property
    def stamp(self) -> str:
        """Changes when any image changes, comes or goes."""
        items = "|".join(f"{row.item}:{stamp}" for row, stamp in zip(self.scan.rows, self.stamps, strict=True))
        return hashlib.sha256(items.encode("utf-8", "surrogateescape")).hexdigest()

    def load(self, row: int) -> NDArray[np.float32]:
        """The image of a row, as in `Decoded`.

        Raises
        ------
        DataError : it cannot be read
        """
        return self.read(self.places[row]).image


def open_source(config: SiteConfig) -> Source:
    """Scan the data that `config` names.

    Raises
    ------
    DataError : the folder, the file or the labels cannot be used at all
    """
    return _READERS[config.data.source](config)


def index_of(config: SiteConfig) -> Index:
    """The index of the site's DICOM folder or PACS."""
    return Index(config.state / "index.sqlite", Pacs(config.data.pacs) if config.data.pacs else Folder(config.data.path))


def rules_of(data: DataSettings) -> Rules:
    """What the site wants of its DICOM files."""
    return Rules(colour=data.channels == 3, frames=data.frames, ct_window=data.ct_window)


def _dicom(config: SiteConfig) -> Source:
    """As the last scan found it; the place is walked only when there was none yet: every message opens a site anew."""
    index = index_of(config)
    if not index.whole:
        index.scan()
    labels = read_labels(_labels_path(config.data), "SOPInstanceUID")
    problems = _unusable(config, index)
    rows: list[Row] = []
    places: list[Any] = []
    stamps: list[str] = []
    found: set[str] = set()
    copies = index.copies()
    for path, stamp, header in index.headers():
        uid = str(header["SOPInstanceUID"])
        found.add(uid)
        # PatientID is unique only together with its issuer (PS3.3 C.7.1.1).
        patient = f"{header['PatientID']}@{header['IssuerOfPatientID'] or ''}"
        named = named_labels(labels[uid]["label"], config.data.multi_label) if uid in labels else None
        row = _row(config, uid, str(header["PatientID"]), named, header, patient)
        if uid in copies:
            others = (_fields(config, uid, str(other["PatientID"]), named, other) for other in copies[uid])
            row = replace(row, copies=tuple(others))
        if isinstance(row, Problem):
            problems.append(replace(row, place=path, stamp=stamp))
            continue
        rows.append(row)
        places.append(path)
        stamps.append(stamp)
    problems += [Problem(uid, "label without an image") for uid in labels if uid not in found]
    read = partial(index.place.decode, rules=rules_of(config.data))
    return Source(Scan(rows, problems), places, read, stamps, index.place.identify)


def _unusable(config: SiteConfig, index: Index) -> list[Problem]:
    """Files that cannot be used, with what is known of them."""
    problems = {problem.item: problem for problem in index.problems()}
    for path, stamp, header, reason in index.unusable():
        uid = str(header["SOPInstanceUID"] or shown(path))
        fields = _fields(config, uid, str(header["PatientID"] or ""), None, header)
        problems[shown(path)] = Problem(shown(path), reason, fields, place=path, stamp=stamp)
    return list(problems.values())


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
        row = _row(config, item, patient, [path.parent.name], {})
        if isinstance(row, Problem):
            problems.append(replace(row, place=path))
        else:
            rows.append(row)
            paths.append(path)
    return _pictures(config, rows, paths, problems)


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
        others: dict[str, Value] = {key: value or None for key, value in line.items() if key not in ("image", "label")}
        patient, named = line.get(data.patient_column) or name, named_labels(line["label"], data.multi_label)
        row = _row(config, name, patient, named, others)
        if isinstance(row, Problem):
            problems.append(replace(row, place=path))
        else:
            rows.append(row)
            paths.append(path)
    return _pictures(config, rows, paths, problems)


def _pictures(config: SiteConfig, rows: list[Row], paths: list[Path], problems: list[Problem]) -> Source:
    read = partial(_load_picture, channels=config.data.channels)
    return Source(Scan(rows, problems), paths, read, list(map(_stamp, paths)), lambda path: read(path).pixels)


def read_npz(path: Path, multi_label: bool = False) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[Any] | None]:
    """Images, labels and patients (None without a key ``patients``) of a MedMNIST-style file, its parts joined.

    Labels are the numbers of the classes, (N,); zeros and ones, (N, labels), when `multi_label`. Keys are ``images`` and
    ``labels``, or ``train_images``, ``val_images``, ``test_images`` and so on. Images are uint8 or floats in [0, 1],
    (N, rows, columns[, 3]); volumes (N, slices, rows, columns[, 3]).

    Raises
    ------
    DataError : no such file, not npz, without these keys, or arrays that do not fit together
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = dict(file)
    except Exception as error:  # numpy, zip and zlib answer damaged bytes with errors of many types
        raise DataError(f"no readable npz file at {path}: {error}") from error
    prefixes = [p for p in ("", "train_", "val_", "test_") if f"{p}images" in arrays]
    lacking = [f"{p}labels" for p in prefixes if f"{p}labels" not in arrays] if prefixes else ["images"]
    if lacking:
        raise DataError(f"{path} lacks {', '.join(lacking)}; it has {', '.join(sorted(arrays))}")

    def joined(kind: str) -> NDArray[Any]:
        try:
            return np.concatenate([arrays[f"{p}{kind}"] for p in prefixes])
        except ValueError as error:
            raise DataError(f"{path}: the parts of {kind} do not fit together: {error}") from error

    images, labels = joined("images"), joined("labels")
    if not multi_label and labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 + multi_label or len(labels) != len(images):
        told = f"{path}: {len(images)} images but labels of shape {labels.shape}; expected "
        if multi_label:
            raise DataError(f"{told}(images, labels), zeros and ones")
        hint = ". Where an image has any number of labels, set multi_label" if labels.ndim == 2 else ""
        raise DataError(f"{told}one class per image{hint}")
    if multi_label and labels.dtype == bool:
        labels = labels.astype(np.uint8)
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{path}: labels are {labels.dtype}; expected the numbers of the classes, or zeros and ones of labels")
    if multi_label and not np.isin(labels, (0, 1)).all():
        raise DataError(f"{path}: labels are {labels.min()} to {labels.max()}; expected zeros and ones when multi_label")
    if images.ndim not in (3, 4, 5) or not (images.dtype == np.uint8 or np.issubdtype(images.dtype, np.floating)):
        raise DataError(f"{path}: images are {images.dtype} of shape {images.shape}; expected uint8 or floats, one row each")
    patients = joined("patients") if all(f"{p}patients" in arrays for p in prefixes) else None
    if patients is not None and len(patients) != len(images):
        raise DataError(f"{path}: {len(images)} images but {len(patients)} patients")
    return images, labels.astype(np.int64), patients


def _npz(config: SiteConfig) -> Source:
    images, labels, patients = read_npz(config.data.path, config.data.multi_label)
    rows: list[Row] = []
    kept: list[int] = []
    problems: list[Problem] = []
    names, dims = config.data.classes, config.data.dims
    channels = images.shape[1 + dims :]
    if config.data.multi_label and labels.shape[1] != len(names):
        raise DataError(f"{config.data.path} holds {labels.shape[1]} labels an image, but `classes` names {len(names)}")
    if images.ndim < 1 + dims or channels not in ((), (1,), (3,)):
        kinds = {2: "images (N, rows, columns[, 3])", 3: "volumes (N, slices, rows, columns[, 3])"}
        hint = "; for volumes set dims = 3" if dims == 2 and images.ndim > 3 else ""
        raise DataError(f"{config.data.path} holds arrays of shape {images.shape}; expected {kinds[dims]}{hint}")
    for i, label in enumerate(labels):
        found = np.flatnonzero(label) if config.data.multi_label else [label]
        named = [names[c] if 0 <= c < len(names) else f"number {c}" for c in found]
        row = _row(config, str(i), str(patients[i]) if patients is not None else str(i), named, {})
        if isinstance(row, Problem):
            problems.append(replace(row, place=i))
        else:
            rows.append(row)
            kept.append(i)
    stamps = [_stamp(config.data.path)] * len(rows)
    scan = Scan(rows, problems)
    return Source(scan, kept, lambda i: _from_array(images[i]), stamps, lambda i: fingerprint(images[i]), parallel=False)


def _from_array(image: NDArray[Any]) -> Decoded:
    values = np.asarray(image / np.float32(255 if image.dtype == np.uint8 else 1), dtype=np.float32)
    if not (values.min() >= 0 and values.max() <= 1):
        raise DataError(f"floats must lie in [0, 1], got {values.min():g} to {values.max():g} (NaN also fails)")
    return Decoded(values, fingerprint(image))


_READERS: dict[str, Callable[[SiteConfig], Source]] = {
    "dicom": _dicom,
    "dicomweb": _dicom,
    "image-folder": _image_folder,
    "csv": _csv,
    "npz": _npz,
}


def named_labels(text: str, multi_label: bool) -> list[str]:
    """What a table's column `label` names: one class, or the labels that are parted by ``|``."""
    return [name for part in text.split(SEPARATOR) if (name := part.strip())] if multi_label else [text]


class _Joined(Mapping[str, Value]):
    """Our own fields of an image before those of its header, without a copy: there may be a hundred thousand of them."""

    __slots__ = ("others", "own")

    def __init__(self, own: Mapping[str, Value], others: Mapping[str, Value]) -> None:
        self.own, self.others = own, others

    def __getitem__(self, name: str) -> Value:
        return self.own[name] if name in self.own else self.others[name]

    def __iter__(self) -> Iterator[str]:
        return iter({**self.own, **self.others})

    def __len__(self) -> int:
        return len({**self.own, **self.others})


def _row(
    config: SiteConfig,
    item: str,
    patient: str,
    named: Sequence[str] | None,
    others: Mapping[str, Value],
    key: str | None = None,
) -> Row | Problem:
    """A row, split by `key` (without one, by `patient`); a problem when a class or label is unknown, or there is none."""
    classes = config.data.classes
    fields = _fields(config, item, patient, named, others)
    if named is None:
        return Problem(item, "image without a label", fields)
    for name in named:
        if name not in classes:
            kind = "labels" if config.data.multi_label else "classes"
            return Problem(item, f"label '{name}' is none of the {kind} {', '.join(classes)}", fields)
    key, numbers = key or patient, sorted({classes.index(name) for name in named})
    return Row(item, key, tuple(numbers) if config.data.multi_label else numbers[0], split_of(key, config.split), fields)


def _fields(
    config: SiteConfig, item: str, patient: str, named: Sequence[str] | None, others: Mapping[str, Value]
) -> Mapping[str, Value]:
    """What a predicate may ask for; an image without a label has no ``class``."""
    told: Value = None if named is None else tuple(named) if config.data.multi_label else named[0]
    return _Joined({"site": config.name, "class": told, "patient": patient, "item": item}, others)


def _labels_path(data: DataSettings) -> Path:
    if data.labels is None:
        raise DataError(f"a '{data.source}' source needs data.labels, a CSV file")
    return data.labels


def _load_picture(path: Path, channels: int) -> Decoded:
    try:
        with Image.open(path) as picture:
            if picture.mode.startswith("I;16"):  # Pillow's own conversion to 8 bits would cut at 255: a white image
                stored = np.asarray(picture)
                return Decoded(stored.astype(np.float32) / np.float32(65535), fingerprint(stored))
            if picture.mode not in ("I", "F"):
                image = np.asarray(picture.convert("L" if channels == 1 else "RGB"), dtype=np.float32) / np.float32(255)
                return Decoded(image, fingerprint(np.asarray(picture.convert("RGB"))))
            mode = picture.mode
    except Exception as error:  # Pillow answers damaged bytes with errors of many types
        raise DataError(f"not a readable image: {error}") from error
    raise DataError(f"image of mode {mode}; expected 8 or 16 bits per channel")


def _stamp(path: Path) -> str:
    stat = path.stat()
    return f"{stat.st_size}:{stat.st_mtime_ns}"
