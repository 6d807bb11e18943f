"""The tables of a coordinator's store.

A change here wants a revision in ``migrations/versions``; a test compares the two. Times are UTC in ISO 8601 with
milliseconds, as text: they sort as they stand, and go into JSON as they are.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum

from sqlalchemy import ForeignKey, MetaData, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

NAMES = {
    "ix": "ix_%(column_0_label)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}
"""Names of constraints, the same in every database, so that a migration can name them."""
Name, Time, Hash = String(64), String(32), String(64)


def now() -> str:
    """Tell the time as the store writes it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Table(DeclarativeBase):
    """Base of all tables."""

    metadata = MetaData(naming_convention=NAMES)


class Meta(Table):
    """What there is one of: the hash of the audit log's last line, the release that made the tables."""

    __tablename__ = "meta"
    name: Mapped[str] = mapped_column(Name, primary_key=True)
    value: Mapped[str] = mapped_column(Text)


class SiteState(StrEnum):
    """How far a site is."""

    INVITED = "invited"
    """It has an invite that nobody used yet."""
    ASKING = "asking"
    """Somebody used the invite; a person has to compare the fingerprint before it is let in."""
    ADMITTED = "admitted"
    REVOKED = "revoked"


class Site(Table):
    """One hospital site, from its invite on."""

    __tablename__ = "sites"
    name: Mapped[str] = mapped_column(Name, primary_key=True)
    state: Mapped[str] = mapped_column(Name)
    since: Mapped[str] = mapped_column(Time)
    invite_serial: Mapped[str] = mapped_column(Hash)
    """Serial number of the invite's certificate, hexadecimal: another invite of this site counts no more."""
    node_key: Mapped[str] = mapped_column(Text, default="")
    """With which its SuperNode proves who it is; PEM."""
    signing_key: Mapped[str] = mapped_column(Hash, default="")
    """With which its people sign; Ed25519, hexadecimal."""
    fingerprint: Mapped[str] = mapped_column(Hash, default="")
    """SHA-256 over all its keys, to be compared by telephone."""
    certificate: Mapped[str] = mapped_column(Text, default="")
    """Its certificate for the API when it joined, PEM: an earlier one is not believed."""
    version: Mapped[int | None] = mapped_column(default=None)
    """The model that it says it runs."""
    release: Mapped[str] = mapped_column(Name, default="")
    """Its release of excise."""
    told_at: Mapped[str] = mapped_column(Time, default="")
    """When it told the two above."""


class Request(Table):
    """A forget request, and where it stands (`server/life.py`)."""

    __tablename__ = "requests"
    id: Mapped[str] = mapped_column(Name, primary_key=True)
    digest: Mapped[str] = mapped_column(Hash)
    document: Mapped[str] = mapped_column(Text)
    """Canonical JSON."""
    drafted_by: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(Name)
    since: Mapped[str] = mapped_column(Time)
    run: Mapped[str] = mapped_column(Name, default="")
    """The run that carries it out, alone or with others; empty before."""


class Participant(Table):
    """A site that a request concerns, and what its people decided."""

    __tablename__ = "participants"
    request: Mapped[str] = mapped_column(ForeignKey("requests.id"), primary_key=True)
    site: Mapped[str] = mapped_column(ForeignKey("sites.name"), primary_key=True)
    standing: Mapped[str] = mapped_column(Name, default="pending")
    since: Mapped[str] = mapped_column(Time)
    decision: Mapped[str] = mapped_column(Text, default="")
    """What its people signed, canonical JSON."""
    signature: Mapped[str] = mapped_column(String(128), default="")
    key: Mapped[str] = mapped_column(Hash, default="")
    """The public key that signed, as the site had it then."""


class Account(Table):
    """Somebody who may sign in at the dashboard (`server/users.py`)."""

    __tablename__ = "users"
    name: Mapped[str] = mapped_column(Name, primary_key=True)
    role: Mapped[str] = mapped_column(Name)
    password: Mapped[str] = mapped_column(String(255))
    """Its Argon2id hash, as a PHC string: parameters and salt stand in it."""
    since: Mapped[str] = mapped_column(Time)
    """When it was added or its password changed, whichever was later: a session of before counts no more."""


class Move(Table):
    """One step in the life of a request: who, when, why."""

    __tablename__ = "moves"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    request: Mapped[str] = mapped_column(ForeignKey("requests.id"), index=True)
    before: Mapped[str] = mapped_column(Name)
    after: Mapped[str] = mapped_column(Name)
    by: Mapped[str] = mapped_column(Text)
    why: Mapped[str] = mapped_column(Text)
    at: Mapped[str] = mapped_column(Time)


class Lease(Table):
    """Something that one process at a time may do (`leases.py`)."""

    __tablename__ = "leases"
    name: Mapped[str] = mapped_column(String(128), primary_key=True)
    holder: Mapped[str] = mapped_column(String(128))
    beat: Mapped[int]
    """Counts up while the holder lives."""


class Run(Table):
    """What carries requests out: one folder, one revised model."""

    __tablename__ = "runs"
    name: Mapped[str] = mapped_column(Name, primary_key=True)
    requests: Mapped[str] = mapped_column(Text)
    """Their ids, a JSON list."""
    base: Mapped[int] = mapped_column(ForeignKey("models.version"))
    """The model that it began with."""
    at: Mapped[str] = mapped_column(Time)
    approvals: Mapped[str] = mapped_column(Text)
    """The approvals that stood when it began, a JSON list: request, site, decision, signature, key."""
    document: Mapped[str] = mapped_column(Text, default="")
    """Its evidence, canonical JSON; empty before there is any."""
    digest: Mapped[str] = mapped_column(Hash, default="")
    """SHA-256 of that document."""
    key: Mapped[str] = mapped_column(Hash, default="")
    signature: Mapped[str] = mapped_column(String(128), default="")
    """The coordinator's, and the key it is checked with."""


class EvidenceSignature(Table):
    """A site's signature under the evidence of a run."""

    __tablename__ = "evidence_signatures"
    run: Mapped[str] = mapped_column(ForeignKey("runs.name"), primary_key=True)
    site: Mapped[str] = mapped_column(ForeignKey("sites.name"), primary_key=True)
    key: Mapped[str] = mapped_column(Hash)
    signature: Mapped[str] = mapped_column(String(128))
    at: Mapped[str] = mapped_column(Time)


class Statement(Table):
    """What the coordinator states of a run after its evidence was signed: verified, promoted, rolled back."""

    __tablename__ = "statements"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    run: Mapped[str] = mapped_column(ForeignKey("runs.name"), index=True)
    text: Mapped[str] = mapped_column(Text)
    """Canonical JSON."""
    key: Mapped[str] = mapped_column(Hash)
    signature: Mapped[str] = mapped_column(String(128))


class Model(Table):
    """A model that was in use, or is."""

    __tablename__ = "models"
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    digest: Mapped[str] = mapped_column(Hash)
    """Of its weights (`common/weights.py`)."""
    parent: Mapped[int | None] = mapped_column(ForeignKey("models.version"), default=None)
    run: Mapped[str] = mapped_column(Name, default="")
    """The run that made it; empty for a model that was brought in."""
    state: Mapped[str] = mapped_column(Name)
    """promoted, or rolled back."""
    manifest: Mapped[str] = mapped_column(Text)
    """What sites are told of it, canonical JSON."""
    signature: Mapped[str] = mapped_column(String(128))
    """The coordinator's, of the manifest."""
