"""What every central method keeps to, on a tiny problem."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import fields, replace

import pytest
import torch
from torch import nn

from excise.client.unlearning import Diverged
from excise.common.errors import ConfigError
from excise.simulations.baselines.method import Knob, Made, Method, Problem, Settings
from excise.simulations.baselines.registry import CENTRAL
from tests.simulations.tiny import counting, few_steps_of_ours, first, none_of, of, pictures, same, trained, weights

QUICK: Mapping[str, Mapping[str, float]] = {
    **{name: {"retain_batch": 32} for name in CENTRAL if name.startswith("excise")},
    "SSD": {"alpha": 1.2},  # of a third of all images hardly anything matters ten times as much as all do
}
"""Settings with which a method does something in little time."""


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours takes as many steps as show that it takes any."""
    few_steps_of_ours(monkeypatch)


@pytest.fixture(scope="module")
def original() -> nn.Module:
    return trained(pictures(50, 0))


@pytest.fixture(scope="module")
def problem(original: nn.Module) -> Problem:
    """Forget class 0 as a whole."""
    train = pictures(50, 0)
    return Problem(original, of(train, train[1] == 0), of(train, train[1] != 0), pictures(10, 1), whole_class=True)


@pytest.fixture(scope="module")
def samples(original: nn.Module) -> Problem:
    """Forget ten images of class 0."""
    train = pictures(50, 0)
    gone = torch.zeros(150, dtype=torch.bool)
    gone[:30:3] = True
    return Problem(original, of(train, gone), of(train, ~gone), pictures(10, 1), whole_class=False)


@pytest.mark.parametrize("name", CENTRAL)
@pytest.mark.parametrize("kind", ["problem", "samples"])
def test_contract(name: str, kind: str, request: pytest.FixtureRequest) -> None:
    asked: Problem = request.getfixturevalue(kind)
    given = (*asked.forget, *asked.retain, *asked.unseen)
    before, images, state = weights(asked.original), [part.clone() for part in given], torch.random.get_rng_state()
    with counting(asked.original) as counted:
        made = CENTRAL[name](asked, QUICK.get(name))
    assert made.passes == counted[0]
    assert same(before, weights(asked.original))
    assert not asked.original.training
    assert all(torch.equal(a, b) for a, b in zip(images, given, strict=True))
    assert torch.equal(state, torch.random.get_rng_state())
    assert not any(module.training for module in made.model.modules())
    assert all(parameter.requires_grad for parameter in made.model.parameters())
    assert all(value.isfinite().all() for value in made.model.state_dict().values())
    assert not same(before, weights(made.model))
    copy.deepcopy(made.model)  # no graph that cannot be copied
    again = CENTRAL[name](asked, QUICK.get(name))
    assert same(weights(made.model), weights(again.model))
    assert made.passes == again.passes


@pytest.mark.parametrize("name", CENTRAL)
def test_what_is_drawn_follows_from_the_seed(name: str, problem: Problem) -> None:
    one, other = (CENTRAL[name](replace(problem, seed=seed), QUICK.get(name)) for seed in (0, 1))
    assert same(weights(one.model), weights(other.model)) is (name == "SSD")  # which draws nothing


@pytest.mark.parametrize("name", CENTRAL)
def test_unseen_images_are_for_calibration_alone(name: str, samples: Problem) -> None:
    """No method is given the images on which it is judged, and none but ours looks at those that nothing was trained on."""
    given = {"original", "forget", "retain", "unseen", "whole_class", "wrong_labels", "seed"}
    assert {field.name for field in fields(Problem)} == given
    bare = replace(samples, unseen=none_of(samples.unseen))
    if name == "excise, calibrated":
        with pytest.raises(ConfigError, match="calibrated targets need images"):
            CENTRAL[name](bare)
    else:
        with_them, without = CENTRAL[name](samples, QUICK.get(name)), CENTRAL[name](bare, QUICK.get(name))
        assert same(weights(with_them.model), weights(without.model))


@pytest.mark.parametrize("name", CENTRAL)
@pytest.mark.parametrize(("forget", "retain"), [(1, 65), (7, 1), (1, 1)])
def test_odd_numbers_of_images(name: str, forget: int, retain: int, samples: Problem) -> None:
    """One image is no batch that can be normalised, 65 are one more than a batch, and there may be one class only."""
    kept = of(samples.retain, samples.retain[1] == samples.retain[1][0]) if retain == 1 else samples.retain
    odd = replace(samples, forget=first(samples.forget, forget), retain=first(kept, retain))
    with counting(odd.original) as counted:
        made = CENTRAL[name](odd, QUICK.get(name))
    assert made.passes == counted[0]
    assert all(value.isfinite().all() for value in made.model.state_dict().values())


@pytest.mark.parametrize("name", CENTRAL)
def test_empty_sets_are_refused(name: str, problem: Problem) -> None:
    for empty in ({"forget": none_of(problem.forget)}, {"retain": none_of(problem.retain)}):
        with pytest.raises(ConfigError, match="images to forget and images to keep, got"):
            CENTRAL[name](replace(problem, **empty))


@pytest.mark.parametrize("name", CENTRAL)
def test_knobs(name: str, problem: Problem) -> None:
    method = CENTRAL[name]
    assert 1 <= len(method.knobs.keys() - {"batch"}) <= 3
    assert method.paper
    for knob, of_it in method.knobs.items():
        wrong = [of_it.high * 2 + 1, of_it.low - 1, float("nan"), float("inf"), *([of_it.low + 0.5] if of_it.whole else [])]
        for value in wrong:
            with pytest.raises(ConfigError, match=f"{name.replace('+', '.')} has no {knob} = .*: choose among .*{knob} "):
                method(problem, {knob: value})
    with pytest.raises(ConfigError, match="has no luck"):
        method(problem, {"luck": 1.0})


@pytest.mark.parametrize("name", CENTRAL)
def test_ends_of_the_ranges_can_be_run(name: str, samples: Problem) -> None:
    """A search may choose them; what comes of it may be bad, but it is a model."""
    for end in ("low", "high"):
        knobs = {knob: getattr(of_it, end) for knob, of_it in CENTRAL[name].knobs.items() if knob not in ("epochs", "rounds")}
        CENTRAL[name](samples, {**QUICK.get(name, {}), **knobs})


def test_a_model_that_is_not_finite_is_refused(problem: Problem) -> None:
    def breaks(asked: Problem, settings: Settings) -> Made:
        model = copy.deepcopy(asked.original)
        nn.init.constant_(next(model.parameters()), float("nan"))
        return Made(model, 0)

    with pytest.raises(Diverged, match="mine made a model with numbers that are not finite"):
        Method("mine", breaks, "nowhere")(problem)


def test_a_knob_is_refused_that_could_not_be_searched() -> None:
    with pytest.raises(ValueError, match="cannot have the default 2"):
        Knob(0, 1, 0.5, of={"classes": 2})
    for low, high, default, log in ((0, 1, 2, False), (0, 1, 0.5, True), (2, 1, 1.5, False)):
        with pytest.raises(ValueError, match="cannot have the default"):
            Knob(low, high, default, log)


def test_a_knob_may_be_another_where_something_else_is_forgotten(samples: Problem) -> None:
    knob = Knob(0, 1, 0.5, of={"classes": 0.25, "labels": Knob(2, 4, 3, of={"samples": 2})})
    assert (knob.at("samples"), knob.at("classes"), knob.at("labels")) == (Knob(0, 1, 0.5), Knob(0, 1, 0.25), Knob(2, 4, 3))
    asked = list[Settings]()
    method = Method(
        "mine", lambda problem, settings: asked.append(settings) or Made(problem.original, 0), "nowhere", {"x": knob}
    )
    method(replace(samples, wrong_labels=True))
    method(replace(samples, wrong_labels=True), {"x": 2.5})
    assert asked == [{"x": 3}, {"x": 2.5}]
    with pytest.raises(ConfigError, match=r"has no x = 0.5: choose among x from 2 to 4"):
        method(replace(samples, wrong_labels=True), {"x": 0.5})
