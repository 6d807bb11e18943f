"""Every error that excise raises on purpose, as one tree.

    ExciseError                     exit 1   anything below
    ├── ConfigError                 exit 2   a scenario, setting or command line that cannot be used
    ├── DataError                   exit 2   images or labels that are missing, malformed or too few
    ├── RequestError                exit 2   a forget request that cannot be read
    │   └── PredicateError          exit 2   ... because of its predicate; carries the position
    ├── NothingToForget             exit 3   no image at any site matches the request
    ├── QuorumError                 exit 4   too few sites answered, or signed; names them
    ├── StorageError                exit 5   a file could not be written (disk full, no permission), or a checkpoint is damaged
    ├── Interrupted                 exit 130 Ctrl-C; the run can be resumed
    ├── MessageError                exit 1   a message of an unknown version or without a field
    └── UpdateRefused               exit 1   an update that must not be composed; carries a code

The text of an error says what was expected, what came, and what to do. It is for the machine on which it was raised: what a
site tells the coordinator is only a `SiteError` code and an incident number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from enum import StrEnum


class ExciseError(Exception):
    """Base of all errors raised on purpose."""

    exit_code = 1


class ConfigError(ExciseError):
    """A scenario, setting or command line that cannot be used."""

    exit_code = 2


class DataError(ExciseError):
    """Images or labels that are missing, malformed or too few."""

    exit_code = 2


class RequestError(ExciseError):
    """A forget request that cannot be read."""

    exit_code = 2


class PredicateError(RequestError):
    """A predicate that cannot be parsed.

    Attributes
    ----------
    position : 0-based offset of the offending character in the predicate's text
    """

    def __init__(self, message: str, position: int) -> None:
        super().__init__(f"{message} (at character {position + 1})")
        self.position = position


class NothingToForget(ExciseError):
    """No image at any site matches the request; nothing was changed."""

    exit_code = 3


class QuorumError(ExciseError):
    """Fewer sites answered than the run requires.

    Attributes
    ----------
    missing : names of the sites whose usable answer was awaited
    codes, incidents : why, and the numbers under which the sites' own logs say more, in the order of the names
    """

    exit_code = 4

    def __init__(
        self, message: str, missing: tuple[str, ...], codes: tuple[str, ...] = (), incidents: tuple[str, ...] = ()
    ) -> None:
        super().__init__(message)
        self.missing, self.codes, self.incidents = missing, codes, incidents


class StorageError(ExciseError):
    """A file could not be written, and what was there before is untouched; or a checkpoint is damaged."""

    exit_code = 5


class Interrupted(ExciseError):
    """The user pressed Ctrl-C; every round that was done is kept."""

    exit_code = 130  # the shell's convention for a process ended by SIGINT: 128 + 2


class MessageError(ExciseError):
    """A message of an unknown protocol version, of another kind, or without a field."""


class UpdateRefused(ExciseError):
    """An update that must not be composed.

    Attributes
    ----------
    code : one of the admission codes of ``server/admission.py``
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class SiteError(StrEnum):
    """All that a site ever tells the coordinator about a failure. Details stay in the site's own log."""

    BAD_MESSAGE = "bad_message"
    BAD_REQUEST = "bad_request"
    BAD_DATA = "bad_data"
    BAD_CONFIG = "bad_config"
    UNKNOWN_MODEL = "unknown_model"
    TEACHER_MISSING = "teacher_missing"
    OUT_OF_MEMORY = "out_of_memory"
    STORAGE = "storage"
    DIVERGED = "diverged"
    FORBIDDEN = "forbidden"
    NOT_APPROVED = "not_approved"
    DENIED = "denied"
    OUT_OF_TIME = "out_of_time"
    EGRESS = "egress"
    INTERNAL = "internal"


REMEDIES: Mapping[SiteError, str] = {
    SiteError.BAD_MESSAGE: "the message was of another release or of another kind of model: install the coordinator's release",
    SiteError.BAD_REQUEST: "the request cannot be carried out here, such as for want of a list: excise site dry-run tells why",
    SiteError.BAD_DATA: "the images or labels do not fit the model or the request: excise site doctor and dry-run tell why",
    SiteError.BAD_CONFIG: "site.toml or a key cannot be used: excise site doctor tells which",
    SiteError.UNKNOWN_MODEL: "nobody here knows the model: install the coordinator's release, or name it in site.toml",
    SiteError.TEACHER_MISSING: "nothing: the deployed model is not here any more, and the coordinator brings it again",
    SiteError.OUT_OF_MEMORY: "memory did not suffice: end what else runs there, or choose another device in site.toml",
    SiteError.STORAGE: "a file could not be written or read: excise site doctor tells whether the disk is full",
    SiteError.DIVERGED: "the numbers of the round are not finite: the coordinator runs it with other settings",
    SiteError.FORBIDDEN: "the policy or the limits in site.toml do not allow it: excise site doctor tells what is allowed",
    SiteError.NOT_APPROVED: "a person here decides first: excise site requests list, then approve or deny",
    SiteError.DENIED: "nothing: it was denied here. The coordinator rejects it, or somebody here approves it after all",
    SiteError.OUT_OF_TIME: "the round took longer than limits.seconds in site.toml: raise it, or use a faster device",
    SiteError.EGRESS: "the gate kept the reply here: tell the coordinator, since it may be a fault of excise",
    SiteError.INTERNAL: "a fault of excise: see its text in the log at the debug level, and report it",
}
"""What the site's engineer does about each; the same table is in docs/hospital.md and docs/coordinator.md."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a hint for an unknown name: the closest known one, or all of them."""
    known = sorted(known)
    close = get_close_matches(name, known, n=1)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known)}"
