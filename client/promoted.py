"""The coordinator's promoted models at a site: fetched in parts, checked, and told which one is in use.

models/<version>.safetensors       whole, and what its signed manifest says it is
models/<version>.part.safetensors  what came of it so far; fetching goes on from there
models/in-use.json                 which one this site says it runs
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from excise.client.coordinator import Coordinator, PromotedModel
from excise.common.errors import ConfigError, DataError
from excise.common.files import storage_errors, write_atomically

MODELS, IN_USE = "models", "in-use.json"
Progress = Callable[[int, int], None]
"""Called with bytes that are there and bytes in all."""


def fetch(
    folder: Path, coordinator: Coordinator, key: str, version: int | None = None, progress: Progress = lambda *_: None
) -> tuple[PromotedModel, Path]:
    """Fetch a model, the one in use without a number; returns it and its file. What is there, and right, is not sent again.

    Parameters
    ----------
    folder : of the site
    key : the coordinator's, with which manifests are signed

    Raises
    ------
    ConfigError : there is no such model; or the one in use there comes before the one in use here, and no number asks for it
    MessageError : its manifest is not the coordinator's, or not of this model
    DataError : what came is not what the manifest says; it is thrown away
    StorageError : it cannot be written; what came so far stays
    """
    models = coordinator.models(key)
    chosen = next((one for one in models if (one.current if version is None else one.version == version)), None)
    if chosen is None:
        raise ConfigError("no model was promoted yet" if version is None else f"there is no model {version}")
    if version is None and chosen.version < (in_use(folder) or 0):
        raise ConfigError(
            f"the coordinator's model in use is {chosen.version}, this site runs model {in_use(folder)} already: the "
            "coordinator rolled back, or somebody replays what it said before. Ask the coordinator; if it did, excise site "
            f"fetch --version {chosen.version}"
        )
    path = folder / MODELS / f"{chosen.version}.safetensors"
    if not path.exists() or _sha256(path) != chosen.manifest["file"]["sha256"]:  # of another coordinator, or damaged since
        part = path.with_name(f"{chosen.version}.part.safetensors")
        _receive(coordinator, chosen, part, progress)
        _check(chosen, part)
        part.replace(path)
    return chosen, path


def use(folder: Path, coordinator: Coordinator, model: PromotedModel) -> None:
    """Tell the coordinator that this site runs a model, which it has fetched.

    Raises
    ------
    ConfigError : it is not here
    StorageError : it cannot be noted
    """
    if not (folder / MODELS / f"{model.version}.safetensors").exists():
        raise ConfigError(f"model {model.version} is not here: excise site fetch --version {model.version}")
    told = {"version": model.version, "requests": model.manifest["requests"]}
    write_atomically(folder / MODELS / IN_USE, json.dumps(told) + "\n")
    coordinator.report(model.version)


def in_use(folder: Path) -> int | None:
    """The model that this site says it runs; None before it said so."""
    path = folder / MODELS / IN_USE
    return int(json.loads(path.read_text())["version"]) if path.exists() else None


def has_forgotten(folder: Path) -> frozenset[str] | None:
    """Ids of the requests that the model in use here has forgotten, by its signed manifest; None where that is not known."""
    path = folder / MODELS / IN_USE
    told = json.loads(path.read_text()).get("requests") if path.exists() else None  # an earlier release did not keep them
    return None if told is None else frozenset(map(str, told))


def _receive(coordinator: Coordinator, model: PromotedModel, part: Path, progress: Progress) -> None:
    with storage_errors(part):
        part.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab") as file:
            if file.tell() > model.size:
                file.truncate(0)
            progress(file.tell(), model.size)
            for offset, data in coordinator.fetch(model.version, file.tell()) if file.tell() < model.size else ():
                if offset != file.tell() or offset + len(data) > model.size:
                    raise DataError(f"bytes of model {model.version} came out of their order: fetch it again")
                file.write(data)
                progress(file.tell(), model.size)
            file.flush()
            os.fsync(file.fileno())


def _check(model: PromotedModel, part: Path) -> None:
    """Throw away what is not the model that was signed. The file is safetensors, which holds no code."""
    from excise.common.weights import digest, load_weights  # torch: seconds, and the watcher does without

    sha = _sha256(part)
    if part.stat().st_size < model.size:
        raise DataError(f"model {model.version} is not whole yet: run excise site fetch again, it goes on where it was")
    if sha != model.manifest["file"]["sha256"]:
        part.unlink()
        raise DataError(
            f"what came is not model {model.version}, as the coordinator signed it; it was thrown away: fetch again"
        )
    if digest(load_weights(part)) != model.manifest["digest"]:
        part.unlink()
        raise DataError(f"the weights of model {model.version} are not those that the coordinator signed; thrown away")


def _sha256(path: Path) -> str:
    with storage_errors(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
