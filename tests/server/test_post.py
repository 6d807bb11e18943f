"""Which reply answers which question: late, repeated and stray ones are told apart, and none is used."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import httpx
import pytest
from flwr.app import Context
from flwr.app import Message as FlowerMessage
from flwr.clientapp import ClientApp
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError
from flwr.supercore.object_store import in_memory_object_store
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore

from excise.common.messages import SiteStatus, StatusQuery
from excise.common.settings import RoundSettings
from excise.server import post as module
from excise.server.post import Misplaced, Post, Round
from excise.server.rounds import run_round
from excise.simulations.local_grid import LocalGrid

NODES = {"a": 100, "b": 101, "c": 102}
QUICK = RoundSettings(quorum=0.5, deadline=0.2)


def app() -> ClientApp:
    """Every site answers with its number and how often it was asked."""
    made, asked = ClientApp(), dict[int, int]()

    def answer(message: FlowerMessage, context: Context) -> FlowerMessage:
        number = int(context.node_config["partition-id"])
        asked[number] = asked.get(number, 0) + 1
        counts = dict.fromkeys(("train", "forget", "excluded", "reference", "held_out", "skipped", "forgotten"), asked[number])
        return FlowerMessage(SiteStatus(site="abc"[number], classes=(), **counts).to_record(), reply_to=message)

    made.query("status")(answer)
    return made


class Misbehaving(LocalGrid):
    """Changes what a look brings: `change` takes the replies that are there and returns those that are handed on."""

    def __init__(self, change: Callable[[list[FlowerMessage]], list[FlowerMessage]]) -> None:
        super().__init__(app(), 3)
        self.change = change
        self.asked_for: list[list[str]] = []

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[FlowerMessage]:
        self.asked_for.append(list(message_ids))
        return self.change(list(super().pull_messages(self.asked_for[-1])))


class Holding(Misbehaving):
    """Holds back what node `slow` answers until `released`."""

    def __init__(self, slow: int = 101) -> None:
        super().__init__(self._held_back)
        self.slow, self.released = slow, False
        self._kept: list[FlowerMessage] = []

    def _held_back(self, replies: list[FlowerMessage]) -> list[FlowerMessage]:
        self._kept += [reply for reply in replies if reply.metadata.src_node_id == self.slow]
        through = [reply for reply in replies if reply.metadata.src_node_id != self.slow]
        if self.released:
            through, self._kept = through + self._kept, []
        return through


def hold(post: Post, number: int, nodes: dict[str, int] = NODES) -> dict[str, int]:
    """One round; how often each site whose reply was used had been asked."""
    used: dict[str, int] = {}
    run_round(
        post, nodes, lambda _: StatusQuery(), SiteStatus, QUICK, lambda s, r: used.update({s: r.train}), Round("r", number)
    )
    return used


def test_a_late_reply_is_told_and_used_in_no_round() -> None:
    told: list[Misplaced] = []
    grid = Holding()
    post = Post(grid, told.append)
    assert hold(post, 1) == {"a": 1, "c": 1}
    assert told == []
    grid.released = True
    assert hold(post, 2) == {"a": 2, "b": 2, "c": 2}  # its answer to this round's question, not the one before
    ((late),) = told
    assert (late.kind, late.site, late.round) == ("late", "b", Round("r", 1))
    assert late.seconds >= 0
    assert hold(post, 3) == {"a": 3, "b": 3, "c": 3}
    assert len(told) == 1


def test_a_late_message_is_asked_for_until_it_comes_and_then_no_more() -> None:
    grid = Holding()
    post = Post(grid)
    hold(post, 1)
    first = grid.asked_for[0][1]
    hold(post, 2)
    assert all(first in asked for asked in grid.asked_for)
    grid.released = True
    hold(post, 3)
    hold(post, 4)
    assert first not in grid.asked_for[-1]


def test_an_error_in_the_place_of_a_late_reply_is_no_late_reply() -> None:
    told: list[Misplaced] = []
    grid = Holding()
    post = Post(grid, told.append)
    hold(post, 1)
    for reply in grid._kept:
        reply.__dict__["_content"] = None  # what Flower answers in the place of a node that is gone has no content
    grid.released = True
    hold(post, 2, {"a": 100, "c": 102})
    assert told == []
    assert hold(post, 3) == {"a": 3, "b": 2, "c": 3}


@pytest.mark.parametrize("limit", [1, 3])
def test_no_more_late_messages_are_remembered_than_the_limit(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(module, "LATE_KEPT", limit)
    told: list[Misplaced] = []
    grid = Holding()
    post = Post(grid, told.append)
    for number in range(1, 6):
        hold(post, number)
    assert max(len(asked) for asked in grid.asked_for) <= 3 + limit
    grid.released = True
    hold(post, 6)
    late = [one for one in told if one.kind == "late"]
    assert [one.round for one in late] == [Round("r", number) for number in range(6 - limit, 6)]  # the oldest went first
    assert {one.kind for one in told} == {"late", "stray"}  # those are known no more


def test_a_reply_that_comes_twice_at_once_counts_once() -> None:
    told: list[Misplaced] = []
    used: list[str] = []
    post = Post(Misbehaving(lambda replies: [*replies, *replies]), told.append)
    run_round(post, NODES, lambda _: StatusQuery(), SiteStatus, QUICK, lambda site, _: used.append(site), Round("r"))
    assert sorted(used) == ["a", "b", "c"]
    assert sorted((one.kind, one.site) for one in told) == [("repeated", "a"), ("repeated", "b"), ("repeated", "c")]


def test_a_reply_of_a_round_that_is_over_comes_again() -> None:
    told: list[Misplaced] = []
    seen: list[FlowerMessage] = []

    def again(replies: list[FlowerMessage]) -> list[FlowerMessage]:
        earlier, seen[:] = list(seen), replies
        return [*earlier, *replies]

    post = Post(Misbehaving(again), told.append)
    assert hold(post, 1) == {"a": 1, "b": 1, "c": 1}
    assert hold(post, 2) == {"a": 2, "b": 2, "c": 2}
    assert {(one.kind, one.round) for one in told} >= {("repeated", Round("r", 1))}


def test_a_reply_to_a_former_process_is_stray() -> None:
    """After a resume: the site answers a message that this process never sent."""
    told: list[Misplaced] = []
    before: list[FlowerMessage] = []
    grid = Misbehaving(lambda replies: replies)
    (asked,) = grid.push_messages([FlowerMessage(StatusQuery().to_record(), 100, "query.status", group_id="")])
    before += grid.pull_messages([asked])
    grid.change = lambda replies: [*before, *replies] if not told else replies
    assert hold(Post(grid, told.append), 1) == {"a": 2, "b": 1, "c": 1}
    assert [(one.kind, one.site, one.round) for one in told] == [("stray", "", None)]


def test_no_more_answered_messages_are_remembered_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWERED_KEPT", 2)
    post = Post(LocalGrid(app(), 3))
    for number in range(4):
        hold(post, number)
    assert len(post._answered) == 2


class Refusing(LocalGrid):
    """Takes no message for node 101: with an empty id, as deployed, or with none, as in Flower's simulation."""

    def __init__(self, ids: list[str]) -> None:
        super().__init__(app(), 3)
        self._ids = ids

    def push_messages(self, messages: Iterable[FlowerMessage]) -> Iterable[str]:
        messages = list(messages)
        return self._ids if messages[0].metadata.dst_node_id == 101 else super().push_messages(messages)


@pytest.mark.parametrize("ids", [[], [""]])
def test_a_node_that_flower_does_not_know_gives_no_answer(ids: list[str]) -> None:
    answer = run_round(Post(Refusing(ids)), NODES, lambda _: StatusQuery(), SiteStatus, RoundSettings(quorum=0.5))
    assert answer.used == ("a", "c")
    assert [(one.site, one.code) for one in answer.refused] == [("b", "no_answer")]


class Losing(LocalGrid):
    """Takes a site's first `times` messages not, with `error`; keeps which messages it was given."""

    def __init__(self, error: Exception, times: int) -> None:
        super().__init__(app(), 3)
        self._error, self._times = error, times
        self.given: list[tuple[int, FlowerMessage]] = []

    def push_messages(self, messages: Iterable[FlowerMessage]) -> Iterable[str]:
        messages = list(messages)
        self.given.append((node := messages[0].metadata.dst_node_id, messages[0]))
        if [to for to, _ in self.given].count(node) <= self._times:
            raise self._error
        return super().push_messages(messages)


def status(code: int) -> httpx.HTTPStatusError:
    return httpx.HTTPStatusError("", request=httpx.Request("POST", "https://link"), response=httpx.Response(code))


@pytest.mark.parametrize("error", [ObjectPushError("0" * 64, 1, "session"), status(500)])
def test_a_question_that_the_superlink_did_not_store_is_pushed_again_as_the_same_message(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PUSH_PAUSE", 0.0)
    grid = Losing(error, module.PUSHES - 1)
    answer = run_round(Post(grid), NODES, lambda _: StatusQuery(), SiteStatus, RoundSettings())
    assert answer.used == ("a", "b", "c")
    assert all(status.train == 1 for status in answer.replies.values()), "each site was asked once"
    for node in NODES.values():
        pushed = [message for to, message in grid.given if to == node]
        assert len(pushed) == module.PUSHES
        assert all(message is pushed[0] for message in pushed)


@pytest.mark.parametrize(("error", "pushes"), [(status(500), module.PUSHES), (status(422), 1)])
def test_a_push_that_fails_again_and_again_or_that_flower_refuses_is_the_runs_failure(
    error: Exception, pushes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PUSH_PAUSE", 0.0)
    grid = Losing(error, module.PUSHES)
    with pytest.raises(type(error)):
        run_round(Post(grid), NODES, lambda _: StatusQuery(), SiteStatus, RoundSettings())
    assert len(grid.given) == pushes


def test_flowers_store_takes_a_message_again_after_it_failed_to_register_it() -> None:
    """Why questions are pushed again (Flower 1.41): an array of two is removed while the second is registered."""
    array, first, second = "a" * 64, "1" * 64, "2" * 64
    store = InMemoryObjectStore(verify=False)
    for missing in store.preregister(1, tree := ObjectTree(object_id=first, children=[ObjectTree(object_id=array)])):
        store.put(missing, b"content")
    tree.object_id = second
    with pytest.MonkeyPatch.context() as patch:
        walk = in_memory_object_store.iterate_object_tree

        def confirmed_meanwhile(tree: ObjectTree) -> Iterable[ObjectTree]:
            for node in walk(tree):
                if node.object_id == second:
                    store.delete(first)
                yield node

        patch.setattr(in_memory_object_store, "iterate_object_tree", confirmed_meanwhile)
        with pytest.raises(KeyError):
            store.preregister(1, tree)
    assert set(store.preregister(1, tree)) == {array, second}
    for missing in (array, second):
        store.put(missing, b"content")
    assert store.get(array) == store.get(second) == b"content"


def test_a_site_that_is_not_connected_is_not_asked_and_counts_for_the_quorum() -> None:
    asked: list[str] = []

    def question(site: str) -> StatusQuery:
        asked.append(site)
        return StatusQuery()

    nodes = {"a": 100, "b": None, "c": 102}
    answer = run_round(Post(LocalGrid(app(), 3)), nodes, question, SiteStatus, RoundSettings(quorum=0.6))
    assert asked == ["a", "c"]
    assert [(one.site, one.code) for one in answer.refused] == [("b", "no_answer")]


def test_a_round_that_is_the_only_one_has_no_number() -> None:
    assert (str(Round("audit")), Round("audit").as_json()) == ("audit", {"round": "audit"})
    assert (str(Round("fit", 3)), Round("fit", 3).as_json()) == ("fit 3", {"round": "fit", "number": 3})
