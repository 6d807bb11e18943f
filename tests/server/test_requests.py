"""The life of a request: every step by whom, when and why; what does not follow is refused, and twice is once."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from excise.common.decision import Decision, Standing
from excise.common.errors import RequestError
from excise.common.signing import read_key, sign
from excise.server import members
from excise.server.life import FOLLOWS, IllegalMove, State, check_move
from excise.server.requests import COORDINATOR, approvals, concerned, decide, draft, move, status, statuses
from tests.coordinators import DEVICE, OTHER, Network, network


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Network]:
    with network(tmp_path) as one:
        one.let_in("a", "b")
        yield one


def moves(made: Network, name: str = "mr7") -> list[tuple[str, str]]:
    return [(move.before, move.after) for move in status(made.store, name).moves]


def test_a_request_waits_for_each_site_and_then_for_the_coordinator(made: Network) -> None:
    draft(made.store, DEVICE, (), "Ada", "asked by letter")
    told = status(made.store, "mr7")
    assert (told.state, told.waits_for, told.sites) == (State.DRAFTED, ("a", "b"), {"a": "pending", "b": "pending"})
    assert (told.moves[0].by, told.moves[0].why) == ("Ada", "asked by letter")
    made.decide("a", DEVICE)
    assert status(made.store, "mr7").waits_for == ("b",)
    made.decide("b", DEVICE)
    told = status(made.store, "mr7")
    assert (told.state, told.waits_for) == (State.APPROVED, (COORDINATOR,))
    assert told.since == told.moves[-1].at >= told.moves[0].at
    assert [one.key for one in approvals(made.store, "mr7")] == [made.keys(name)[0].signing for name in "ab"]


def test_twice_is_once(made: Network) -> None:
    for _ in range(2):
        draft(made.store, DEVICE, (), "Ada")
    made.approved()
    for name in ("a", "b", "a", "b"):
        made.decide(name, DEVICE)
    for _ in range(2):
        move(made.store, ["mr7"], State.RUNNING, "Ada", "", "mr7")
    assert moves(made) == [("", "drafted"), ("drafted", "approved"), ("approved", "running")]
    log = (made.folder / "audit.jsonl").read_text().splitlines()
    assert sum("mr7" in line for line in log) == 4  # drafted, decided twice, running
    assert made.store.log_faults() == []


def test_a_site_may_withdraw_before_the_run(made: Network) -> None:
    made.approved(DEVICE)
    made.decide("a", DEVICE, Standing.DENIED, "2026-01-02")
    told = status(made.store, "mr7")
    assert (told.state, told.sites["a"], told.waits_for) == (State.DRAFTED, "denied", (COORDINATOR,))
    made.decide("a", DEVICE, Standing.APPROVED, "2026-01-03")
    assert status(made.store, "mr7").state is State.APPROVED
    with pytest.raises(RequestError, match="a later decision of 'a'"):  # a decision that was overtaken, sent once more
        made.decide("a", DEVICE, Standing.DENIED, "2026-01-02")


def test_a_request_of_some_sites_waits_for_those_alone(made: Network) -> None:
    draft(made.store, DEVICE, ["b"], "Ada")
    assert status(made.store, "mr7").waits_for == ("b",)
    assert concerned(made.store, "a") == []
    assert [one.request for one in concerned(made.store, "b")] == [DEVICE]
    draft(made.store, OTHER, ["b"], "site a")
    assert [one.request for one in concerned(made.store, "a")] == [OTHER]  # who drafted it may see it
    assert {one.request.id for one in statuses(made.store)} == {"mr7", "mr1"}


def test_what_cannot_be_drafted_is_told(made: Network) -> None:
    draft(made.store, DEVICE, (), "Ada")
    with pytest.raises(RequestError, match="one id is carried out once"):
        draft(made.store, DEVICE.model_copy(update={"reason": "another"}), (), "Ada")
    with pytest.raises(RequestError, match="no site 'c' is let in; known: a, b"):
        draft(made.store, OTHER, ["c"], "Ada")
    members.revoke(made.store, "a", "Ada")
    with pytest.raises(RequestError, match="no site 'a' is let in"):
        draft(made.store, OTHER, ["a"], "Ada")
    with pytest.raises(RequestError, match="no request 'mr8'; did you mean 'mr7'"):
        status(made.store, "mr8")


def test_without_a_site_nothing_is_drafted(tmp_path: Path) -> None:
    with network(tmp_path) as one, pytest.raises(RequestError, match="no site is let in"):
        draft(one.store, DEVICE, (), "Ada")


def test_a_decision_is_of_this_request_by_this_site(made: Network) -> None:
    draft(made.store, DEVICE, ["a"], "Ada")
    key = read_key(made.sites["a"].parent / "keys" / "signing.pem")
    good = Decision(DEVICE.digest, Standing.APPROVED, "Ada", "", "2026-01-01")
    for site, decision, signature, reason in (
        ("b", good, sign(key, good.text()), "no request 'mr7' concerns 'b'"),
        ("a", Decision(OTHER.digest, Standing.APPROVED, "Ada", "", "2026-01-01"), "", "is of another request"),
        ("a", good, "00" * 64, "is not signed with the key of 'a'"),
        ("a", Decision(DEVICE.digest, Standing.APPROVED, "Eve", "", "2026-01-01"), sign(key, good.text()), "is not signed"),
    ):
        with pytest.raises(RequestError, match=reason):
            decide(made.store, site, "mr7", decision, signature)
    assert status(made.store, "mr7").sites == {"a": "pending"}


def test_once_it_has_run_there_is_nothing_left_to_decide(made: Network) -> None:
    made.approved(DEVICE)
    move(made.store, ["mr7"], State.RUNNING, "Ada", "")
    made.decide("a", DEVICE, Standing.DENIED, "2026-01-02")  # the site refuses its rounds from now on
    assert status(made.store, "mr7").state is State.RUNNING
    move(made.store, ["mr7"], State.CANDIDATE, "Ada", "")
    with pytest.raises(RequestError, match="there is nothing left to decide"):
        made.decide("b", DEVICE, Standing.DENIED, "2026-01-02")


@pytest.mark.parametrize(("before", "after"), list(itertools.product(State, State)))
def test_a_step_follows_or_is_refused(before: State, after: State) -> None:
    order = [State.DRAFTED, State.APPROVED, State.RUNNING, State.CANDIDATE, State.VERIFIED, State.PROMOTED, State.ROLLED_BACK]
    legal = (
        (before in order and after in order and order.index(after) == order.index(before) + 1)
        or (after is State.REJECTED and before in order[:5])
        or (before, after) == (State.APPROVED, State.DRAFTED)
    )
    assert (after in FOLLOWS[before]) == legal
    if not legal:
        with pytest.raises(IllegalMove, match=f"is {before} and cannot become {after}"):
            check_move("r", before, after)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15)
@given(steps=st.lists(st.sampled_from(State), max_size=8))
def test_whatever_is_tried_only_steps_that_follow_are_made(
    tmp_path_factory: pytest.TempPathFactory, steps: list[State]
) -> None:
    with network(tmp_path_factory.mktemp("life")) as one:
        one.let_in("a")
        draft(one.store, DEVICE, (), "Ada")
        expected = State.DRAFTED
        for after in steps:
            if after == expected or after in FOLLOWS[expected]:
                move(one.store, ["mr7"], after, "Ada", "why")
                expected = after
            else:
                with pytest.raises(IllegalMove):
                    move(one.store, ["mr7"], after, "Ada", "why")
            assert status(one.store, "mr7").state is expected
        assert one.store.log_faults() == []


def test_requests_of_one_run_step_together_or_not_at_all(made: Network) -> None:
    made.approved(DEVICE)
    draft(made.store, OTHER, (), "Ada")
    with pytest.raises(IllegalMove):
        move(made.store, ["mr7", "mr1"], State.RUNNING, "Ada", "")
    assert status(made.store, "mr7").state is State.APPROVED
