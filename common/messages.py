"""The messages of a round, one dataclass each, and how they travel in Flower records.

Fields travel by their declared type: numbers, text and lists in a ConfigRecord, weights in an ArrayRecord of their own,
named numbers in a MetricRecord and named profiles in a ConfigRecord of their own, settings and requests as JSON text.
Each message names its kind and protocol version; an unknown version, another kind or a missing field is refused with a
`MessageError`. Names of numbers and profiles are interned: a thousand sites tell the same ones, which are kept once.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, TypeVar

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from pydantic import BaseModel, ValidationError

from excise.common.errors import MessageError
from excise.common.models import ModelSpec
from excise.common.request import ForgetRequest
from excise.common.settings import TrainingSettings, UnlearningSettings
from excise.common.weights import Weights

PROTOCOL = 3
"""Raised whenever a message gains, loses or changes a field: a release that ignored what another tells it would mislead."""

Profiles = dict[str, tuple[float, ...]]
"""Loss profiles by name (`client/audit.py`, `common/profiles.py`)."""

Requests = tuple[ForgetRequest, ...]

Candidates = dict[str, Weights]
"""Models by name; names hold no slash."""

_RECORDS = (Weights, Candidates, dict[str, float], Profiles)  # field types that travel in a record of their own


@dataclass(frozen=True, kw_only=True)
class Message:
    """Base of all messages: the round trip between a dataclass and a Flower record."""

    KIND: ClassVar[str]

    def to_record(self) -> RecordDict:
        """Pack the fields that are not None."""
        record = RecordDict()
        config = ConfigRecord({"kind": self.KIND, "protocol": PROTOCOL})
        for name, (kind, _) in _fields(type(self)).items():
            value = getattr(self, name)
            if value is None:
                continue
            if kind == Weights:
                record[name] = _arrays(value)
            elif kind == Candidates:
                record[name] = _arrays({f"{model}/{key}": x for model, weights in value.items() for key, x in weights.items()})
            elif kind == dict[str, float]:
                record[name] = MetricRecord(value)
            elif kind == Profiles:
                record[name] = ConfigRecord({key: list(profile) for key, profile in value.items()})
            elif isinstance(value, BaseModel):
                config[name] = value.model_dump_json()
            elif kind == Requests:
                config[name] = [request.model_dump_json() for request in value]
            else:
                config[name] = list(value) if isinstance(value, tuple) else value
        record["message"] = config
        return record

    @classmethod
    def from_record(cls, record: RecordDict) -> Self:
        """Unpack a record of this kind.

        Raises
        ------
        MessageError : another kind, an unknown protocol, or a field that is missing or malformed
        """
        config = record.get("message")
        if not isinstance(config, ConfigRecord):
            raise MessageError(f"expected a '{cls.KIND}' message, got a record without one")
        if config.get("protocol") != PROTOCOL:
            raise MessageError(f"expected protocol {PROTOCOL}, got {config.get('protocol')!r}: install one release")
        if config.get("kind") != cls.KIND:
            raise MessageError(f"expected a '{cls.KIND}' message, got {config.get('kind')!r}")
        values: dict[str, Any] = {}
        for name, (kind, optional) in _fields(cls).items():
            raw = record.get(name) if kind in _RECORDS else config.get(name)
            if raw is None:
                if not optional:
                    raise MessageError(f"a '{cls.KIND}' message came without its field '{name}'")
                values[name] = None
            else:
                values[name] = _decoded(cls.KIND, name, kind, raw)
        return cls(**values)


_FIELDS: dict[type[Message], Mapping[str, tuple[Any, bool]]] = {}
"""By kind of message. Not `functools.cache`: mypy takes no class of a dataclass for a key of it."""


def _fields(message: type[Message]) -> Mapping[str, tuple[Any, bool]]:
    """Per field its declared type without None, and whether None is allowed; found out once for each kind of message."""
    if message not in _FIELDS:
        _FIELDS[message] = _declared(message)
    return _FIELDS[message]


def _declared(message: type[Message]) -> dict[str, tuple[Any, bool]]:
    hints = typing.get_type_hints(message)
    result = {}
    for item in dataclasses.fields(message):
        kind = hints[item.name]
        optional = isinstance(kind, types.UnionType) and type(None) in typing.get_args(kind)
        if optional:
            (kind,) = [option for option in typing.get_args(kind) if option is not type(None)]
        result[item.name] = (kind, optional)
    return result


def _arrays(weights: Weights) -> ArrayRecord:
    return ArrayRecord({key: Array(tensor.contiguous().numpy()) for key, tensor in weights.items()})


def _decoded(message: str, name: str, kind: Any, raw: Any) -> Any:
    if kind == Weights and isinstance(raw, ArrayRecord):
        try:
            return {key: torch.from_numpy(array.numpy().copy()) for key, array in raw.items()}
        except Exception as error:  # numpy and torch answer foreign bytes and dtypes with errors of many types
            raise MessageError(f"field '{name}' of a '{message}' message holds an array that cannot be read") from error
    if kind == Candidates and isinstance(raw, ArrayRecord):
        candidates: Candidates = {}
        for path, tensor in _decoded(message, name, Weights, raw).items():
            model, _, key = path.partition("/")
            candidates.setdefault(model, {})[key] = tensor
        return candidates
    if kind == dict[str, float] and isinstance(raw, MetricRecord):
        return {sys.intern(key): float(value) for key, value in raw.items() if isinstance(value, int | float)}
    if kind == Profiles and isinstance(raw, ConfigRecord):
        return {sys.intern(key): _numbers(message, name, it) for key, it in raw.items() if isinstance(it, list)}
    if kind == Requests and isinstance(raw, list):
        return tuple(_decoded(message, name, ForgetRequest, item) for item in raw)
    if isinstance(kind, type) and issubclass(kind, BaseModel) and isinstance(raw, str):
        try:
            return kind.model_validate_json(raw)
        except ValidationError as error:
            # The text of pydantic's error quotes the input, so only the place of the fault is told.
            places = ", ".join(".".join(map(str, e["loc"])) or e["type"] for e in error.errors())
            raise MessageError(f"field '{name}' of a '{message}' message is malformed: {places}") from None
    if kind == tuple[float, ...] and isinstance(raw, list):
        return _numbers(message, name, raw)
    if kind == tuple[str, ...] and isinstance(raw, list) and all(isinstance(value, str) for value in raw):
        return tuple(raw)
    if isinstance(kind, type) and isinstance(raw, kind) and (kind is bool or not isinstance(raw, bool)):
        return raw
    raise MessageError(f"field '{name}' of a '{message}' message should be {kind}, got {type(raw).__name__}")


def _numbers(message: str, name: str, raw: list[Any]) -> tuple[float, ...]:
    if not all(isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) for value in raw):
        raise MessageError(f"field '{name}' of a '{message}' message should hold finite numbers alone")
    return tuple(map(float, raw))


R = TypeVar("R", bound=Message)
"""A message that is a reply."""


@dataclass(frozen=True, kw_only=True)
class Question(Message):
    """Base of what the coordinator asks. Each tells the site, beside its own matter, what became of an earlier answer."""

    refused: str = ""
    """Code of the site's last answer that was not used, when it has not been told yet: an admission code, "malformed" or
    "late"; empty when there is none."""
    refused_round: str = ""
    """The round that it answered."""


@dataclass(frozen=True, kw_only=True)
class StatusQuery(Question):
    """Who is there, and how many images does the request concern?"""

    KIND: ClassVar[str] = "query.status"
    request: ForgetRequest | None = None
    parts: Requests = ()
    """Requests that it joins."""


@dataclass(frozen=True, kw_only=True)
class SiteStatus(Message):
    """A site's name and its numbers of images."""

    KIND: ClassVar[str] = "status"
    site: str
    train: int
    """Training images, forget set included."""
    forget: int
    """Training images that match the request: n_k^f."""
    excluded: int
    """Held-out and reference images that match it; used no more."""
    reference: int
    held_out: int
    skipped: int
    """Files that could not be read; the site's own scan summary says why."""
    forgotten: int
    """Images that earlier requests forgot; used for nothing."""
    classes: tuple[str, ...]
    """Class names in the order of the logits."""
    parts: tuple[float, ...] = ()
    """Training images that match each of the query's `parts`."""
    commitment: str = ""
    """Keyed hash over the request and the images that it means at this site; it tells nothing of them, and goes into the
    evidence."""
    release: str = ""
    """Its release of excise."""
    source: str = ""
    """SHA-256 over the source that runs there (`common/source.py`)."""

    @property
    def retain(self) -> int:
        """n_k^r: training images that do not match the request."""
        return self.train - self.forget


@dataclass(frozen=True, kw_only=True)
class ReferenceQuery(Question):
    """How uncertain is the teacher on images it never saw? Also brings the teacher to the site."""

    KIND: ClassVar[str] = "query.reference"
    model: ModelSpec
    teacher: Weights
    request: ForgetRequest
    points: int
    """Most points of a loss profile."""
    trained: bool = False
    """Whether to tell the losses on retain images too, for `level = "retain"`."""


@dataclass(frozen=True, kw_only=True)
class ReferenceReply(Message):
    """The teacher's losses on the site's images that were never trained on, as profiles in which each patient counts once.

    A patient with many near-identical images would otherwise decide what the forget set is calibrated to.
    """

    KIND: ClassVar[str] = "reference"
    profiles: Profiles
    """Keys ``<set>/all`` and ``<set>/<class>`` of each class that may be told: set unseen, and trained when asked for, which
    is at most as many retain images. Of labels a class is one side of one (`ModelSpec.strata`), here as in audits."""
    patients: dict[str, float]
    """Patients behind each profile, by the same keys."""
    passes: int


@dataclass(frozen=True, kw_only=True)
class FitInstruction(Question):
    """One round of ordinary federated training."""

    KIND: ClassVar[str] = "train.fit"
    model: ModelSpec
    weights: Weights
    training: TrainingSettings
    round_index: int
    seed: int
    without: ForgetRequest | None = None
    """Train without the images that match: the retrained reference of a simulation."""


@dataclass(frozen=True, kw_only=True)
class UnlearnInstruction(Question):
    """One round of unlearning."""

    KIND: ClassVar[str] = "train.unlearn"
    model: ModelSpec
    weights: Weights
    teacher_digest: str
    request: ForgetRequest
    settings: UnlearningSettings
    """As they are for this site: with its share of every forget batch."""
    a_k: float
    """Weight of the forget term in this site's objective."""
    reference: Profiles
    """Teacher's losses on the pooled images that were never trained on, at evenly spaced levels, ascending: of each class that
    some site told, by its number, moved by its label shift, and of ``all``, not moved; empty unless calibrated."""
    trained: Profiles
    """The same on retain images; empty unless the settings ask for `level = "retain"`."""
    round_index: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class SiteUpdate(Message):
    """What a site learned in one round: Δ_k = θ_k − θ_in over the floating-point tensors, and how it went."""

    KIND: ClassVar[str] = "update"
    weights_in: str
    """Digest of the weights the site started from."""
    delta: Weights
    passes: int
    """Images sent through a model during the round."""
    seconds: float
    metrics: dict[str, float] = field(default_factory=dict)
    """Losses, gradient norm, crossing rate, path length: whatever the round measured."""
    ascent: tuple[float, ...] = ()
    """Left-hand side of the search's convergence bound per step; empty when the search did not run in this round."""


@dataclass(frozen=True, kw_only=True)
class AuditQuery(Question):
    """How good are these models on forget, retain, reference and held-out images?"""

    KIND: ClassVar[str] = "evaluate.audit"
    model: ModelSpec
    candidates: Candidates
    request: ForgetRequest
    parts: Requests = ()
    """Requests that `request` joins, each of whose forget images are scored on their own as well."""
    brief: bool = False
    """Leave held-out images out, and all retain images but as many as there are reference images: enough to judge a round."""


@dataclass(frozen=True, kw_only=True)
class AuditReply(Message):
    """Aggregates over at least the site's `min_count` images; what falls below is left out."""

    KIND: ClassVar[str] = "audit"
    metrics: dict[str, float]
    """Keys ``<candidate>/<set>_<metric>``: sets forget, retain, reference, held_out, and part0, part1, … by the number of the
    part; metrics of `client.audit.measure`. Beside them, of sets forget and held_out, ``<set>_effective``: how many
    independent images they are worth (docs/adr/0018)."""
    profiles: Profiles
    """Keys ``<candidate>/<set>/<class>``: loss profiles of each class but for retain images, for the membership test."""
    passes: int = 0
    """Images sent through a model."""

    def of(self, candidate: str) -> ModelAudit:
        """What was said of one candidate."""
        start = f"{candidate}/"
        return ModelAudit(
            {sys.intern(key.removeprefix(start)): value for key, value in self.metrics.items() if key.startswith(start)},
            {sys.intern(key.removeprefix(start)): value for key, value in self.profiles.items() if key.startswith(start)},
        )


@dataclass(frozen=True, kw_only=True)
class ProbeQuery(Question):
    """How well do the features of these models tell what the request means? Only of requests that ask for it."""

    KIND: ClassVar[str] = "evaluate.probe"
    model: ModelSpec
    candidates: Candidates
    request: ForgetRequest


@dataclass(frozen=True, kw_only=True)
class ProbeReply(Message):
    """What a linear probe found (`client/probe.py`); nothing where there are too few images or patients."""

    KIND: ClassVar[str] = "probe"
    metrics: dict[str, float]
    """Keys ``<candidate>/probe_auc``."""
    images: int
    """Forget images that were probed; 0 where none were."""


@dataclass(frozen=True, kw_only=True)
class MomentsQuery(Question):
    """How are the features of this model spread? The axes of an embedding are found from it."""

    KIND: ClassVar[str] = "evaluate.moments"
    model: ModelSpec
    weights: Weights
    request: ForgetRequest
    points: int
    """Most images of each group (`common/embedding.py`)."""
    dims: int
    """Most dimensions that features are brought to."""


@dataclass(frozen=True, kw_only=True)
class MomentsReply(Message):
    """Mean and covariance of the features, in at most 64 dimensions, of the images that the site would show."""

    KIND: ClassVar[str] = "moments"
    images: int
    """0 where they are too few for so many numbers; then there are none."""
    mean: tuple[float, ...]
    covariance: tuple[float, ...]
    """Upper triangle, row by row; divided by the number of images."""
    passes: int


@dataclass(frozen=True, kw_only=True)
class EmbeddingQuery(Question):
    """Where do these two models put the images, on axes that are the same for both and at every site?"""

    KIND: ClassVar[str] = "evaluate.embedding"
    model: ModelSpec
    candidates: Candidates
    """The models ``before`` and ``after``."""
    request: ForgetRequest
    points: int
    """Most images of each group."""
    mean: tuple[float, ...]
    """What is subtracted from the features, K dimensions."""
    axes: tuple[float, ...]
    """Two axes of length 1 at right angles, K numbers each, the first first."""
    unit: float
    """A standard deviation of all sites' images, in the features' units."""


@dataclass(frozen=True, kw_only=True)
class EmbeddingReply(Message):
    """A point for each image that is shown, in an order that tells nothing; none where the site shows none."""

    KIND: ClassVar[str] = "embedding"
    before: tuple[float, ...]
    """Cells of `common/embedding.py`, x and y of each point in turn."""
    after: tuple[float, ...]
    """The same images in the same order."""
    groups: tuple[float, ...]
    """Number of each point's group."""
    labels: tuple[float, ...]
    """Number of each point's class; −1 where images have any number of labels."""
    passes: int


@dataclass(frozen=True)
class ModelAudit:
    """One model at one site: metrics by ``<set>_<metric>``, profiles by ``<set>/<class>``."""

    metrics: dict[str, float] = field(default_factory=dict)
    profiles: Profiles = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Failure(Message):
    """A site could not do what was asked. Never carries an exception's text."""

    KIND: ClassVar[str] = "failure"
    code: str
    """A `SiteError`."""
    incident: str
    """Number under which the site's own log holds the details."""
