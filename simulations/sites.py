"""Making the sites of a scenario: one folder each with the `site.toml` that the client app reads.

Images are not copied: a site of an image folder or CSV collection gets a labels file that names its share. Folders live in
the cache under a digest of all that they depend on, so the same scenario finds its sites, and their caches, again.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tomli_w

from excise.client.config import SEPARATOR, DataSettings, SiteConfig
from excise.client.labels import read_labels
from excise.client.policy import LimitSettings, Metric, PolicySettings
from excise.client.sources import named_labels, open_source, read_npz
from excise.client.table import Row
from excise.common.errors import DataError
from excise.common.files import write_atomically
from excise.common.request import RequestKind
from excise.simulations.hospitals import Recipe, build_hospitals, hospital_folders
from excise.simulations.partition import Patient, deal
from excise.simulations.scenario import Scenario


@dataclass(frozen=True)
class Sites:
    """The `site.toml` of each site in the order of their names, and the class names they share."""

    configs: tuple[Path, ...]
    classes: tuple[str, ...]


def make_sites(scenario: Scenario, cache: Path, progress: Callable[[int, int], None] | None = None) -> Sites:
    """Make, or find again, the sites of `scenario`.

    Raises
    ------
    DataError : the data is missing or cannot be used
    ConfigError : the partition does not fit the data
    StorageError : the cache cannot be written
    """
    source, cache = scenario.data.source, cache.resolve()  # a relative path in a site.toml is relative to that file
    if source == "brain-mri":
        recipe = Recipe(seed=scenario.seed, hospitals=scenario.partition.sites, limit=scenario.data.limit)
        folders = hospital_folders(build_hospitals(cache, recipe, progress))
    elif source == "dicom-sites":
        folders = _dicom_folders(scenario)
    else:
        return _deal_out(scenario, cache)
    tables = (read_labels(folder / "labels.csv", "SOPInstanceUID") for folder in folders.values())
    classes = scenario.data.classes or _named_in(tables, scenario)
    home = cache / "sites" / _key(scenario, *(str(folder) for folder in folders.values()))
    configs = []
    for name, folder in folders.items():
        data = DataSettings(
            source="dicom",
            path=folder / "dicom",
            labels=folder / "labels.csv",
            classes=classes,
            multi_label=scenario.model.multi_label,
            size=scenario.model.size,
            dims=scenario.model.dims,
            channels=_channels(scenario),
        )
        configs.append(_write_site(home, name, scenario, data))
    return Sites(tuple(configs), classes)


def _dicom_folders(scenario: Scenario) -> dict[str, Path]:
    root = _path(scenario)
    folders = {folder.name: folder for folder in sorted(root.glob("*")) if (folder / "labels.csv").is_file()}
    if not folders:
        raise DataError(f"no site in {root}: expected SITE/dicom/ and SITE/labels.csv for each site")
    return folders


def _named_in(tables: Iterable[Mapping[str, Mapping[str, str]]], scenario: Scenario) -> tuple[str, ...]:
    """The classes, or the labels, that tables of labels name."""
    texts = {row["label"] for table in tables for row in table.values()}
    return tuple(sorted({name for text in texts for name in named_labels(text, scenario.model.multi_label)}))


def _deal_out(scenario: Scenario, cache: Path) -> Sites:
    """Deal one collection out to sites of its own kind."""
    whole, classes = _whole(scenario)
    source = open_source(whole)
    rows = source.scan.rows
    if not rows:
        raise DataError(f"no usable image in {whole.data.path}; {len(source.scan.problems)} skipped")
    home_of = deal(_patients(rows, scenario), scenario.partition, scenario.seed)
    home = cache / "sites" / _key(scenario, source.stamp)
    shares: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        shares[home_of[row.patient]].append(row)
    configs = []
    for number in range(scenario.partition.sites):
        name = f"site-{number + 1}"
        data = _write_share(home / name, shares[number], whole.data)
        configs.append(_write_site(home, name, scenario, data))
    return Sites(tuple(configs), classes)


def _whole(scenario: Scenario) -> tuple[SiteConfig, tuple[str, ...]]:
    """The collection as if it were one site."""
    path, source = _path(scenario), scenario.data.source
    assert source in ("image-folder", "csv", "npz")
    if source == "image-folder":
        if not path.is_dir():
            raise DataError(f"no image folder at {path}")
        found = tuple(sorted(folder.name for folder in path.iterdir() if folder.is_dir()))
    elif source == "csv":
        assert scenario.data.labels is not None  # checked by ScenarioData
        found = _named_in([read_labels(scenario.data.labels, "image")], scenario)
    else:
        labels = read_npz(path, scenario.model.multi_label)[1]
        found = tuple(str(c) for c in range(labels.shape[1] if labels.ndim > 1 else int(labels.max()) + 1))
    classes = scenario.data.classes or found
    if len(classes) < (1 if scenario.model.multi_label else 2):
        raise DataError(f"{path} holds {len(classes)} classes; a classifier needs at least two")
    data = DataSettings(
        source=source,
        path=path,
        labels=scenario.data.labels,
        classes=classes,
        multi_label=scenario.model.multi_label,
        size=scenario.model.size,
        dims=scenario.model.dims,
        channels=_channels(scenario),
        patient_column=scenario.data.patient_column,
    )
    return SiteConfig(name="all", data=data), classes


def _patients(rows: Sequence[Row], scenario: Scenario) -> list[Patient]:
    of: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        of[row.patient].append(row)
    predicate = scenario.request.predicate

    def most(values: list[str]) -> str | None:
        return Counter(values).most_common(1)[0][0] if values else None

    return [
        Patient(
            key=key,
            images=len(its),
            label=Counter(row.label for row in its).most_common(1)[0][0],
            device=most(
                [str(d) for row in its if (d := row.fields.get("StationName") or row.fields.get("ManufacturerModelName"))]
            ),
            # Which site an image will lie at is not known yet, so a predicate that names the site is read without it.
            matches=any(predicate.matches({**row.fields, "site": "site-1"}) for row in its),
        )
        for key, its in of.items()
    ]


def _write_share(folder: Path, rows: Sequence[Row], data: DataSettings) -> DataSettings:
    """Write a site's share of the collection and return where it is."""
    if data.source == "npz":
        images, labels, patients = read_npz(data.path, data.multi_label)
        index = np.array([int(row.item) for row in rows], dtype=np.int64)
        arrays = {"images": images[index], "labels": labels[index]}
        if patients is not None:
            arrays["patients"] = patients[index]
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)
        _write_once(folder / "images.npz", buffer.getvalue())
        return data.model_copy(update={"path": folder / "images.npz"})
    extra = sorted({key for row in rows for key in row.fields} - {"site", "class", "patient", "item"})
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["image", "label", "patient", *extra])
    for row in rows:
        named = row.fields["class"]
        label = SEPARATOR.join(named) if isinstance(named, tuple) else named
        writer.writerow([row.item, label, row.patient, *(row.fields.get(key) or "" for key in extra)])
    _write_once(folder / "labels.csv", text.getvalue().encode())
    return data.model_copy(update={"source": "csv", "labels": folder / "labels.csv", "patient_column": "patient"})


def _write_site(home: Path, name: str, scenario: Scenario, data: DataSettings) -> Path:
    # A hospital would choose a secret of its own; a simulation's split must follow from its seed.
    split = scenario.split.model_copy(update={"key": f"{scenario.split.key}-{scenario.seed}"})
    config = SiteConfig(
        name=name,
        data=data,
        split=split,
        policy=PolicySettings(
            min_count=scenario.policy.min_count,
            privacy=scenario.policy.privacy,
            embeddings=scenario.policy.embeddings,
            kinds=tuple(RequestKind),
            approval=False,  # nobody is there to ask
            training=True,
            exact_counts=True,
            metrics=tuple(Metric),
            profiles=True,
        ),
        limits=LimitSettings(rounds=1_000_000, steps=1_000_000),  # a bench runs one request many times
        compute=scenario.compute,
        models=(scenario.model.name,) if ":" in scenario.model.name else (),
        forgotten=scenario.forgotten,
    )
    text = tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))
    path = home / name / "site.toml"
    _write_once(path, text.encode())
    return path


def _write_once(path: Path, content: bytes) -> None:
    """Leave a file that is right already alone: its time is part of the image cache's key."""
    if not (path.exists() and path.read_bytes() == content):
        write_atomically(path, content)


def _key(scenario: Scenario, *stamps: str) -> str:
    parts = ("data", "partition", "split", "policy", "compute", "model", "request")
    told = [getattr(scenario, part).model_dump_json() for part in parts]
    text = json.dumps([scenario.seed, scenario.forgotten, *told, *stamps])
    return f"{scenario.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _path(scenario: Scenario) -> Path:
    assert scenario.data.path is not None  # checked by ScenarioData
    return scenario.data.path


def _channels(scenario: Scenario) -> int:
    return scenario.model.channels
