"""Sites that leave, return and come later, in whole runs: they are found again, and the others' weights do not notice."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context
from flwr.app import Message as FlowerMessage
from flwr.proto.node_pb2 import NodeInfo

from excise.client.config import read_site_config
from excise.common.errors import QuorumError
from excise.common.messages import ReferenceQuery, SiteStatus, StatusQuery, UnlearnInstruction
from excise.server import roster, turns, vigil
from excise.server.coordinator import Coordinator
from excise.server.plan import Plan
from excise.server.post import Round
from excise.server.record import RunFolder
from excise.simulations.engine import simulated_client
from excise.simulations.local_grid import LocalGrid
from excise.simulations.sites import Sites
from tests.scenarios import asked_of, events, hurried, numbers, prepared, run, same

Json = dict[str, Any]
HALF = {"quorum": 0.5, "deadline": 0.6}
TOLD = ("left", "returned", "joined", "refused", "awaiting", "late")


class Moving(LocalGrid):
    """A grid whose nodes come and go, that keeps what they were asked.

    Attributes
    ----------
    gone : nodes that are not connected
    names : names of nodes, where Flower knows them
    """

    def __init__(self, sites: Sites, names: dict[int, str] | None = None) -> None:
        super().__init__(simulated_client(sites.configs), len(sites.configs))
        self.gone: set[int] = set()
        self.names = names or {}
        self.asked: list[tuple[str, int, FlowerMessage]] = []

    def get_node_ids(self) -> Iterable[int]:
        return [node for node in self._contexts if node not in self.gone]

    def get_nodes(self) -> Iterable[NodeInfo]:
        return [NodeInfo(node_id=node, name=self.names.get(node, "")) for node in self.get_node_ids()]

    def push_messages(self, messages: Iterable[FlowerMessage]) -> Iterable[str]:
        messages = list(messages)
        self.asked += [(x.metadata.message_type, x.metadata.dst_node_id, x) for x in messages]
        return super().push_messages(messages)

    def renumber(self, node: int, new: int) -> None:
        """The site of `node` comes back as node `new`, of which Flower does not know that it is the same."""
        old = self._contexts.pop(node)
        self._contexts[new] = Context(old.run_id, new, old.node_config, old.state, old.run_config)

    def kinds(self, node: int) -> list[str]:
        return [kind for kind, to, _ in self.asked if to == node]


def carry_out(
    plan: Plan,
    grid: LocalGrid,
    folder: Path,
    at: dict[tuple[str, int], Callable[[], Any]] | None = None,
    retrain: bool = False,
) -> Json:
    """Carry out `plan`; before round `n` (from 0) of `phase`, do ``at[phase, n]``."""
    plan = plan.model_copy(update={"retrain": retrain})

    def progress(phase: str, done: int, total: int, note: str) -> None:
        if at and (act := at.pop((phase, done), None)):
            act()

    return Coordinator(grid, plan, RunFolder(folder), progress).run()


def told(folder: Path) -> list[tuple[str, Any]]:
    return [(event["event"], event.get("site", event.get("sites"))) for event in events(folder) if event["event"] in TOLD]


def used(results: Json) -> list[list[str]]:
    """Sites whose update was used, by unlearning round."""
    return [sorted(entry["updates"]) for entry in results["unlearned"]["history"]]


ALL, TWO = ["site-1", "site-2", "site-3"], ["site-1", "site-2"]


def test_a_run_that_nobody_disturbs_asks_for_each_status_once(tmp_path: Path) -> None:
    plan, sites = prepared(tmp_path)
    assert len(asked_of(hurried(plan), sites, tmp_path / "run", StatusQuery)) == 3
    assert told(tmp_path / "run") == []


def test_a_site_that_is_silent_in_one_round_is_asked_in_the_next(tmp_path: Path) -> None:
    plan, sites = prepared(tmp_path, rounds=HALF, unlearning={"local": {"rounds": 3}})
    grid = Moving(sites)
    at = {("unlearned", 1): lambda: grid._dead.add(102), ("unlearned", 2): grid._dead.clear}
    assert used(carry_out(plan, grid, tmp_path / "run", at)) == [ALL, TWO, ALL]


def test_a_site_that_left_is_not_asked_and_is_asked_again_when_it_is_back(tmp_path: Path) -> None:
    plan, sites = prepared(tmp_path, rounds=HALF, unlearning={"local": {"rounds": 3}})
    grid = Moving(sites)
    at = {("unlearned", 1): lambda: grid.gone.add(102), ("unlearned", 2): grid.gone.clear}
    assert used(carry_out(plan, grid, tmp_path / "run", at)) == [ALL, TWO, ALL]
    assert told(tmp_path / "run") == [
        ("left", "site-3"),
        ("refused", "site-3"),  # of the round,
        ("refused", "site-3"),  # and of its audit
        ("returned", "site-3"),
    ]
    assert grid.kinds(102).count("train.unlearn") == 2
    assert grid.kinds(102).count("query.status") == 1


def test_a_site_that_left_has_no_turn_until_it_is_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "FEWEST_TURNS", 1)
    plan, sites = prepared(
        tmp_path,
        request={"where": "site = site-1 and class = 1"},
        rounds=HALF,
        unlearning={"local": {"retain_batch": 16, "rounds": 5}},
    )
    grid = Moving(sites)

    def the_next_one_leaves() -> None:
        (next_one,) = [node for node in (101, 102) if "train.unlearn" not in grid.kinds(node)]
        grid.gone.add(next_one)

    at = {("unlearned", 1): the_next_one_leaves, ("unlearned", 3): grid.gone.clear}
    first, absent, instead, known_later, back = used(carry_out(plan, grid, tmp_path / "run", at))
    assert absent == ["site-1"]  # that it left shows when it is asked
    assert instead == known_later == first
    assert back == sorted({*ALL} - {*first} | {"site-1"})


def test_a_site_that_comes_back_as_another_node_is_found_again(tmp_path: Path) -> None:
    plan, sites = prepared(tmp_path, rounds=HALF, unlearning={"local": {"rounds": 3}})
    grid = Moving(sites)
    results = carry_out(plan, grid, tmp_path / "run", {("unlearned", 1): lambda: grid.renumber(102, 555)})
    assert used(results)[0] == used(results)[2] == ALL
    assert told(tmp_path / "run")[:2] == [("left", "site-3"), ("returned", "site-3")]
    assert grid.kinds(555).count("query.status") == 1
    assert "query.reference" in grid.kinds(555)  # it may have lost the deployed model with all else
    assert "train.unlearn" in grid.kinds(555)


def test_a_site_that_was_not_there_at_the_start_takes_part_from_when_it_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roster, "AGAIN", 0.0)
    plan, sites = prepared(tmp_path, rounds=HALF, unlearning={"local": {"rounds": 4}}, training={"rounds": 1})
    grid = Moving(sites)
    grid.gone = {101}  # which holds all that is to be forgotten but for what the others hold
    plan = plan.model_copy(update={"request": plan.request.model_copy(update={"where": "class = 1"})})
    results = carry_out(plan, grid, tmp_path / "run", {("unlearned", 2): grid.gone.clear})
    without, late = ["site-1", "site-3"], [("joined", "site-2")]
    assert used(results)[:2] == [without, without]
    assert used(results)[3] == ALL
    assert [one for one in told(tmp_path / "run") if one[0] != "awaiting"] == late
    assert list(results["sites"]) == ALL
    assert grid.kinds(101)[0] == "query.status"
    assert grid.kinds(101).index("query.reference") < grid.kinds(101).index("train.unlearn")  # with the deployed model


def test_a_silent_node_is_not_asked_for_its_status_round_after_round(tmp_path: Path) -> None:
    plan, sites = prepared(tmp_path, rounds=HALF)
    grid = Moving(sites)
    grid._dead = {102}
    carry_out(plan, grid, tmp_path / "run")
    assert grid.kinds(102) == ["query.status"]


def test_a_site_that_lost_the_deployed_model_is_brought_it_again(tmp_path: Path) -> None:
    plan, sites = prepared(tmp_path, rounds=HALF, unlearning={"local": {"rounds": 3}})
    grid = Moving(sites)
    teachers = read_site_config(sites.configs[2]).state / "teachers"
    results = carry_out(plan, grid, tmp_path / "run", {("unlearned", 1): lambda: shutil.rmtree(teachers)})
    assert used(results) == [ALL, TWO, ALL]
    (refused,) = [event for event in events(tmp_path / "run") if event["event"] == "refused"]
    assert (refused["site"], refused["code"], refused["number"]) == ("site-3", "teacher_missing", 2)


def test_a_run_begins_with_a_quorum_when_the_others_do_not_connect(tmp_path: Path) -> None:
    plan, sites = prepared(tmp_path, rounds={"quorum": 0.6, "deadline": 0.6})
    grid = Moving(sites)
    grid.gone = {102}
    assert list(carry_out(plan, grid, tmp_path / "run")["sites"]) == TWO


def test_those_that_are_connected_and_silent_count_for_the_quorum_of_the_start(tmp_path: Path) -> None:
    plan, sites = prepared(tmp_path, rounds={"quorum": 0.6, "deadline": 0.6})
    grid = Moving(sites)
    grid.gone, grid._dead = {102}, {101}
    with pytest.raises(QuorumError) as caught:
        carry_out(plan, grid, tmp_path / "run")
    assert caught.value.missing == ("site-2", "site-3")


def test_too_few_that_are_connected_are_named_where_flower_knows_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vigil, "QUIET", 0.0)
    plan, sites = prepared(tmp_path)
    grid = Moving(sites, {100: "site-1", 101: "site-2", 102: "site-3"})
    grid.gone = {101}
    with pytest.raises(QuorumError, match=r"2 of 3 sites connected; .* Not connected: site-2") as caught:
        carry_out(plan, grid, tmp_path / "run")
    assert caught.value.missing == ("site-2",)
    (awaiting,) = [event for event in events(tmp_path / "run") if event["event"] == "awaiting"]
    assert (awaiting["round"], awaiting["sites"], awaiting["connected"], awaiting["of"]) == ("status", ["site-2"], 2, 3)


def test_a_site_that_the_run_does_not_concern_is_not_asked(tmp_path: Path) -> None:
    plan, sites = prepared(tmp_path)
    plan = plan.model_copy(update={"sites": 2, "site_names": ("site-1", "site-2")})
    grid = Moving(sites, {100: "site-1", 101: "site-2", 102: "site-3"})
    results = carry_out(plan, grid, tmp_path / "run")
    assert (sorted(results["sites"]), grid.kinds(102)) == (["site-1", "site-2"], [])


def test_a_site_that_refuses_is_called_by_its_name_and_is_not_to_be_started(tmp_path: Path) -> None:
    plan, sites = prepared(tmp_path)
    sites.configs[1].write_text(sites.configs[1].read_text().replace('name = "site-2"', 'name = "site-2"\nno_such_key = 1', 1))
    grid = Moving(sites, {100: "site-1", 101: "site-2", 102: "site-3"})
    with pytest.raises(QuorumError) as caught:
        carry_out(plan, grid, tmp_path / "run")
    assert "site-2 refused (bad_config): its engineer finds the reason by excise site status" in str(caught.value)
    assert ("Silent" in str(caught.value), "start" in str(caught.value).lower()) == (False, False)
    assert [(one["site"], one["code"]) for one in events(tmp_path / "run") if one["event"] == "refused"] == [
        ("site-2", "bad_config")
    ]


def test_a_site_does_not_speak_under_another_name(tmp_path: Path) -> None:
    plan, sites = prepared(tmp_path, rounds=HALF)
    grid = Moving(sites, {100: "site-1", 101: "site-2", 102: "site-2"})  # the third, which calls itself site-3
    results = carry_out(plan.model_copy(update={"sites": 2, "site_names": ("site-1", "site-2")}), grid, tmp_path / "run")
    assert sorted(results["sites"]) == ["site-1", "site-2"]
    assert [(one["site"], one["code"]) for one in events(tmp_path / "run") if one["event"] == "refused"] == [
        ("node-102", "another_name")
    ]


def test_nobody_works_in_vain_while_too_few_are_connected(tmp_path: Path) -> None:
    plan, sites = prepared(tmp_path)
    grid = Moving(sites)
    with pytest.raises(QuorumError, match=r"2 of 3 sites are connected; the quorum is 100%. Missing: site-3\.") as caught:
        carry_out(plan, grid, tmp_path / "run", {("unlearned", 1): lambda: grid.gone.add(102)})
    assert caught.value.missing == ("site-3",)
    assert grid.kinds(100).count("train.unlearn") == 1
    assert ("refused", "site-3") in told(tmp_path / "run")
    grid.gone.clear()
    assert used(carry_out(plan, grid, tmp_path / "run")) == [ALL, ALL]


def test_a_run_waits_for_a_quorum_to_return(undisturbed: Json, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vigil, "QUIET", 0.0)
    monkeypatch.setattr(roster, "LOOK", 0.01)
    plan, sites = prepared(tmp_path, rounds={"deadline": 60.0})
    looks = 0

    class Returning(Moving):
        def get_node_ids(self) -> Iterable[int]:
            nonlocal looks
            looks += bool(self.gone)
            if looks > 3:
                self.gone.clear()
            return super().get_node_ids()

    grid = Returning(sites)
    results = carry_out(plan, grid, tmp_path / "run", {("unlearned", 1): lambda: grid.gone.add(102)}, retrain=True)
    assert told(tmp_path / "run") == [("left", "site-3"), ("awaiting", ["site-3"]), ("returned", "site-3")]
    assert same(numbers(results), numbers(undisturbed))  # whatever was waited for


def status_of(site: str, classes: tuple[str, ...]) -> SiteStatus:
    counts = dict.fromkeys(("train", "forget", "excluded", "reference", "held_out", "skipped", "forgotten"), 1)
    return SiteStatus(site=site, classes=classes, **counts)


@pytest.mark.parametrize(
    ("site", "classes", "code", "again"),
    [
        ("site-1", ("0", "1"), "name_taken", True),  # its name may be free when Flower has seen that the other is gone
        ("stranger", ("0", "1"), "not_in_plan", False),
        ("site-3", ("0", "1", "2"), "other_classes", False),
    ],
)
def test_a_newcomer_that_does_not_fit_is_turned_away_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, site: str, classes: tuple[str, ...], code: str, again: bool
) -> None:
    monkeypatch.setattr(roster, "AGAIN", 0.0)
    plan, sites = prepared(tmp_path, rounds=HALF)
    grid = Moving(sites)
    coordinator = Coordinator(grid, plan, RunFolder(tmp_path / "run"))
    people = coordinator.federation.roster
    coordinator.federation.gather()
    before = dict(people.nodes), dict(people.status)
    grid.renumber(102, 555)
    real = grid._app

    def lying(message: FlowerMessage, context: Context) -> FlowerMessage:
        if context.node_id != 555:
            return real(message, context)
        return FlowerMessage(status_of(site, classes).to_record(), reply_to=message)

    grid._app = lying  # type: ignore[assignment]
    for _ in range(2):
        assert people.present(ALL, lambda *_: None) == {"site-1": 100, "site-2": 101, "site-3": None}
    assert (people.nodes, people.status) == before
    refused = [event for event in events(tmp_path / "run") if event["event"] == "refused"]
    assert [(event["site"], event["code"]) for event in refused] == [(site, code)] * (2 if again else 1)


def test_sites_stand_in_the_order_of_their_names_whenever_they_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roster, "AGAIN", 0.0)
    plan, sites = prepared(tmp_path, rounds=HALF)
    grid = Moving(replace(sites, configs=sites.configs[::-1]))
    people = Coordinator(grid, plan, RunFolder(tmp_path / "run")).federation.roster
    people.gather()
    grid.renumber(102, 99)
    people.present(ALL, lambda *_: None)
    assert list(people.nodes) == list(people.status) == list(people.counts()) == ALL
    assert people.nodes == {"site-1": 99, "site-2": 101, "site-3": 100}


# --- what a site is told -----------------------------------------------------------------------------------------------------


def refusal(message: FlowerMessage) -> tuple[Any, Any]:
    """What a question says of an earlier answer: code and round."""
    config = message.content.config_records["message"]
    return config["refused"], config["refused_round"]


def test_an_update_that_is_refused_is_told_with_the_next_message_and_once(tmp_path: Path) -> None:
    plan, sites = prepared(tmp_path, rounds=HALF, unlearning={"local": {"rounds": 2}})

    class Spoiling(Moving):
        spoilt = 0

        def _deliver(self, message: FlowerMessage) -> str:
            asked = super()._deliver(message)
            if message.metadata.message_type == "train.unlearn" and message.metadata.dst_node_id == 102 and not self.spoilt:
                self.spoilt += 1
                update = self._replies[asked].content
                update.config_records["message"]["weights_in"] = "0" * 64
            return asked

    grid = Spoiling(sites)
    carry_out(plan, grid, tmp_path / "run")
    carried = [(kind, to, *refusal(message)) for kind, to, message in grid.asked if refusal(message)[0]]
    assert carried == [("evaluate.audit", 102, "wrong_base", "unlearned 1")]


def test_a_refusal_is_told_until_the_site_has_answered_to_it(tmp_path: Path) -> None:
    plan, sites = prepared(tmp_path, rounds=HALF, training={"rounds": 1})
    grid = Moving(sites)
    coordinator = Coordinator(grid, plan, RunFolder(tmp_path / "run"))
    federation = coordinator.federation
    federation.gather()
    federation._owed["site-3"] = ("norm", Round("unlearned", 2))
    grid._dead = {102}
    federation.audit({})
    grid._dead = set()
    federation.audit({})
    federation.audit({})
    assert [refusal(x)[0] for kind, to, x in grid.asked if kind == "evaluate.audit" and to == 102] == ["norm", "norm", ""]
    assert {refusal(x) for _, to, x in grid.asked if to != 102} == {("", "")}


def test_an_answer_that_comes_late_is_told_to_the_coordinator_and_to_its_site(tmp_path: Path) -> None:
    plan, sites = prepared(tmp_path, rounds=HALF, unlearning={"local": {"rounds": 2}}, training={"rounds": 1})

    class Slow(Moving):
        held: dict[str, FlowerMessage] = {}  # noqa: RUF012 - one grid, one test

        def _deliver(self, message: FlowerMessage) -> str:
            if message.metadata.message_type != "train.unlearn" or message.metadata.dst_node_id != 102:
                self._replies |= self.held
                self.held.clear()
                return super()._deliver(message)
            asked = super()._deliver(message)
            self.held[asked] = self._replies.pop(asked)
            return asked

    grid = Slow(sites)
    results = carry_out(plan, grid, tmp_path / "run")
    assert used(results) == [TWO, TWO]
    late = [event for event in events(tmp_path / "run") if event["event"] == "late"]
    assert [(event["round"], event["number"], event["site"]) for event in late] == [("unlearned", n, "site-3") for n in (1, 2)]
    assert all(event["seconds"] >= 0 for event in late)
    assert next(refusal(x) for _, to, x in grid.asked if to == 102 and refusal(x)[0]) == ("late", "unlearned 1")


def test_a_round_names_whom_it_awaits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vigil, "QUIET", 0.0)
    rounds = {"quorum": 0.5, "deadline": 3.0, "watch": False}  # longer than the others take, on any machine
    plan, sites = prepared(tmp_path, rounds=rounds, unlearning={"local": {"rounds": 2}}, training={"rounds": 1})
    grid = Moving(sites)
    at = {("unlearned", 1): lambda: grid._dead.add(102), ("unlearned", 2): grid._dead.clear}
    carry_out(plan, grid, tmp_path / "run", at)
    (awaiting,) = [event for event in events(tmp_path / "run") if event["event"] == "awaiting"]  # once, however long it waits
    assert (awaiting["round"], awaiting["number"], awaiting["sites"]) == ("unlearned", 2, ["site-3"])
    assert datetime.fromisoformat(awaiting["since"]) <= datetime.fromisoformat(awaiting["at"])


def test_a_status_that_does_not_come_is_awaited_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vigil, "QUIET", 0.0)
    plan, sites = prepared(tmp_path, rounds={"quorum": 0.5, "deadline": 3.0})
    grid = Moving(sites)
    grid._dead = {101}
    plan = plan.model_copy(update={"request": plan.request.model_copy(update={"where": "class = 1"})})
    Coordinator(grid, plan, RunFolder(tmp_path / "run")).federation.gather()
    assert told(tmp_path / "run")[0] == ("awaiting", ["site-2"])


def test_the_deployed_model_comes_to_everybody_once(tmp_path: Path) -> None:
    plan, sites = prepared(tmp_path)
    asked = asked_of(hurried(plan), sites, tmp_path / "run", ReferenceQuery, UnlearnInstruction)
    assert [type(one) for one in asked] == [ReferenceQuery] * 3 + [UnlearnInstruction] * 6
    assert run(hurried(plan), sites, tmp_path / "run")["sites"].keys() == set(ALL)
