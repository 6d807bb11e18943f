"""Who may see and who may act: the session of each call, its key with each change, and how often anybody may call."""

from __future__ import annotations

import hmac
import math
import threading
import time
from collections.abc import Callable
from typing import Annotated

from fastapi import Depends, Request

from excise.server.dashboard.limits import Limits, TooMany
from excise.server.dashboard.sessions import LockedOut, Session, Sessions, SignInRefused
from excise.server.dashboard.together import Together
from excise.server.roles import Role, User
from excise.server.store import Store
from excise.server.users import check_password, users

COOKIE = "excise"
CSRF = "X-CSRF"
"""Header that each change has to bring along; a page of another origin cannot know it."""
LIVE = "X-Live"
"""Header of what an open page asks by itself: it keeps nobody signed in."""
FRESH = 1.0
"""Seconds for which it is believed who is a user."""
READER = User("reader", Role.VIEWER, "once")
"""Who has the address that was printed when runs are shown without a coordinator."""


class Refused(Exception):
    """A call that is refused: an HTTP status, a text that may be shown, and in how many seconds it may be tried again."""

    def __init__(self, status: int, text: str, seconds: int | None = None) -> None:
        super().__init__(text)
        self.status, self.seconds = status, seconds


class Access:
    """Who may come in.

    Parameters
    ----------
    look : sees to it that `sessions` finds who is a user without asking the store
    """

    def __init__(self, sessions: Sessions, by_password: bool, look: Callable[[], None] = lambda: None) -> None:
        self.sessions, self.by_password = sessions, by_password
        self._limits = Limits()
        self._look, self._together = look, Together()

    def sign_in(self, name: str, password: str, address: str) -> Session:
        """Begin a session.

        Raises
        ------
        Refused : the name or the password is wrong, or there were too many failures
        """
        self.count(address, changes=True)
        try:
            return self.sessions.sign_in(name, password, address)
        except SignInRefused as error:
            raise Refused(429 if isinstance(error, LockedOut) else 401, str(error)) from None

    def confirm(self, session: Session, password: str) -> None:
        """Have somebody say the password again.

        Raises
        ------
        Refused : it is wrong
        """
        try:
            self.sessions.confirm(session, password)
        except LockedOut as error:
            raise Refused(429, str(error)) from None
        except SignInRefused:  # no name was asked for
            raise Refused(403, "the password is wrong") from None

    async def find(self, session_id: str, in_use: bool) -> Session | None:
        """The session of a cookie; None when it ended or never was. For an event loop: one thread asks for all who come."""
        if self.sessions.asks(session_id):
            await self._together.make(None, self._look)
        return self.sessions.find(session_id, in_use)

    def count(self, who: str, changes: bool = False) -> None:
        """Count a call.

        Raises
        ------
        Refused : it is one too many
        """
        try:
            self._limits.count(who, changes)
        except TooMany as error:
            raise Refused(429, str(error), error.seconds) from None


class Directory:
    """The users of a store, all read at once and now and then: fifty viewers are not fifty questions. For many threads."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self._store, self._clock = store, clock
        self._users: dict[str, User] = {}
        self._looked = -math.inf
        self._lock = threading.Lock()

    def find(self, name: str) -> User | None:
        """The user of this name, as it was at most `FRESH` seconds ago."""
        with self._lock:
            self._look()
            return self._users.get(name)

    def look(self) -> None:
        """Read who is a user, where that is longer ago than `FRESH` seconds."""
        with self._lock:
            self._look()

    def _look(self) -> None:
        if self._clock() >= self._looked + FRESH:
            self._users, self._looked = {one.name: one for one in users(self._store)}, self._clock()

    def renew(self) -> None:
        """Believe nothing that was read before."""
        with self._lock:
            self._looked = -math.inf


def by_password(store: Store) -> Access:
    """Those whom `excise server user add` made; who comes in, and who fails to, stands in the audit log."""
    known = Directory(store)

    def tell(event: str, **details: str) -> None:
        with store.change() as change:
            change.log(event, **details)

    def check(name: str, password: str) -> User | None:
        try:
            return check_password(store, name, password)
        finally:
            known.renew()  # a password that is right may be newer than what was read

    return Access(Sessions(check, known.find, tell=tell), by_password=True, look=known.look)


def by_token(token: str) -> Access:
    """Whoever has the token sees everything and changes nothing."""

    def check(name: str, password: str) -> User | None:
        return READER if hmac.compare_digest(password.encode(), token.encode()) else None

    return Access(Sessions(check, lambda name: READER if name == READER.name else None), by_password=False)


async def seen(request: Request) -> Session:
    """Whoever is signed in.

    Raises
    ------
    Refused : nobody is, or asks too often
    """
    return await _session(request, in_use=LIVE not in request.headers)


async def _session(request: Request, in_use: bool) -> Session:
    access: Access = request.app.state.access
    session = await access.find(request.cookies.get(COOKIE, ""), in_use)
    if session is None:
        raise Refused(401, "You are not signed in, or no longer: sign in again. What you typed is still in the page.")
    access.count(session.user)
    return session


async def looked(request: Request) -> Session:
    """Whoever is signed in, of what a page asks by itself and cannot say so; it keeps nobody signed in.

    Raises
    ------
    Refused : as `seen`
    """
    return await _session(request, in_use=False)


async def changing(request: Request, session: Annotated[Session, Depends(seen)]) -> Session:
    """Whoever is signed in and sends a change from one of our own pages.

    Raises
    ------
    Refused : the change came without the session's key
    """
    access: Access = request.app.state.access
    if not access.sessions.check_csrf(session, request.headers.get(CSRF, "")):
        raise Refused(403, "This did not come from a page of this session: load the page anew.")
    access.count(session.user, changes=True)
    return session


async def acting(session: Annotated[Session, Depends(changing)]) -> Session:
    """A coordinator who sends a change.

    Raises
    ------
    Refused : it is a viewer
    """
    if session.role is not Role.COORDINATOR:
        raise Refused(403, "Viewers see, coordinators act: this is for a coordinator to do.")
    return session


Seen = Annotated[Session, Depends(seen)]
Looked = Annotated[Session, Depends(looked)]
Changing = Annotated[Session, Depends(changing)]
Acting = Annotated[Session, Depends(acting)]
