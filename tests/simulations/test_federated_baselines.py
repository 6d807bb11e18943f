"""What every federated method keeps to, on three tiny sites."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import fields, replace

import pytest
import torch
from torch import nn

from excise.client.unlearning import Diverged
from excise.common.errors import ConfigError
from excise.simulations.baselines.federated import ascent
from excise.simulations.baselines.federated.problem import Composed, FederatedMethod, FederatedProblem, Part
from excise.simulations.baselines.method import Settings
from excise.simulations.baselines.registry import FEDERATED
from tests.simulations.federations import SITES, federation
from tests.simulations.tiny import counting, few_steps_of_ours, first, none_of, of, same, scores, weights

QUICK: Mapping[str, Mapping[str, float]] = {
    **{name: {"retain_batch": 32} for name in FEDERATED if name.startswith("excise")},
    "FedOSD": {"rounds": 2},
}
"""Settings with which a method does something in little time."""
ONE_OF_OURS = [name for name in FEDERATED if not name.startswith("excise") or name == "excise, mean"]
"""For what the composition rule has no part in."""
SEES_ONLY_RETAIN = ("retrain again", "fine-tune rounds", "NoT", "FedEraser")


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many steps as show that a method takes any."""
    monkeypatch.setattr(ascent, "STEPS", 6)
    few_steps_of_ours(monkeypatch)


@pytest.fixture(scope="module")
def problem() -> FederatedProblem:
    """Class 0 lies at site a alone, and is to be forgotten."""
    return federation()[0]


@pytest.fixture(scope="module")
def samples(problem: FederatedProblem) -> FederatedProblem:
    """Five images are to be forgotten at each of two sites."""
    sites = dict(problem.sites)
    for name in ("a", "b"):
        retain = problem.sites[name].retain
        gone = torch.arange(len(retain[1])) < 5
        sites[name] = Part(of(retain, gone), of(retain, ~gone), problem.sites[name].unseen)
    return replace(problem, sites=sites, whole_class=False)


def images_of(problem: FederatedProblem) -> list[torch.Tensor]:
    return [x for part in problem.sites.values() for images in (part.forget, part.retain, part.unseen) for x in images]


def test_the_problem_is_one(problem: FederatedProblem) -> None:
    assert (problem.forgetting, problem.keeping) == (["a"], list(SITES))
    assert min(scores(problem.original)) > 0.9


@pytest.mark.parametrize("name", FEDERATED)
@pytest.mark.parametrize("kind", ["problem", "samples"])
def test_contract(name: str, kind: str, request: pytest.FixtureRequest) -> None:
    asked: FederatedProblem = request.getfixturevalue(kind)
    before, initial, state = weights(asked.original), weights(asked.initial), torch.random.get_rng_state()
    images, history = [x.clone() for x in images_of(asked)], copy.deepcopy(asked.history)
    with counting(asked.original, asked.initial) as counted:
        made = FEDERATED[name](asked, QUICK.get(name))
    assert made.passes == counted[0]
    assert made.rounds >= 1
    assert same(before, weights(asked.original))
    assert same(initial, weights(asked.initial))
    assert all(torch.equal(a, b) for a, b in zip(images, images_of(asked), strict=True))
    assert all(same(a[site], b[site]) for a, b in zip(history, asked.history, strict=True) for site in a)
    assert torch.equal(state, torch.random.get_rng_state())
    assert not any(module.training for module in (*made.model.modules(), *asked.original.modules()))
    assert all(parameter.requires_grad for parameter in made.model.parameters())
    assert all(value.isfinite().all() for value in made.model.state_dict().values())
    assert not same(before, weights(made.model))
    copy.deepcopy(made.model)  # no graph that cannot be copied
    again = FEDERATED[name](asked, QUICK.get(name))
    assert same(weights(made.model), weights(again.model))
    assert (made.passes, made.rounds) == (again.passes, again.rounds)


@pytest.mark.parametrize("name", ONE_OF_OURS)
def test_what_is_drawn_follows_from_the_seed(name: str, samples: FederatedProblem) -> None:
    # Of a site that trains on one batch only the order is drawn.
    small = {"batch": 16} if "batch" in FEDERATED[name].knobs else {}
    one, other = (FEDERATED[name](replace(samples, seed=seed), {**QUICK.get(name, {}), **small}) for seed in (0, 1))
    assert not same(weights(one.model), weights(other.model))


@pytest.mark.parametrize("name", FEDERATED)
def test_unseen_images_are_for_calibration_alone(name: str, samples: FederatedProblem) -> None:
    """No method is given the images on which it is judged, and none but ours looks at those that nothing was trained on."""
    known = {"original", "initial", "sites", "whole_class", "wrong_labels", "history", "seed", "training"}
    assert {field.name for field in fields(FederatedProblem)} == known
    assert {field.name for field in fields(Part)} == {"forget", "retain", "unseen"}
    bare = replace(samples, sites={site: replace(p, unseen=none_of(p.unseen)) for site, p in samples.sites.items()})
    if name.startswith("excise"):
        with pytest.raises(ConfigError, match="calibrated targets need images"):
            FEDERATED[name](bare)
    else:
        with_them, without = FEDERATED[name](samples, QUICK.get(name)), FEDERATED[name](bare, QUICK.get(name))
        assert same(weights(with_them.model), weights(without.model))


@pytest.mark.parametrize("name", SEES_ONLY_RETAIN)
def test_some_methods_do_not_need_the_forget_images(name: str, problem: FederatedProblem) -> None:
    blank = {site: replace(p, forget=(torch.zeros_like(p.forget[0]), p.forget[1])) for site, p in problem.sites.items()}
    one, other = (FEDERATED[name](replace(problem, sites=sites), QUICK.get(name)) for sites in (problem.sites, blank))
    assert same(weights(one.model), weights(other.model))


@pytest.mark.parametrize(("name", "whole_class"), [*((name, False) for name in FEDERATED), ("excise, mean", True)])
def test_odd_sites(name: str, whole_class: bool, problem: FederatedProblem) -> None:
    """One image to forget and none to keep, one image to keep, 65 of one class, and a site that holds nothing."""
    a, b, nothing = problem.sites["a"], problem.sites["b"], none_of(problem.sites["a"].forget)
    of_one = of(b.retain, b.retain[1] == 1)
    many = of_one[0].repeat(7, 1, 1, 1)[:65], of_one[1].repeat(7)[:65]
    sites = {
        "a": Part(first(a.forget, 1), nothing, nothing),
        "b": Part(nothing, first(b.retain, 1), b.unseen),
        "c": Part(nothing, many, nothing),
        "d": Part(nothing, nothing, nothing),
    }
    odd = replace(problem, sites=sites, whole_class=whole_class)
    with counting(odd.original, odd.initial) as counted:
        made = FEDERATED[name](odd, QUICK.get(name))
    assert made.passes == counted[0]
    assert all(value.isfinite().all() for value in made.model.state_dict().values())


@pytest.mark.parametrize("name", FEDERATED)
def test_empty_sets_are_refused(name: str, problem: FederatedProblem) -> None:
    for empty in ("forget", "retain"):
        sites = {site: replace(part, **{empty: none_of(part.forget)}) for site, part in problem.sites.items()}
        with pytest.raises(ConfigError, match="images to forget and images to keep, got"):
            FEDERATED[name](replace(problem, sites=sites))


@pytest.mark.parametrize("name", FEDERATED)
def test_knobs(name: str, problem: FederatedProblem) -> None:
    method = FEDERATED[name]
    assert (name != "retrain again") <= len(method.knobs.keys() - {"batch"}) <= 3  # the recipe is the deployed model's
    assert method.paper
    for knob, of_it in method.knobs.items():
        wrong = [of_it.high * 2 + 1, of_it.low - 1, float("nan"), float("inf"), *([of_it.low + 0.5] if of_it.whole else [])]
        for value in wrong:
            with pytest.raises(ConfigError, match=f"{name} has no {knob} = .*: choose among .*{knob} "):
                method(problem, {knob: value})
    with pytest.raises(ConfigError, match="has no luck"):
        method(problem, {"luck": 1.0})


@pytest.mark.parametrize("name", ONE_OF_OURS)
def test_ends_of_the_ranges_can_be_run(name: str, samples: FederatedProblem) -> None:
    """A search may choose them; what comes of it may be bad, but it is a model."""
    for end in ("low", "high"):
        knobs = {knob: getattr(of_it, end) for knob, of_it in FEDERATED[name].knobs.items() if not of_it.whole}
        FEDERATED[name](samples, {**QUICK.get(name, {}), **knobs})


def test_a_model_that_is_not_finite_is_refused(problem: FederatedProblem) -> None:
    def breaks(asked: FederatedProblem, settings: Settings) -> Composed:
        model = copy.deepcopy(asked.original)
        nn.init.constant_(next(model.parameters()), float("nan"))
        return Composed(model, 0, 1)

    with pytest.raises(Diverged, match="mine made a model with numbers that are not finite"):
        FederatedMethod("mine", breaks, "nowhere")(problem)
