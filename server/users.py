"""Users of the dashboard: who may sign in, as what, with which password.

Of a password only its Argon2id hash is kept, and nothing of it is ever told: neither the audit log nor an error holds a
password or a hash.
"""

from __future__ import annotations

import base64
import os
import re
import unicodedata

from cryptography.exceptions import InvalidKey
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from excise.common.errors import ConfigError, did_you_mean
from excise.server.roles import Role, User
from excise.server.store import Store
from excise.server.store.tables import Account, now

USER_NAME = r"[A-Za-z0-9._@-]{1,64}"
"""What a user may be called; an e-mail address can be."""
SHORTEST, LONGEST = 12, 1024
"""Fewest characters of a password, and most bytes: what is longer is no password but work for the server."""
MEMORY, PASSES, LANES = 64 * 1024, 3, 1
"""Cost of Argon2id: KiB, passes over it, threads. More than OWASP's least (46 MiB, 1 pass); memory and passes are those of RFC
9106's second choice. One check takes 0.2 s."""
SALT, HASH = 16, 32
"""Bytes of a salt and of a hash, as RFC 9106 recommends."""


def add(store: Store, name: str, role: Role, password: str, by: str) -> None:
    """Let somebody sign in from now on.

    Raises
    ------
    ConfigError : there is such a user already, or one whose name differs in capitals alone; that is no name of a user; or the
        password is too short, too long or the name
    """
    _check_name(name)
    check_usable(name, password)
    made = _hashed(password)  # before the store's only writer's place is taken: it is slow on purpose
    with store.change() as change:
        _check_free(change.session, name)
        change.session.add(Account(name=name, role=role, password=made, since=now()))
        change.log("user added", user=name, role=role, by=by)


def check_new(store: Store, name: str) -> None:
    """Let a name pass that a new user may have.

    Raises
    ------
    ConfigError : as `add`, of the name
    """
    _check_name(name)
    with store.reading() as session:
        _check_free(session, name)


def _check_name(name: str) -> None:
    if not re.fullmatch(USER_NAME, name):
        raise ConfigError("that is no name of a user: letters, digits and . _ - @, at most 64")


def _check_free(session: Session, name: str) -> None:
    taken = session.scalars(select(Account.name).where(func.lower(Account.name) == name.lower())).first()
    if taken is not None:
        raise ConfigError(
            f"there is a user '{taken}' already: excise server user password {taken} gives it a new password; "
            "for another role remove it first"
        )


def remove(store: Store, name: str, by: str) -> None:
    """Let somebody sign in no more; what it did stays in the audit log.

    Raises
    ------
    ConfigError : there is none of this name
    """
    with store.change() as change:
        change.session.delete(_found(change.session, name))
        change.log("user removed", user=name, by=by)


def set_password(store: Store, name: str, password: str, by: str) -> None:
    """Give a user another password; whoever is signed in by the former is so no more.

    Raises
    ------
    ConfigError : there is none of this name, or the password is too short, too long or the name
    """
    check_usable(name, password)
    made = _hashed(password)
    with store.change() as change:
        row = _found(change.session, name)
        row.password, row.since = made, now()
        change.log("user has a new password", user=name, by=by)


def users(store: Store) -> list[User]:
    """Every user, by name."""
    with store.reading() as session:
        return [_told(row) for row in session.scalars(select(Account).order_by(Account.name))]


def user(store: Store, name: str) -> User | None:
    """The user of this name; None when there is none."""
    row = _row(store, name)
    return _told(row) if row else None


def check_password(store: Store, name: str, password: str) -> User | None:
    """The user of this name, when that is its password; as slow when there is none as when it is another's.

    Guesses are not counted here (`dashboard/sessions.py`). Takes 0.2 s and `MEMORY`, and lets other threads work meanwhile.
    """
    row = _row(store, name)
    too_long = len(password) > LONGEST or len(_bytes(password)) > LONGEST
    try:
        Argon2id.verify_phc_encoded(b"" if too_long else _bytes(password), row.password if row else _of_nobody())
    except InvalidKey:
        return None
    return _told(row) if row else None


def check_usable(name: str, password: str) -> None:
    """Let a password pass that can be used; the text of the error holds nothing of it.

    Raises
    ------
    ConfigError : it is too short, too long, or the user's name
    """
    if len(password) < SHORTEST:
        raise ConfigError(f"the password is too short: at least {SHORTEST} characters")
    if len(password) > LONGEST or len(_bytes(password)) > LONGEST:
        raise ConfigError(f"the password is too long: at most {LONGEST} bytes")
    if password.casefold() == name.casefold():
        raise ConfigError("the password is the user's name: choose another")


def _bytes(password: str) -> bytes:
    """A password as it is hashed: the same, however a keyboard composes an ü (NIST SP 800-63B, 3.1.1.2)."""
    # A lone surrogate has no encoding, and the error would quote the whole password.
    return unicodedata.normalize("NFKC", password).encode("utf-8", "surrogatepass")


def _hashed(password: str) -> str:
    cost = Argon2id(salt=os.urandom(SALT), length=HASH, iterations=PASSES, lanes=LANES, memory_cost=MEMORY)
    return cost.derive_phc_encoded(_bytes(password))


def _of_nobody() -> str:
    """A hash of the same cost that no known password has: checking against it takes as long as against a user's."""
    salt, result = (base64.b64encode(bytes(size)).decode().rstrip("=") for size in (SALT, HASH))
    return f"$argon2id$v=19$m={MEMORY},t={PASSES},p={LANES}${salt}${result}"


def _row(store: Store, name: str) -> Account | None:
    if not re.fullmatch(USER_NAME, name):  # PostgreSQL raises for some characters
        return None
    with store.reading() as session:
        return session.get(Account, name)


def _found(session: Session, name: str) -> Account:
    row = session.get(Account, name, with_for_update=True) if re.fullmatch(USER_NAME, name) else None
    if row is None:
        known = list(session.scalars(select(Account.name)))
        raise ConfigError(f"no user '{name}'; {did_you_mean(name, known) if known else 'none was added yet'}")
    return row


def _told(row: Account) -> User:
    return User(row.name, Role(row.role), row.since)
