"""Preparing a run: what cannot be carried out is refused before anything is written, and the plan says what was asked."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from excise.common.decision import Standing
from excise.common.errors import ConfigError, RequestError
from excise.common.request import ForgetRequest, RequestKind, joined
from excise.common.settings import PRESETS
from excise.common.weights import digest, load_weights
from excise.server.dashboard.runner import STARTED
from excise.server.launch import Waiting, carry_out, prepare
from excise.server.life import State
from excise.server.plan import Plan
from excise.server.registry import run_of
from excise.server.requests import draft, move, status
from excise.server.store.leases import held, lease_of
from tests.coordinators import DEVICE, OTHER, SPEC, Network, network, ready

CLASS = ForgetRequest(id="ill", kind=RequestKind.CLASS, where="class = ill", reason="r")
SETTINGS = """
[unlearning.local]
rounds = 3
[rounds]
deadline = 7
[composition]
rule = "median"
[verification]
resamples = 500
"""


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Network]:
    with ready(tmp_path) as one:
        yield one


def prepared(made: Network, *asked: str, settings: Path | None = None, seed: int = 0) -> Path:
    return prepare(made.store, made.folder, made.config, asked, settings, seed, "Ada")


def plan_of(folder: Path) -> Plan:
    return Plan.model_validate(tomllib.loads((folder / "plan.toml").read_text()))


def test_a_plan_is_of_the_preset_of_its_kind_of_the_model_in_use_and_of_the_sites_that_approved(made: Network) -> None:
    made.approved(DEVICE, CLASS)
    folder = prepared(made, "mr7", seed=7)
    plan = plan_of(folder)
    assert (folder, plan.sites, plan.site_names, plan.seed) == (made.config.runs / "mr7", 2, ("a", "b"), 7)
    assert (plan.request, plan.parts, plan.retrain, plan.model) == (DEVICE, (), False, SPEC)
    assert plan.unlearning == PRESETS["samples"]
    assert plan.deployed is not None
    assert digest(load_weights(plan.deployed)) == digest(load_weights(made.folder.parent / "deployed.safetensors"))
    assert plan_of(prepared(made, "ill")).unlearning == PRESETS["classes"]
    assert status(made.store, "mr7").state is State.RUNNING
    assert run_of(made.store, "mr7").base == 1


def test_several_requests_become_one_run(made: Network) -> None:
    made.approved(DEVICE, OTHER, CLASS)
    with pytest.raises(RequestError):
        prepared(made, "mr7", "ill")
    plan = plan_of(prepared(made, "mr7", "mr1"))
    assert (plan.request, plan.parts) == (joined([DEVICE, OTHER]), (DEVICE, OTHER))
    assert {status(made.store, name).run for name in ("mr7", "mr1")} == {"mr7-and-mr1"}


def test_settings_take_the_place_of_the_presets_one_by_one(tmp_path: Path, made: Network) -> None:
    made.approved(DEVICE)
    (tmp_path / "s.toml").write_text(SETTINGS)
    plan = plan_of(prepared(made, "mr7", settings=tmp_path / "s.toml"))
    local = PRESETS["samples"].local.model_copy(update={"rounds": 3})
    assert plan.unlearning == PRESETS["samples"].model_copy(update={"local": local})
    assert (plan.rounds.deadline, plan.composition.rule) == (7, "median")
    assert (plan.verification.resamples, plan.verification.resurfacing) == (500, True)  # a coordinator looks what comes back
    made.approved(OTHER)
    (tmp_path / "s.toml").write_text("[verification]\nresurfacing = false\n")
    plan = plan_of(prepared(made, "mr1", settings=tmp_path / "s.toml"))
    assert (plan.verification.resamples, plan.verification.resurfacing) == (1000, False)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[model]\nclasses = 9\n", "has 'model'; it may have the tables unlearning, composition, rounds, verification"),
        ("[unlearning.local]\nround = 3\n", "round"),
        ("[verification]\nresamples = 1\n", "resamples"),
        ("no TOML", "no settings at"),
    ],
)
def test_settings_that_are_wrong_are_told(tmp_path: Path, made: Network, text: str, reason: str) -> None:
    made.approved(DEVICE)
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(ConfigError, match=reason):
        prepared(made, "mr7", settings=tmp_path / "s.toml")
    assert not made.config.runs.exists()
    assert status(made.store, "mr7").state is State.APPROVED


def test_what_is_not_approved_waits_and_says_for_whom(made: Network) -> None:
    draft(made.store, DEVICE, (), "Ada")
    made.decide("a", DEVICE)
    with pytest.raises(Waiting, match="'mr7' waits for b since 20") as waits:
        prepared(made, "mr7")
    assert waits.value.exit_code == 4
    assert not made.config.runs.exists()


def test_who_denied_is_named(made: Network) -> None:
    draft(made.store, DEVICE, (), "Ada")
    made.decide("a", DEVICE, Standing.DENIED)
    with pytest.raises(Waiting, match="'mr7' was denied by a, and waits for b since 20"):
        prepared(made, "mr7")
    made.decide("b", DEVICE)
    with pytest.raises(Waiting, match="'mr7' was denied by a: nobody runs it unless"):
        prepared(made, "mr7")


def test_a_run_is_told_as_started_only_when_it_is(made: Network, excise: Callable[..., Any]) -> None:
    made.approved(DEVICE)
    code, _, err = excise("server", "run", "mr7", "--by", "Ada", "--server", made.toml)  # nobody listens at the SuperLink
    assert (code, "is excise server up running" in err, "started" in err) == (2, True, False), err
    code, _, err = excise("server", "resume", "mr7", "--server", made.toml)
    assert (code, "started" in err) == (2, False), err


class Link:
    """A SuperLink that has carried a run out before anybody looks."""

    def start(self, *_: object) -> int:
        return 1

    def standing(self, _: int) -> str:
        return "completed"


def test_a_run_that_starts_says_so(made: Network, excise: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("excise.server.launch.linked", lambda *_: nullcontext(Link()))
    made.approved(DEVICE)
    code, _, err = excise("server", "run", "mr7", "--by", "Ada", "--server", made.toml)
    assert (code, f"run 'mr7{STARTED}" in err) == (0, True), err  # which the dashboard waits for


class Dying(Link):
    """A SuperLink that takes a run and then answers no more."""

    def standing(self, _: int) -> str:
        raise ConnectionError("refused")


def test_a_run_whose_superlink_dies_is_kept_and_says_how_to_go_on(
    made: Network, excise: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("excise.server.launch.linked", lambda *_: nullcontext(Dying()))
    made.approved(DEVICE)
    code, _, err = excise("server", "run", "mr7", "--by", "Ada", "--server", made.toml)
    assert (code, "excise server resume mr7" in err, "refused" in err) == (2, True, False), err
    assert (made.config.runs / "mr7").exists()
    monkeypatch.setattr("excise.server.launch.linked", lambda *_: nullcontext(Link()))
    code, _, err = excise("server", "resume", "mr7", "--server", made.toml)
    assert code == 0, err


def test_what_has_no_run_or_no_model_yet_is_not_promoted(made: Network, excise: Callable[..., Any]) -> None:
    asked = ("server", "promote", "mr7", "--by", "Ada", "--why", "it is good", "--server", made.toml)
    made.approved(DEVICE)
    code, _, err = excise(*asked)
    assert (code, "'mr7' has no run yet: excise server run" in err, "Errno" in err) == (2, True, False), err
    prepared(made, "mr7")
    code, _, err = excise(*asked)
    assert (code, "the run 'mr7' has no revised model yet: excise server resume mr7" in err) == (2, True), err


def test_what_cannot_be_carried_out_leaves_nothing(tmp_path: Path) -> None:
    with network(tmp_path) as made:
        made.let_in("a", "b")
        made.approved(DEVICE)
        with pytest.raises(ConfigError, match="there is no model yet"):
            prepared(made, "mr7")
        with pytest.raises(RequestError, match="no request 'mr8'"):
            prepared(made, "mr8")
        draft(made.store, OTHER, ["b"], "Ada")
        made.decide("b", OTHER)
        with pytest.raises(ConfigError, match="concern different sites"):
            prepared(made, "mr7", "mr1")
        assert not made.config.runs.exists()


def test_a_run_is_made_once(made: Network) -> None:
    made.approved(DEVICE)
    prepared(made, "mr7")
    with pytest.raises(RequestError, match=r"'mr7' is running: its run was begun at 20.*server resume mr7; .*reject mr7"):
        prepared(made, "mr7")


def test_without_a_superlink_or_a_run_it_is_told(made: Network) -> None:
    with pytest.raises(ConfigError, match="no run at"):
        carry_out(made.toml, made.config.runs / "none")
    made.approved(DEVICE)
    folder = prepared(made, "mr7")
    with pytest.raises(ConfigError, match="is excise server up running"):
        carry_out(made.toml, folder)


def test_a_folder_that_the_store_knows_nothing_of_is_not_carried_out(made: Network) -> None:
    (made.config.runs / "mr7").mkdir(parents=True)
    (made.config.runs / "mr7" / "plan.toml").touch()
    with pytest.raises(RequestError, match="the store knows no run 'mr7'"):
        carry_out(made.toml, made.config.runs / "mr7")


def test_what_another_process_carries_out_is_not_started_again(made: Network) -> None:
    made.approved(DEVICE)
    folder = prepared(made, "mr7")
    with held(made.store, lease_of("mr7")), pytest.raises(ConfigError, match="is held by a process"):
        carry_out(made.toml, folder)


@pytest.mark.parametrize("state", [State.CANDIDATE, State.REJECTED])
def test_what_is_at_its_end_is_not_carried_out_again(made: Network, state: State) -> None:
    made.approved(DEVICE)
    folder = prepared(made, "mr7")
    move(made.store, ["mr7"], state, "Ada", "")
    with pytest.raises(RequestError, match=f"'mr7' is {state}: there is nothing to go on with"):
        carry_out(made.toml, folder)
