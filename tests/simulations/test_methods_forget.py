"""With strong settings every method that looks at forget images forgets a class of them, and keeps the others."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from excise.simulations.baselines.central import ours
from excise.simulations.baselines.federated.problem import FederatedProblem
from excise.simulations.baselines.method import Problem
from excise.simulations.baselines.registry import CENTRAL, FEDERATED
from tests.simulations.federations import federation
from tests.simulations.tiny import of, pictures, scores, trained

CENTRALLY: Mapping[str, Mapping[str, float]] = {
    "NegGrad+": {"learning_rate": 0.05, "alpha": 0.8, "epochs": 4, "batch": 16},
    "random labels": {"learning_rate": 0.1, "epochs": 5},
    "EU-k": {"learning_rate": 0.1, "layers": 3, "epochs": 8},
    "bad teacher": {"learning_rate": 0.1, "share": 1.0, "epochs": 4},
    "SalUn": {"learning_rate": 0.1, "share": 0.9, "epochs": 5},
    "SSD": {"alpha": 1.5, "lambda": 0.1},
    "DELETE": {"learning_rate": 0.02, "epochs": 20},
    "Boundary Shrink": {"learning_rate": 0.01, "epochs": 15},
    **{name: {"retain_batch": 32} for name in CENTRAL if name.startswith("excise")},
}
"""Settings with which a class of fifty images is forgotten. Fine-tuning and CF-k never look at it. Nor is SCRUB among them:
where student and teacher are alike and sure, its divergence is flat, and few steps go nowhere."""

TOGETHER: Mapping[str, Mapping[str, float]] = {
    "retrain again": {},
    "projected ascent": {"learning_rate": 0.02, "recovery": 1, "batch": 64},
    "FedEraser": {"interval": 1},
    "PUF": {"scale": 50.0, "recovery": 1},
    "FedOSD": {"learning_rate": 1.0, "rounds": 20, "recovery": 4},
    "FedQUIT-like": {"learning_rate": 0.1, "epochs": 10, "recovery": 1},
    **{name: {"retain_batch": 32} for name in FEDERATED if name.startswith("excise")},
}
"""Settings with which a class at one site is forgotten. Fine-tuning rounds and NoT are not among them: neither looks at it."""


@pytest.fixture(scope="module")
def problem() -> Problem:
    """Forget class 0 as a whole."""
    train = pictures(50, 0)
    return Problem(trained(train), of(train, train[1] == 0), of(train, train[1] != 0), pictures(10, 1), whole_class=True)


@pytest.fixture(scope="module")
def sites() -> FederatedProblem:
    """Class 0 lies at one of three sites, and is to be forgotten."""
    return federation()[0]


@pytest.mark.parametrize("name", CENTRALLY)
def test_a_class_is_forgotten_and_the_others_are_kept(name: str, problem: Problem) -> None:
    gone, kept = scores(CENTRAL[name](problem, CENTRALLY[name]).model)
    assert min(scores(problem.original)) > 0.95
    assert gone < 0.5
    assert kept > 0.6


@pytest.mark.parametrize("name", TOGETHER)
def test_a_class_of_one_site_is_forgotten_by_all(name: str, sites: FederatedProblem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "STEPS", {**ours.STEPS, "classes": 5})  # fewer than those of a real run are enough here
    gone, kept = scores(FEDERATED[name](sites, TOGETHER[name]).model)
    assert min(scores(sites.original)) > 0.95
    assert gone < 0.5
    assert kept > 0.6
