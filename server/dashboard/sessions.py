"""Signing in at the dashboard, and staying so: sessions in the server's memory, ended by idleness, age, or the user's removal.

A cookie holds nothing but a random number. Whoever guesses passwords is locked out, by name and by address (`tries.py`); a
name that strangers locked keeps the sessions that it has.
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Protocol

from excise.server.dashboard.tries import Tries
from excise.server.roles import Role, User

IDLE, AGE = 30 * 60.0, 12 * 3600.0
"""Seconds after which a session ends: without a request, and in any case. An open page's stream of events is no request."""
LOOK = 3.0
"""Seconds for which it is believed that a user is still one: a removed one is out after that."""
OF_A_NAME, OF_AN_ADDRESS, OF_A_SESSION = 5, 20, 5
"""Failures that lock: a hospital's people may share an address."""
AT_ONCE = 2
"""Passwords checked at once: each takes 64 MiB and a core."""
SESSIONS = 20
"""Most sessions of one user; the longest unused one gives way to another."""
SECRET = 32
"""Bytes of a session's id and of its CSRF token."""


NAME, ADDRESS = 65, 64
"""Most characters that are kept of what strangers send; of a name one more than any user has, so that it becomes nobody's."""


class SignInRefused(Exception):
    """Somebody is not signed in, or an action is not confirmed; the text may be shown."""


class WrongPassword(SignInRefused):
    """The password is not that user's, or there is no such user: which of the two is not told."""

    def __init__(self) -> None:
        super().__init__("the name or the password is wrong")


class LockedOut(SignInRefused):
    """Too many failures; the password was not looked at.

    Attributes
    ----------
    seconds : until one may try again
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = ceil(seconds)
        super().__init__(f"too many failures: try again in {max(1, ceil(seconds / 60))} min")


class Tell(Protocol):
    """Called with what happened, for the audit log.

    `signed in`, `signed out`, `sign-in failed`, `confirmation failed`, and `locked out` with the failure that locks; then
    nothing until the lock ends. Details: `user`, empty when there is none of that name (people type passwords there) or an
    address is locked as a whole; `address`.
    """

    def __call__(self, event: str, **details: str) -> None: ...


@dataclass(frozen=True)
class Session:
    """Somebody who is signed in.

    Attributes
    ----------
    id : what the cookie holds; hexadecimal. Neither it nor `csrf` is in the session's text
    csrf : what every change has to bring along; hexadecimal
    user, role : who, and as what
    since : of the user (`server/users.py`): another one means that it is another user by that name, or has another password
    address : where it was signed in from
    began, seen : when it was signed in, and last asked for; in seconds of the clock
    """

    id: str = field(repr=False)
    csrf: str = field(repr=False)
    user: str
    role: Role
    since: str
    address: str
    began: float
    seen: float


class Sessions:
    """Who is signed in. Threads may use it at once.

    Parameters
    ----------
    store_check : the user with this name and password (`users.check_password`); takes long
    user_of : the user of this name, or None; asked every `LOOK` seconds for users with sessions
    clock : seconds that only grow
    tell : tells the audit log; what it raises passes, and then nobody is signed in
    """

    def __init__(
        self,
        store_check: Callable[[str, str], User | None],
        user_of: Callable[[str], User | None],
        clock: Callable[[], float] = time.monotonic,
        tell: Tell = lambda event, **details: None,
    ) -> None:
        self._check, self._user_of, self._clock, self._tell = store_check, user_of, clock, tell
        self._sessions: dict[str, Session] = {}
        self._known: dict[str, tuple[float, User | None]] = {}  # of users with sessions: when looked at, and what it was
        self._names, self._addresses = Tries(OF_A_NAME, clock), Tries(OF_AN_ADDRESS, clock)
        self._confirmations = Tries(OF_A_SESSION, clock)
        self._lock = threading.Lock()  # never held while a password is checked or the store is asked
        self._checking = threading.BoundedSemaphore(AT_ONCE)

    def sign_in(self, name: str, password: str, address: str) -> Session:
        """Begin a session. Takes as long as checking a password: not for an event loop's own thread.

        Raises
        ------
        WrongPassword : there is no such user, or it has another password
        LockedOut : the name or the address failed too often; whether the password is right is not looked at
        """
        name = name[:NAME]
        keys = ((self._names, name), (self._addresses, network_of(address)))
        user = self._guess("sign-in failed", keys, name, password, address)
        self._tell("signed in", user=user.name, address=address)
        now, (made, csrf) = self._clock(), (secrets.token_hex(SECRET) for _ in range(2))
        session = Session(made, csrf, user.name, user.role, user.since, address, began=now, seen=now)
        with self._lock:
            self._names.forget(name)
            for known in list(self._sessions):
                self._alive(known)
            own = sorted((one for one in self._sessions.values() if one.user == name), key=lambda one: one.seen)
            for one in own[: max(0, len(own) + 1 - SESSIONS)]:
                self._end(one)
            self._sessions[made] = session
            self._known[name] = (now, user)
        return session

    def find(self, session_id: str, in_use: bool = True) -> Session | None:
        """The session of a cookie; None when it ended or never was. Asks the store now and then, which takes a millisecond.

        Parameters
        ----------
        in_use : whether a person asks, so that it is not idle; not for what a page that is left open asks by itself
        """
        with self._lock:
            session = self._alive(session_id)
            looked, user = self._known[session.user] if session else (0.0, None)
        if session is None:
            return None
        now = self._clock()
        if now >= looked + LOOK:
            looked, user = now, self._user_of(session.user)
        with self._lock:
            if (session := self._alive(session_id)) is None:  # it was signed out meanwhile
                return None
            if looked >= self._known[session.user][0]:
                self._known[session.user] = (looked, user)
            else:  # a later look was quicker: that of a new password, say
                user = self._known[session.user][1]
            if user is None or user.since != session.since:
                self._end(session)
                return None
            session = replace(session, role=user.role, seen=now if in_use else session.seen)
            self._sessions[session_id] = session
        return session

    def asks(self, session_id: str) -> bool:
        """Whether `find` would ask the store now, so that it takes long: by far most calls do not."""
        with self._lock:
            session = self._alive(session_id)
            return session is not None and self._clock() >= self._known[session.user][0] + LOOK

    def sign_out(self, session_id: str) -> None:
        """End a session; one that there is not is no error."""
        with self._lock:
            session = self._alive(session_id)
            if session:
                self._end(session)
        if session:
            self._tell("signed out", user=session.user, address=session.address)

    def end_all_of(self, name: str) -> None:
        """End every session of a user."""
        with self._lock:
            for session in [one for one in self._sessions.values() if one.user == name]:
                self._end(session)

    def check_csrf(self, session: Session, given: str) -> bool:
        """Whether a change brought its session's token along; as slow when nearly all of it is right as when nothing is."""
        return hmac.compare_digest(session.csrf.encode(), given.encode("utf-8", "replace"))

    def confirm(self, session: Session, password: str) -> None:
        """Have a user say the password again, before a grave action. Takes as long as `sign_in`.

        What is wrong counts for the name and the address as well. That strangers locked those does not keep a user who is
        signed in from acting: whether one may try, the session's own count decides.

        Raises
        ------
        WrongPassword : it is another, or the user was removed
        LockedOut : too many were wrong in this session
        """
        keys = ((self._confirmations, session.id),)
        try:
            self._guess("confirmation failed", keys, session.user, password, session.address, session.since)
        except WrongPassword:
            with self._lock:
                for tries, key in ((self._names, session.user), (self._addresses, network_of(session.address))):
                    if not tries.locked(key):
                        tries.begin(key)
            raise
        with self._lock:
            self._confirmations.forget(session.id)

    def _guess(
        self, failed: str, keys: Sequence[tuple[Tries, str]], name: str, password: str, address: str, since: str = ""
    ) -> User:
        """The user with this name and password, who is of `since` if that is said; a wrong guess counts against all `keys`.

        Raises
        ------
        WrongPassword, LockedOut : after telling of it; what is refused by a lock is told when the lock begins
        """
        with self._lock:
            if seconds := max(tries.locked(key) for tries, key in keys):
                raise LockedOut(seconds)
            begun = [(tries, key, tries.begin(key)) for tries, key in keys]
            locking = [(tries, key) for tries, key in keys if tries.locked(key)]
        user, wrong = None, False
        try:
            with self._checking:
                user = self._check(name, password)
            wrong = user is None or since not in ("", user.since)
        finally:
            if not wrong:  # nor is it a wrong guess when the store does not answer
                with self._lock:
                    for tries, key, at in begun:
                        tries.take_back(key, at)
        if user is not None and not wrong:
            return user
        # What is no user's name is not told: people type their password there.
        told = {"user": name if self._user_of(name) else "", "address": address[:ADDRESS]}
        self._tell(failed, **told)
        with self._lock:  # a right one, tried at the same time, may have ended the lock
            locked = [tries for tries, key in locking if tries.locked(key)]
        for tries in locked:
            self._tell("locked out", **told | ({"user": ""} if tries is self._addresses else {}))
        raise WrongPassword

    def _alive(self, session_id: str) -> Session | None:
        """A session that is neither idle for too long nor too old; otherwise it ends now."""
        session, now = self._sessions.get(session_id), self._clock()
        if session and (now >= session.seen + IDLE or now >= session.began + AGE):
            self._end(session)
            return None
        return session

    def _end(self, session: Session) -> None:
        del self._sessions[session.id]
        self._confirmations.forget(session.id)
        if all(one.user != session.user for one in self._sessions.values()):
            del self._known[session.user]


def network_of(address: str) -> str:
    """What failures of an address are counted by: an IPv6 address by its /64, since whoever has one has all of those."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:ADDRESS]
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is None:
            return str(ipaddress.ip_network((parsed, 64), strict=False))
        parsed = parsed.ipv4_mapped
    return str(parsed)
