"""Sessions: who guesses is locked out, whoever is signed in stays so, and ends when it must."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from excise.common.errors import StorageError
from excise.server.dashboard import sessions as module
from excise.server.dashboard.sessions import (
    AGE,
    IDLE,
    LOOK,
    OF_A_NAME,
    OF_A_SESSION,
    OF_AN_ADDRESS,
    SESSIONS,
    LockedOut,
    Session,
    Sessions,
    WrongPassword,
    network_of,
)
from excise.server.dashboard.tries import LOCKED, WINDOW, Tries
from excise.server.roles import Role, User

RIGHT, WRONG, HOME = "right", "wrong", "10.0.0.1"


@dataclass
class Desk:
    """Sessions with a clock, a store of users in a dict, and what was told."""

    now: float = 1000.0
    users: dict[str, User] = field(default_factory=dict)
    told: list[tuple[str, str, str]] = field(default_factory=list)
    looks: int = 0
    checked: int = 0
    before: Callable[[], None] = lambda: None
    """Called while a password is checked."""

    def __post_init__(self) -> None:
        for name, role in (("ada", Role.COORDINATOR), ("eve", Role.VIEWER)):
            self.users[name] = User(name, role, "2026-01-01")
        self.sessions = Sessions(self.check, self.user_of, lambda: self.now, self.tell)

    def check(self, name: str, password: str) -> User | None:
        self.checked += 1
        self.before()
        return self.users.get(name) if password == RIGHT else None

    def user_of(self, name: str) -> User | None:
        self.looks += 1
        return self.users.get(name)

    def tell(self, event: str, **details: str) -> None:
        assert details.keys() == {"user", "address"}
        self.told.append((event, details["user"], details["address"]))

    def enter(self, name: str = "ada", address: str = HOME) -> Session:
        return self.sessions.sign_in(name, RIGHT, address)

    def fail(self, name: str = "ada", address: str = HOME, times: int = 1) -> None:
        for _ in range(times):
            with pytest.raises(WrongPassword):
                self.sessions.sign_in(name, WRONG, address)

    def refused(self, name: str = "ada", address: str = HOME) -> int:
        before = self.checked
        with pytest.raises(LockedOut) as error:
            self.sessions.sign_in(name, RIGHT, address)
        assert self.checked == before  # the password is not even looked at
        return error.value.seconds


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_a_session_is_found_by_its_number_until_it_is_signed_out(desk: Desk) -> None:
    made, other = desk.enter(), desk.enter("eve", "10.0.0.2")
    assert (made.user, made.role, made.address) == ("ada", Role.COORDINATOR, HOME)
    assert len({made.id, made.csrf, other.id, other.csrf}) == 4
    assert all(len(bytes.fromhex(one)) == 32 for one in (made.id, made.csrf))
    assert made.id not in repr(made)
    assert made.csrf not in repr(made)
    assert desk.sessions.find(made.id) == made
    for unknown in ("", made.id[:-1], made.csrf, "x" * 100_000):
        assert desk.sessions.find(unknown) is None
    for _ in range(2):
        desk.sessions.sign_out(made.id)
    assert desk.sessions.find(made.id) is None
    assert desk.sessions.find(other.id) == other
    assert desk.told == [("signed in", "ada", HOME), ("signed in", "eve", "10.0.0.2"), ("signed out", "ada", HOME)]


def test_a_session_ends_when_nobody_uses_it(desk: Desk) -> None:
    made = desk.enter()
    for _ in range(3):
        desk.now += IDLE - 1
        found = desk.sessions.find(made.id)
        assert found is not None
        assert found.seen == desk.now
    desk.now += IDLE - 1
    assert desk.sessions.find(made.id, in_use=False) is not None  # a page that is left open asks by itself
    desk.now += 1
    assert desk.sessions.find(made.id) is None


def test_a_session_ends_in_any_case_after_half_a_day(desk: Desk) -> None:
    made = desk.enter()
    while desk.now < made.began + AGE - 60:
        desk.now += 60
        assert desk.sessions.find(made.id) is not None
    desk.now += 60
    assert desk.sessions.find(made.id) is None


def test_a_user_that_was_removed_is_out_at_the_next_look(desk: Desk) -> None:
    made = desk.enter()
    looks = desk.looks
    for _ in range(10):
        desk.sessions.find(made.id)
    assert desk.looks == looks  # not asked every time
    del desk.users["ada"]
    desk.now += LOOK
    assert desk.sessions.find(made.id) is None
    desk.users["ada"] = User("ada", Role.VIEWER, "2026-01-01")
    assert desk.sessions.find(made.id) is None


@pytest.mark.parametrize("since", ["2026-02-02", "2025-12-31"])
def test_another_password_or_another_user_by_that_name_ends_what_was_before(desk: Desk, since: str) -> None:
    before = desk.enter()
    desk.users["ada"] = User("ada", Role.COORDINATOR, since)
    after = desk.enter()
    assert desk.sessions.find(before.id) is None
    assert desk.sessions.find(after.id) == after


def test_another_role_counts_at_the_next_look(desk: Desk) -> None:
    made = desk.enter()
    desk.users["ada"] = User("ada", Role.VIEWER, "2026-01-01")
    desk.now += LOOK
    found = desk.sessions.find(made.id)
    assert found is not None
    assert found.role is Role.VIEWER


def test_a_slow_look_does_not_undo_a_newer_one(desk: Desk) -> None:
    before = desk.enter()
    old = desk.users["ada"]
    after: list[Session] = []

    def slow(name: str) -> User | None:
        desk.users["ada"] = User("ada", Role.VIEWER, "2026-02-02")
        desk.now += 1
        after.append(desk.enter())
        return old

    desk.now += LOOK
    desk.sessions._user_of = slow
    assert desk.sessions.find(before.id) is None
    assert desk.sessions.find(after[0].id) == after[0]


def test_all_sessions_of_a_user_end_at_once(desk: Desk) -> None:
    own, other = [desk.enter() for _ in range(3)], desk.enter("eve")
    desk.sessions.end_all_of("ada")
    assert [desk.sessions.find(one.id) for one in own] == [None] * 3
    assert desk.sessions.find(other.id) == other


def test_of_too_many_sessions_the_longest_unused_gives_way(desk: Desk) -> None:
    made = []
    for _ in range(SESSIONS):
        desk.now += 1
        made.append(desk.enter())
    desk.now += 1
    assert desk.sessions.find(made[0].id) is not None
    last = desk.enter()
    alive = [desk.sessions.find(one.id) is not None for one in (*made, last)]
    assert alive == [True, False] + [True] * (SESSIONS - 1)


def test_csrf(desk: Desk) -> None:
    made = desk.enter()
    assert desk.sessions.check_csrf(made, made.csrf)
    for wrong in ("", made.csrf[:-1], made.id, made.csrf + "0", "ü", "\ud800"):
        assert not desk.sessions.check_csrf(made, wrong)


# --- guesses ---------------------------------------------------------------------------------------------------------------


def test_a_name_is_locked_after_failures_and_the_right_password_is_refused_too(desk: Desk) -> None:
    alive = desk.enter()
    desk.fail(times=OF_A_NAME)
    assert desk.refused() == LOCKED
    assert desk.refused(address="10.9.9.9") == LOCKED
    desk.now += 60
    assert desk.refused() == LOCKED - 60  # being refused does not prolong it
    assert desk.sessions.find(alive.id) is not None
    assert desk.enter("eve").user == "eve"
    desk.now += LOCKED - 61
    assert desk.refused() == 1
    desk.now += 1
    desk.enter()


def test_an_address_is_locked_whatever_the_names(desk: Desk) -> None:
    for i in range(OF_AN_ADDRESS):
        desk.fail(f"stranger{i}")
    assert desk.refused() == LOCKED
    desk.enter(address="10.0.0.2")
    desk.now += LOCKED
    desk.enter()


def test_the_right_password_forgives_a_name_but_no_address(desk: Desk) -> None:
    for _ in range(OF_AN_ADDRESS // (OF_A_NAME - 1)):
        desk.fail(times=OF_A_NAME - 1)
        if desk.sessions._addresses.locked(HOME):
            break
        desk.enter()
    assert desk.refused("eve") == LOCKED


def test_failures_of_long_ago_do_not_count(desk: Desk) -> None:
    for _ in range(4 * OF_A_NAME):
        desk.fail()
        desk.now += WINDOW / (OF_A_NAME - 1)
    desk.enter()


def test_what_is_told_of_failures(desk: Desk) -> None:
    desk.fail(times=OF_A_NAME)
    desk.refused()
    with pytest.raises(WrongPassword, match="the name or the password is wrong") as wrong:
        desk.sessions.sign_in("my secret password", WRONG, HOME)  # typed into the wrong field
    assert "secret" not in str(wrong.value)
    assert desk.told == [("sign-in failed", "ada", HOME)] * OF_A_NAME + [
        ("locked out", "ada", HOME),
        ("sign-in failed", "", HOME),
    ]
    for i in range(OF_AN_ADDRESS - OF_A_NAME - 1):
        desk.fail(f"stranger{i}")
    assert desk.told[-1] == ("locked out", "", HOME)
    told = len(desk.told)
    desk.refused()
    assert len(desk.told) == told  # strangers cannot fill the log


def test_a_hundred_guesses_at_once_are_no_more_than_five(desk: Desk) -> None:
    gate, done = threading.Event(), []
    desk.before = lambda: gate.wait(20) and None

    def guess() -> None:
        try:
            desk.sessions.sign_in("ada", WRONG, HOME)
        except (WrongPassword, LockedOut) as error:
            done.append(type(error))

    threads = [threading.Thread(target=guess) for _ in range(100)]
    for thread in threads:
        thread.start()
    gate.set()
    for thread in threads:
        thread.join()
    assert (done.count(WrongPassword), done.count(LockedOut)) == (OF_A_NAME, 100 - OF_A_NAME)
    assert desk.told.count(("locked out", "ada", HOME)) == 1


def test_no_more_than_two_passwords_are_checked_at_once(desk: Desk) -> None:
    inside, most, lock = [0], [0], threading.Lock()

    def before() -> None:
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        threading.Event().wait(0.01)
        with lock:
            inside[0] -= 1

    desk.before = before
    threads = [threading.Thread(target=desk.enter, args=("eve", f"10.0.0.{i}")) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == module.AT_ONCE


def test_a_store_that_does_not_answer_is_no_wrong_guess(desk: Desk) -> None:
    def fails() -> None:
        raise StorageError

    desk.before = fails
    for _ in range(2 * OF_AN_ADDRESS):
        with pytest.raises(StorageError):
            desk.enter()
    desk.before = lambda: None
    desk.enter()
    assert len(desk.told) == 1


def test_who_cannot_be_told_of_is_not_signed_in(desk: Desk) -> None:
    def full(event: str, **details: str) -> None:
        raise StorageError

    desk.sessions._tell = full
    with pytest.raises(StorageError):
        desk.enter()
    assert desk.sessions._sessions == {}


def test_confirming_wants_the_password_and_counts_what_is_wrong(desk: Desk) -> None:
    made, other = desk.enter(), desk.enter()
    desk.sessions.confirm(made, RIGHT)
    for _ in range(OF_A_SESSION):
        with pytest.raises(WrongPassword):
            desk.sessions.confirm(made, WRONG)
    with pytest.raises(LockedOut):
        desk.sessions.confirm(made, RIGHT)
    assert desk.refused() == LOCKED  # the name as well
    desk.sessions.confirm(other, RIGHT)
    assert [event for event, _, _ in desk.told[2:]] == ["confirmation failed"] * OF_A_SESSION + ["locked out"]
    assert desk.sessions.find(made.id) is not None
    desk.now += LOCKED
    desk.sessions.confirm(made, RIGHT)


def test_strangers_do_not_keep_a_user_from_confirming(desk: Desk) -> None:
    made = desk.enter()
    desk.fail(times=OF_A_NAME)
    for i in range(OF_AN_ADDRESS - OF_A_NAME):
        desk.fail(f"stranger{i}")
    with pytest.raises(WrongPassword):
        desk.sessions.confirm(made, WRONG)
    desk.sessions.confirm(made, RIGHT)
    assert desk.refused() == LOCKED  # which does not unlock the name


def test_confirming_forgives_wrong_ones_of_its_session(desk: Desk) -> None:
    made = desk.enter()
    for _ in range(3):
        for _ in range(OF_A_SESSION - 1):
            with pytest.raises(WrongPassword):
                desk.sessions.confirm(made, WRONG)
        desk.sessions.confirm(made, RIGHT)


def test_another_user_by_that_name_confirms_nothing(desk: Desk) -> None:
    made = desk.enter()
    desk.users["ada"] = User("ada", Role.COORDINATOR, "2026-02-02")
    with pytest.raises(WrongPassword):
        desk.sessions.confirm(made, RIGHT)
    del desk.users["ada"]
    with pytest.raises(WrongPassword):
        desk.sessions.confirm(made, RIGHT)


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::ffff:ffff:ffff:ffff", "2001:db8::/64"),
        ("2001:db8:0:1::1", "2001:db8:0:1::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("testclient", "testclient"),
        ("", ""),
        ("x" * 1000, "x" * 64),
    ],
)
def test_what_an_address_is_counted_by(address: str, counted: str) -> None:
    assert network_of(address) == counted


def test_a_flood_of_names_and_addresses_takes_bounded_memory(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    for tries in (desk.sessions._names, desk.sessions._addresses):
        monkeypatch.setattr(tries, "_most", 50)
    for i in range(500):
        desk.fail(f"{i}" * 100_000, f"10.0.{i // 250}.{i % 250}")
        assert len(desk.sessions._names) <= 50
        assert len(desk.sessions._addresses) <= 50
    assert all(len(key) <= 65 for key in desk.sessions._names._failed)
    assert max(len(user) for _, user, _ in desk.told) == 0


def test_nothing_is_kept_of_sessions_that_ended(desk: Desk) -> None:
    made = [desk.enter(), desk.enter("eve")]
    with pytest.raises(WrongPassword):
        desk.sessions.confirm(made[0], WRONG)
    desk.sessions.sign_out(made[0].id)
    desk.now += IDLE
    last = desk.enter("eve")
    assert list(desk.sessions._sessions) == [last.id]
    assert list(desk.sessions._known) == ["eve"]
    assert len(desk.sessions._confirmations) == 0


# --- against a slow, obvious version ---------------------------------------------------------------------------------------


class Slow:
    """Lock-out by the book: every failure is kept, and a lock is a time until which nothing passes."""

    def __init__(self) -> None:
        self.failed: list[tuple[str, float]] = []
        self.until: dict[str, float] = {}

    def locked(self, key: str, now: float) -> bool:
        return now < self.until.get(key, 0)

    def fail(self, key: str, limit: int, now: float) -> None:
        self.failed.append((key, now))
        if sum(one == key and now - at < WINDOW for one, at in self.failed) >= limit:
            self.until[key] = now + LOCKED
            self.forget(key)

    def forget(self, key: str) -> None:
        self.failed = [one for one in self.failed if one[0] != key]

    def sign_in(self, name: str, password: str, address: str, now: float) -> str:
        if self.locked(name, now) or self.locked(address, now):
            return "locked"
        if password == RIGHT and name in ("ada", "eve"):
            self.forget(name)
            return "in"
        self.fail(name, OF_A_NAME, now)
        self.fail(address, OF_AN_ADDRESS, now)
        return "wrong"


GUESSES = st.lists(
    st.tuples(
        st.sampled_from(["ada", "ada", "eve", "nobody"]),
        st.sampled_from([WRONG, WRONG, WRONG, RIGHT]),
        st.sampled_from([HOME, HOME, "10.0.0.2"]),
        st.sampled_from([0, 0, 0, 1, 60, 3 * 60, 15 * 60 - 1, 15 * 60, 40 * 60]),
    ),
    max_size=150,
)


@given(guesses=GUESSES)
def test_lock_out_is_that_of_the_slow_one(guesses: list[tuple[str, str, str, int]]) -> None:
    desk, slow = Desk(), Slow()
    for name, password, address, seconds in guesses:
        desk.now += seconds
        try:
            desk.sessions.sign_in(name, password, address)
            outcome = "in"
        except WrongPassword:
            outcome = "wrong"
        except LockedOut:
            outcome = "locked"
        assert outcome == slow.sign_in(name, password, address, desk.now)


def test_a_try_is_taken_back_and_not_another() -> None:
    now = [0.0]
    tries = Tries(3, lambda: now[0])
    first = tries.begin("k")
    now[0] = 600
    tries.begin("k")
    tries.take_back("k", first)
    now[0] = WINDOW + 100
    for _ in range(2):
        assert not tries.locked("k")
        tries.begin("k")
    assert tries.locked("k") == LOCKED


@given(steps=st.lists(st.tuples(st.sampled_from(["begin", "right", "wait"]), st.integers(0, 5)), max_size=80))
def test_tries_that_are_taken_back_leave_nothing(steps: list[tuple[str, int]]) -> None:
    """Tries of one key that overlap: locked are the failed and the undecided ones together, as by counting them all."""
    now, limit = [0.0], 3
    tries, open_, counted = Tries(limit, lambda: now[0]), [], []
    for step, size in steps:
        if step == "wait":
            now[0] += size * WINDOW / 4
            continue
        if len(counted) >= limit and now[0] >= counted[-1] + LOCKED:
            counted.clear()
        if len(counted) < limit:
            counted[:] = [at for at in counted if now[0] - at < WINDOW]
        assert (tries.locked("k") > 0) == (len(counted) >= limit)
        if step == "begin" and len(counted) < limit:
            open_.append(tries.begin("k"))
            counted.append(now[0])
        elif step == "right" and open_:
            at = open_.pop(size % len(open_))
            tries.take_back("k", at)
            if at in counted:
                counted.remove(at)
