"""What must be forgotten, why, and when it counts as forgotten: the document that a person writes and the sites approve.

    id = "scanner-7-retired"
    kind = "device"
    where = 'StationName = "MR7" and StudyDate range 20190101..'
    reason = "coil fault, found at the yearly quality control"

It travels to every site and stands in the evidence for ever, so patients are better named by a list that each site keeps
itself: `where = 'PatientID in @withdrawn'`.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Sequence
from datetime import UTC, date, datetime
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Self

import tomli_w
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from excise.common.errors import RequestError
from excise.common.predicate import Predicate
from excise.common.predicate_parser import parse
from excise.common.validation import explain

# Not a cached_property of the request: model_copy would carry a stale one into a copy with another `where`.
_parsed = lru_cache(maxsize=64)(parse)


# Characters. Longer lists of values belong into a site's own list; the bound also makes pydantic refuse what is not Unicode.
MAX_TEXT = 100_000
Text = Annotated[str, Field(max_length=MAX_TEXT)]


class RequestKind(StrEnum):
    """What a request is about. It chooses defaults and the acceptance rule; which images are meant, only `where` says."""

    DEVICE = "device"
    PATIENTS = "patients"
    SAMPLES = "samples"
    CLASS = "class"
    SITE = "site"
    LABELS = "labels"
    """Images that may stay, had they not been given labels that turned out wrong; sites still hold those labels."""


# A kind that cannot do without one of these fields. A device or a sample can be told by many: a date range, a protocol, a UID.
_NEEDED = {
    RequestKind.CLASS: ("class",),
    RequestKind.SITE: ("site",),
    RequestKind.PATIENTS: ("PatientID", "patient"),
}


LABEL_AGREEMENT = 0.5


class Acceptance(BaseModel):
    """When the result is good enough. Accuracies are fractions of 1: 0.01 is one percentage point."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    held_out_drop: float = Field(0.01, ge=0, le=1)
    """Most accuracy that may be lost on held-out images, over all sites, against the deployed model."""
    worst_site_drop: float = Field(0.03, ge=0, le=1)
    """Most held-out accuracy that any one site may lose."""
    retain_drop: float = Field(0.01, ge=0, le=1)
    """Most accuracy that may be lost on the retain images, over all sites."""
    membership_tolerance: float = Field(0.05, ge=0, le=0.5)
    """Most that the membership test's area under the curve on the forget set may differ from 0.5. Not for kinds `class` and
    `labels`."""
    forget_class_accuracy: float = Field(0.02, ge=0, le=1)
    """Most accuracy that may remain on a forgotten class. For kind `class` only."""
    label_agreement: float = Field(LABEL_AGREEMENT, ge=0, le=1)
    """Share of the withdrawn labels that the model may still give. For kind `labels` only; where many of them are right, and
    are withdrawn since nobody knows which, it has to be more."""


class ForgetRequest(BaseModel):
    """A request to forget: immutable, hashable, and the same after a round trip through TOML or JSON.

    Raises
    ------
    RequestError : `kind` and `where` disagree
    PredicateError : `where` cannot be parsed
    pydantic.ValidationError : any other fault, when constructed directly or as a part of another model; `from_toml` and
        `from_json` turn it into a `RequestError`
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")
    """Name of the request for people, files and log lines; one id is carried out once."""
    kind: RequestKind
    where: Text
    """Which images are meant, in the language of `common/predicate.py`; resolved at the sites only."""
    reason: Text = Field(min_length=1)
    """Why, for those who approve."""
    legal_basis: Text = ""
    """Text for the evidence, such as "GDPR Art. 17 (1) b"; never interpreted."""
    preference: float = Field(0.5, ge=0, le=1)
    """Weight of forgetting against retention when one of several candidates is chosen: 0 retains, 1 forgets at any price."""
    acceptance: Acceptance = Acceptance()
    requested_by: Text = ""
    at: datetime | None = None
    """When it was made, in UTC; a time without a zone is read as UTC."""
    linear_probe: bool = False
    """Whether sites measure as well how much of the forget set the features of the backbone still tell (`client/probe.py`)."""

    @model_serializer(mode="wrap")
    def _as_signed_before(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what is off and was not known before: requests from then keep their text, digest and approvals."""
        told: dict[str, Any] = serialise(self)
        if not self.linear_probe:
            told.pop("linear_probe", None)
        if self.kind is not RequestKind.LABELS and self.acceptance.label_agreement == LABEL_AGREEMENT:
            told["acceptance"].pop("label_agreement", None)
        return told

    @field_validator("where")
    @classmethod
    def _parses(cls, where: str) -> str:
        _parsed(where)
        return where

    @field_validator("at", mode="before")
    @classmethod
    def _in_utc(cls, at: object) -> datetime | None:
        if isinstance(at, str):
            at = datetime.fromisoformat(at)
        elif isinstance(at, date) and not isinstance(at, datetime):
            at = datetime(at.year, at.month, at.day, tzinfo=UTC)
        if at is None:
            return None
        if not isinstance(at, datetime):  # pydantic would read the number 2025 as seconds after 1970
            raise ValueError("expected a date and time such as 2025-01-31T12:00:00Z")
        try:
            return at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)
        except OverflowError:
            raise ValueError("the time is outside the calendar when told in UTC") from None

    @model_validator(mode="after")
    def _kind_fits(self) -> Self:
        needed = _NEEDED.get(self.kind, ())
        named = self.predicate.fields()
        if needed and not named.intersection(needed):
            raise RequestError(
                f"kind '{self.kind}' expects a predicate over {' or '.join(needed)}, but `where` names only "
                f"{', '.join(sorted(named))}: add the field to `where`, or choose the kind that is meant "
                f"({', '.join(kind for kind in RequestKind if kind not in _NEEDED)} go with any field)"
            )
        return self

    @property
    def predicate(self) -> Predicate:
        """`where`, parsed (once per text)."""
        return _parsed(self.where)

    @property
    def preset(self) -> str:
        """Which of the presets of `common/settings.py` carries it out, where nobody asks for other settings."""
        return {RequestKind.CLASS: "classes", RequestKind.LABELS: "labels"}.get(self.kind, "samples")

    @property
    def forget_limit(self) -> float | None:
        """Most accuracy on the forget set, by its labels, in [0, 1]; None where it is to be as on images never seen."""
        rule = self.acceptance
        return {RequestKind.CLASS: rule.forget_class_accuracy, RequestKind.LABELS: rule.label_agreement}.get(self.kind)

    @property
    def digest(self) -> str:
        """SHA-256 of `to_json()` in hexadecimal: what a site approves and signs."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """Return the request as canonical JSON, so that equal requests give equal text.

        Sorted keys, no spaces; every key but those that `_as_signed_before` leaves out.
        """
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read a request from JSON.

        Raises
        ------
        RequestError : not JSON, or not a request; names every faulty key
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"request: not JSON: {error}. Write it with ForgetRequest.to_json") from None
        return cls._checked(data, "request")

    def to_toml(self) -> str:
        """Return the request as TOML, which has no null: a missing `at` is left out."""
        return tomli_w.dumps(self.model_dump(exclude_none=True))

    @classmethod
    def from_toml(cls, text_or_path: str | Path) -> Self:
        """Read a request from TOML: the text itself when given a `str`, the file when given a `Path`.

        Raises
        ------
        RequestError : unreadable file, not TOML, or not a request; names every faulty key
        """
        source, text = "request", text_or_path
        if isinstance(text, Path):
            source = str(text)
            try:
                text = text.read_text(encoding="utf-8-sig")  # some editors put a byte order mark before the first key
            except OSError as error:
                raise RequestError(f"{source}: cannot be read ({error.strerror or error}): check the path") from None
            except UnicodeDecodeError as error:
                raise RequestError(f"{source}: not UTF-8 ({error}): save it as UTF-8") from None
        try:
            data = tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            hint = "" if "=" in text else ". To read a file, pass a pathlib.Path"
            raise RequestError(f'{source}: not TOML: {error}; expected lines such as kind = "device"{hint}') from None
        return cls._checked(data, source)

    @classmethod
    def _checked(cls, data: Any, source: str) -> Self:
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            remedy = "A request needs id, kind, where and reason; correct the above and read it again"
            raise RequestError(f"{explain(error, cls, source)}\n{remedy}") from None


def joined(requests: Sequence[ForgetRequest]) -> ForgetRequest:
    """Several requests as one, for one revised model.

    Apart from each other they would undo each other: what one forgets the others would retain. The strictest of their
    acceptance rules holds; the preference is their mean; one that asks for the linear probe asks for all.

    Raises
    ------
    RequestError : no request, two of one id, or a whole class and something else, which are forgotten in different ways
    """
    if not requests:
        raise RequestError("no request to carry out")
    if len(requests) == 1:
        return requests[0]
    ids = [request.id for request in requests]
    if len(set(ids)) < len(ids):
        raise RequestError(f"two requests have one id: {', '.join(ids)}")
    kinds = {request.kind for request in requests}
    if kinds & {RequestKind.CLASS, RequestKind.LABELS} and len(kinds) > 1:
        raise RequestError(
            "whole classes and wrong labels are each forgotten in another way than devices, patients or samples: "
            "carry them out one after another"
        )
    rules = [request.acceptance.model_dump() for request in requests]
    dates = [request.at for request in requests if request.at]
    where, whole = " or ".join(f"({request.where})" for request in requests), "-and-".join(ids)
    if len(where) > MAX_TEXT:
        raise RequestError(
            f"joined, the predicates have {len(where)} characters, at most {MAX_TEXT}: keep values in a site's list"
        )
    return ForgetRequest(
        # A digest where the names are cut: one id is carried out once.
        id=whole if len(whole) <= 64 else f"{whole[:55].rstrip('-')}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}",
        kind=kinds.pop() if len(kinds) == 1 else RequestKind.SAMPLES,
        where=where,
        reason="; ".join(f"{request.id}: {request.reason}" for request in requests),
        legal_basis="; ".join(f"{request.id}: {request.legal_basis}" for request in requests if request.legal_basis),
        preference=sum(request.preference for request in requests) / len(requests),
        acceptance=Acceptance(**{name: min(rule[name] for rule in rules) for name in rules[0]}),
        requested_by="; ".join(dict.fromkeys(request.requested_by for request in requests if request.requested_by)),
        at=max(dates, default=None),
        linear_probe=any(request.linear_probe for request in requests),
    )
