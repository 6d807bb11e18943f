"""One round over a grid whose sites are fakes: who answers, who does not, and what the round makes of it."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterable
from itertools import accumulate
from types import SimpleNamespace

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, RecordDict
from flwr.app import Message as FlowerMessage
from flwr.clientapp import ClientApp

from excise.common.errors import Interrupted, QuorumError, UpdateRefused
from excise.common.messages import (
    PROTOCOL,
    AuditQuery,
    AuditReply,
    Failure,
    SiteStatus,
    SiteUpdate,
    StatusQuery,
)
from excise.common.models import ModelSpec
from excise.common.request import ForgetRequest
from excise.common.settings import RoundSettings
from excise.server import rounds
from excise.server.post import Post, record_bytes
from excise.server.rounds import Refusal, RoundResult, advice, run_round
from excise.simulations.local_grid import LocalGrid

Reply = Callable[[], RecordDict]
NODES = {"a": 100, "b": 101, "c": 102}  # LocalGrid counts from 100
HALF = RoundSettings(quorum=0.5, deadline=0.3)


def status(site: str = "a") -> SiteStatus:
    return SiteStatus(
        site=site, train=9, forget=2, excluded=0, reference=3, held_out=3, skipped=0, forgotten=0, classes=("x", "y")
    )


def update() -> SiteUpdate:
    return SiteUpdate(weights_in="0", delta={"w": torch.ones(5, 2)}, passes=3, seconds=0.1)


def sites(*replies: Reply) -> ClientApp:
    """Site i answers every query with the i-th of `replies`."""
    app = ClientApp()

    def answer(message: FlowerMessage, context: Context) -> FlowerMessage:
        return FlowerMessage(replies[int(context.node_config["partition-id"])](), reply_to=message)

    app.query("status")(answer)
    app.evaluate("audit")(answer)
    return app


def good() -> RecordDict:
    return status().to_record()


def ask(grid: LocalGrid, settings: RoundSettings = HALF, nodes: dict[str, int] = NODES) -> RoundResult[SiteStatus]:
    return run_round(Post(grid), nodes, lambda _: StatusQuery(), SiteStatus, settings)


def without(key: str) -> RecordDict:
    record = good()
    del record.config_records["message"][key]
    return record


def with_value(key: str, value: str | int | list[int]) -> RecordDict:
    record = good()
    record.config_records["message"][key] = value
    return record


class Scripted(LocalGrid):
    """Hands on at most one reply at a look, holds back those of `slow` until look number `until`, and counts."""

    def __init__(self, app: ClientApp, nodes: int, slow: Iterable[int] = (), until: int = 0) -> None:
        super().__init__(app, nodes)
        self._slow, self._until, self.looks = set(slow), until, 0
        self.outstanding = self.most = self.pushed = 0
        self._node_of: dict[str, int] = {}

    def push_messages(self, messages: Iterable[FlowerMessage]) -> Iterable[str]:
        messages = list(messages)
        ids = list(super().push_messages(messages))
        self._node_of |= {i: m.metadata.dst_node_id for i, m in zip(ids, messages, strict=True)}
        self.pushed += len(ids)
        self.outstanding += len(ids)
        self.most = max(self.most, self.outstanding)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[FlowerMessage]:
        self.looks += 1
        ready = [i for i in message_ids if self._node_of[i] not in self._slow or self.looks >= self._until]
        replies = list(super().pull_messages(ready[:1]))
        self.outstanding -= len(replies)
        return replies


@pytest.mark.parametrize("window", [1, 2, 3])
def test_no_more_answers_are_in_memory_than_are_under_way(window: int) -> None:
    gave: list[weakref.ref[RecordDict]] = []
    alive: list[int] = []

    def reply() -> RecordDict:
        alive.append(1 + sum(there() is not None for there in gave))
        record = good()
        gave.append(weakref.ref(record))
        return record

    nodes = {f"site-{i}": 100 + i for i in range(9)}
    used: list[str] = []
    grid = LocalGrid(sites(*[reply] * 9), 9)
    settings = RoundSettings(window=window)
    run_round(Post(grid), nodes, lambda _: StatusQuery(), SiteStatus, settings, lambda site, _: used.append(site))
    assert used == sorted(nodes)
    assert max(alive) == window


def test_every_site_answers() -> None:
    letters = sites(*(lambda site=site: status(site).to_record() for site in NODES))
    answer = ask(LocalGrid(letters, 3), RoundSettings())
    assert answer.used == ("a", "b", "c")
    assert answer.refused == ()
    assert {site: reply.site for site, reply in answer.replies.items()} == {"a": "a", "b": "b", "c": "c"}


def test_use_takes_every_reply_and_none_is_kept() -> None:
    taken: dict[str, SiteStatus] = {}
    grid = LocalGrid(sites(good, good, good), 3)
    answer = run_round(Post(grid), NODES, lambda _: StatusQuery(), SiteStatus, HALF, taken.__setitem__)
    assert taken.keys() == NODES.keys()
    assert answer.replies == {}


def test_a_dead_site_is_refused_at_the_deadline_and_the_round_goes_on() -> None:
    began = time.monotonic()
    answer = ask(LocalGrid(sites(good, good, good), 3, dead=[1]))
    assert answer.used == ("a", "c")
    assert [(r.site, r.code) for r in answer.refused] == [("b", "no_answer")]
    assert 0.3 <= time.monotonic() - began < 5


def test_the_longer_a_silence_the_rarer_the_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses = list[float]()
    clock = SimpleNamespace(monotonic=lambda: sum(pauses), sleep=pauses.append)
    monkeypatch.setattr(rounds, "time", clock)
    answer = ask(Scripted(sites(good), 1, slow=[100], until=50), RoundSettings(deadline=60), {"a": 100})
    assert answer.used == ("a",)
    silences = list(accumulate(pauses, initial=0.0))[:-1]
    assert pauses == pytest.approx([min(0.5, max(0.05, silence / 10)) for silence in silences])
    assert (pauses[0], pauses[-1]) == (0.05, 0.5)


def test_a_round_without_its_quorum_names_the_missing_sites() -> None:
    with pytest.raises(QuorumError, match=r"1 of 3 sites .*quorum is 50%.*a \(no_answer\), c \(no_answer\)") as caught:
        ask(LocalGrid(sites(good, good, good), 3, dead=[0, 2]))
    assert caught.value.missing == ("a", "c")


def test_quorum_is_met_by_exactly_its_share() -> None:
    answer = ask(LocalGrid(sites(good, good), 2, dead=[0]), nodes={"a": 100, "b": 101})
    assert answer.used == ("b",)


def test_nobody_is_no_quorum_however_small() -> None:
    with pytest.raises(QuorumError):
        ask(LocalGrid(sites(good), 1, dead=[0]), RoundSettings(quorum=0.01, deadline=0.1), {"a": 100})


MALFORMED: dict[str, Reply] = {
    "another kind": lambda: AuditReply(metrics={}, profiles={}).to_record(),
    "a question": lambda: StatusQuery().to_record(),
    "another protocol": lambda: with_value("protocol", 99),
    "no protocol": lambda: without("protocol"),
    "a missing field": lambda: without("site"),
    "a field of another type": lambda: with_value("train", "nine"),
    "a list for a number": lambda: with_value("train", [9]),
    "an empty record": RecordDict,
    "a record of another kind": lambda: RecordDict({"message": ArrayRecord()}),
    "a failure without a code": lambda: RecordDict({"message": ConfigRecord({"kind": Failure.KIND, "protocol": PROTOCOL})}),
}


@pytest.mark.parametrize("reply", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_reply_is_refused_and_the_round_goes_on(reply: Reply) -> None:
    answer = ask(LocalGrid(sites(good, reply, good), 3))
    assert answer.used == ("a", "c")
    assert [(r.site, r.code) for r in answer.refused] == [("b", "malformed")]


def _bad_array() -> RecordDict:
    record = update().to_record()
    record["delta"] = ArrayRecord({"w": Array("float32", (5, 2), "numpy.ndarray", b"not an array")})
    return record


def _pickled_array() -> RecordDict:
    record = update().to_record()
    record["delta"] = ArrayRecord({"w": Array("float32", (5, 2), "pickle", b"\x80\x04N.")})
    return record


def _text_for_numbers() -> RecordDict:
    record = update().to_record()
    record.config_records["message"]["ascent"] = ["low", "high"]
    return record


def _text_profile() -> RecordDict:
    record = AuditReply(metrics={}, profiles={"forget/0": (0.5,)}).to_record()
    record.config_records["profiles"]["forget/0"] = ["low", "high"]
    return record


@pytest.mark.parametrize(
    ("reply", "kind"),
    [(_bad_array, SiteUpdate), (_pickled_array, SiteUpdate), (_text_for_numbers, SiteUpdate), (_text_profile, AuditReply)],
    ids=["bytes that are no array", "an array of another serialisation", "text for numbers", "text in a profile"],
)
def test_malformed_contents_are_refused_too(reply: Reply, kind: type[SiteUpdate | AuditReply]) -> None:
    grid = LocalGrid(sites(reply, lambda: status().to_record()), 2)
    with pytest.raises(QuorumError, match=r"a \(malformed\)"):
        run_round(Post(grid), {"a": 100}, lambda _: StatusQuery(), kind, HALF)


def test_an_exception_in_the_app_is_no_answer() -> None:
    def broken() -> RecordDict:
        raise RuntimeError("patient 17")

    answer = ask(LocalGrid(sites(good, broken, good), 3))
    assert [(r.site, r.code, r.incident) for r in answer.refused] == [("b", "no_answer", "")]


def test_a_failure_keeps_its_code_and_incident() -> None:
    failed = Failure(code="bad_data", incident="0123abcd").to_record
    answer = ask(LocalGrid(sites(good, failed, good), 3))
    assert [(r.site, r.code, r.incident) for r in answer.refused] == [("b", "bad_data", "0123abcd")]


def test_an_update_that_use_refuses_counts_as_no_answer() -> None:
    def use(site: str, reply: SiteStatus) -> None:
        if site == "b":
            raise UpdateRefused("not_finite", "NaN")

    grid = LocalGrid(sites(good, good, good), 3)
    answer = run_round(Post(grid), NODES, lambda _: StatusQuery(), SiteStatus, HALF, use)
    assert answer.used == ("a", "c")
    assert [(r.site, r.code) for r in answer.refused] == [("b", "not_finite")]
    with pytest.raises(QuorumError, match=r"b \(not_finite\)"):
        run_round(Post(grid), NODES, lambda _: StatusQuery(), SiteStatus, RoundSettings(quorum=1), use)


@pytest.mark.parametrize("window", [1, 2, 5])
def test_no_more_messages_are_outstanding_than_the_window(window: int) -> None:
    nodes = {f"site-{i}": 100 + i for i in range(5)}
    grid = Scripted(sites(*[good] * 5), 5)
    answer = ask(grid, RoundSettings(window=window), nodes)
    assert len(answer.used) == 5
    assert grid.most == window


def test_a_question_is_built_only_when_it_is_sent() -> None:
    grid = Scripted(sites(good, good, good), 3)
    built: list[int] = []

    def question(_: str) -> StatusQuery:
        built.append(grid.outstanding)
        return StatusQuery()

    run_round(Post(grid), NODES, question, SiteStatus, RoundSettings(window=1))
    assert built == [0, 0, 0]


def test_a_slow_site_is_waited_for() -> None:
    grid = Scripted(sites(good, good, good), 3, slow=[101], until=6)
    answer = ask(grid, RoundSettings(deadline=30))
    assert answer.used == ("a", "b", "c")
    assert grid.looks >= 6


def test_an_answer_after_the_deadline_counts_in_no_round() -> None:
    count = 0

    def late() -> RecordDict:
        nonlocal count
        count += 1
        return status(f"round-{count}").to_record()

    grid = Scripted(sites(good, late, good), 3, slow=[101], until=10**9)
    answer = ask(grid)
    assert [(r.site, r.code) for r in answer.refused] == [("b", "no_answer")]
    grid._until = 0  # its first answer arrives only now
    assert ask(grid).replies["b"].site == "round-2"


def test_a_site_that_was_never_asked_is_missing_too() -> None:
    grid = Scripted(sites(good, good, good), 3, slow=[100], until=10**9)
    with pytest.raises(QuorumError) as caught:
        ask(grid, RoundSettings(window=1, deadline=0.2))
    assert caught.value.missing == ("a", "b", "c")


def test_stopped_before_the_first_question_sends_nothing() -> None:
    grid = Scripted(sites(good), 1)
    with pytest.raises(Interrupted):
        run_round(Post(grid), {"a": 100}, lambda _: StatusQuery(), SiteStatus, HALF, stopped=lambda: True)
    assert grid.pushed == 0


def test_stopped_while_waiting_ends_the_round_at_once() -> None:
    grid = Scripted(sites(good), 1, slow=[100], until=10**9)
    began = time.monotonic()
    with pytest.raises(Interrupted):
        run_round(
            Post(grid),
            {"a": 100},
            lambda _: StatusQuery(),
            SiteStatus,
            RoundSettings(deadline=60),
            stopped=lambda: grid.looks > 1,
        )
    assert time.monotonic() - began < 10


def test_bytes_of_arrays_are_counted_both_ways() -> None:
    spec, request = ModelSpec(), ForgetRequest(id="r", kind="samples", where="item = 1", reason="test")
    query = AuditQuery(model=spec, candidates={"a": {"w": torch.ones(100), "b": torch.ones(3)}}, request=request)
    grid = LocalGrid(sites(lambda: update().to_record(), lambda: update().to_record()), 2)
    answer = run_round(Post(grid), {"a": 100, "b": 101}, lambda _: query, SiteUpdate, HALF, lambda *_: None)
    assert answer.bytes_down == 2 * record_bytes(query.to_record()) >= 2 * 103 * 4
    assert answer.bytes_up == 2 * record_bytes(update().to_record()) >= 2 * 10 * 4
    assert record_bytes(RecordDict()) == 0


def test_the_advice_tells_the_silent_from_those_that_refused() -> None:
    assert advice([Refusal("a", "no_answer")]) == "Start those sites, or lower rounds.quorum."
    told = advice([Refusal("a", "no_answer"), Refusal("north", "bad_data"), Refusal("c", "norm")])
    assert told == (
        "a gave no answer: start those; north refused (bad_data): its engineer finds the reason by excise site status; the "
        "answer of c was not used (norm): docs/coordinator.md tells what the code means. Or lower rounds.quorum."
    )
    assert "start" not in advice([Refusal("north", "bad_data")])
