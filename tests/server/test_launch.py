"""Preparing a run: what cannot be carried out is refused before anything is written, and the plan says what was asked."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from excise.common.errors import ConfigError, RequestError
from excise.common.models import ModelSpec, build_model
from excise.common.request import ForgetRequest, RequestKind, joined
from excise.common.settings import PRESETS
from excise.common.weights import digest, load_weights, save_weights, snapshot
from excise.server.config import ServerConfig
from excise.server.launch import carry_out, prepare
from excise.server.plan import Plan
from excise.server.setup import init

SPEC = ModelSpec(name="allcnn", classes=2, size=16, width=0.05)
DEVICE = ForgetRequest(id="mr7", kind=RequestKind.DEVICE, where="StationName = MR7", reason="retired")
OTHER = ForgetRequest(id="mr1", kind=RequestKind.DEVICE, where="StationName = MR1", reason="retired too")
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
def config(tmp_path: Path) -> ServerConfig:
    return init(tmp_path / "co", "network", ["localhost"], link_port=1)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    save_weights(snapshot(build_model(SPEC)), tmp_path / "deployed.safetensors")
    return tmp_path / "deployed.safetensors"


def plan_of(folder: Path) -> Plan:
    return Plan.model_validate(tomllib.loads((folder / "plan.toml").read_text()))


def test_a_plan_is_of_the_preset_of_its_kind_and_of_the_sites_that_are_let_in(config: ServerConfig, weights: Path) -> None:
    folder = prepare(config, [DEVICE], SPEC, weights, ["b", "a"])
    plan = plan_of(folder)
    assert (folder, plan.sites, plan.site_names) == (config.runs / "mr7", 2, ("a", "b"))
    assert (plan.request, plan.parts, plan.retrain) == (DEVICE, (), False)
    assert plan.unlearning == PRESETS["samples"]
    assert plan.deployed is not None
    assert digest(load_weights(plan.deployed)) == digest(load_weights(weights))
    assert plan_of(prepare(config, [CLASS], SPEC, weights, ["a"])).unlearning == PRESETS["classes"]


def test_several_requests_become_one_run(config: ServerConfig, weights: Path) -> None:
    plan = plan_of(prepare(config, [DEVICE, OTHER], SPEC, weights, ["a"]))
    assert (plan.request, plan.parts) == (joined([DEVICE, OTHER]), (DEVICE, OTHER))
    with pytest.raises(RequestError):
        prepare(config, [DEVICE, CLASS], SPEC, weights, ["a"])


def test_settings_take_the_place_of_the_presets_one_by_one(tmp_path: Path, config: ServerConfig, weights: Path) -> None:
    (tmp_path / "s.toml").write_text(SETTINGS)
    plan = plan_of(prepare(config, [DEVICE], SPEC, weights, ["a"], tmp_path / "s.toml"))
    local = PRESETS["samples"].local.model_copy(update={"rounds": 3})
    assert plan.unlearning == PRESETS["samples"].model_copy(update={"local": local})
    assert (plan.rounds.deadline, plan.composition.rule) == (7, "median")
    assert (plan.verification.resamples, plan.verification.resurfacing) == (500, True)  # a coordinator looks what comes back
    (tmp_path / "s.toml").write_text("[verification]\nresurfacing = false\n")
    plan = plan_of(prepare(config, [OTHER], SPEC, weights, ["a"], tmp_path / "s.toml"))
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
def test_settings_that_are_wrong_are_told(tmp_path: Path, config: ServerConfig, weights: Path, text: str, reason: str) -> None:
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(ConfigError, match=reason):
        prepare(config, [DEVICE], SPEC, weights, ["a"], tmp_path / "s.toml")
    assert not config.runs.exists()


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"sites": []}, "no site is let in"),
        ({"spec": SPEC.model_copy(update={"classes": 3})}, "is not of the model 'allcnn' as described"),
    ],
)
def test_what_cannot_be_carried_out_leaves_nothing(
    config: ServerConfig, weights: Path, changed: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        prepare(config, [DEVICE], **{"spec": SPEC, "weights": weights, "sites": ["a"]} | changed)
    assert not config.runs.exists()


def test_a_run_is_made_once(config: ServerConfig, weights: Path) -> None:
    prepare(config, [DEVICE], SPEC, weights, ["a"])
    with pytest.raises(ConfigError, match="excise server resume mr7"):
        prepare(config, [DEVICE], SPEC, weights, ["a"])


def test_without_a_superlink_or_a_run_it_is_told(tmp_path: Path, config: ServerConfig, weights: Path) -> None:
    with pytest.raises(ConfigError, match="no run at"):
        carry_out(tmp_path / "co", config, config.runs / "none")
    folder = prepare(config, [DEVICE], SPEC, weights, ["a"])
    with pytest.raises(ConfigError, match="is excise server up running"):
        carry_out(tmp_path / "co", config, folder)
