"""For each federated method what it is known to do, on three tiny sites."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Generator, Tensor

from excise.client.unlearning.inference import predict
from excise.common.errors import ConfigError
from excise.common.settings import PRESETS, CompositionSettings, UnlearningSettings
from excise.common.weights import Weights, difference, is_statistic, moved, snapshot
from excise.server import turns
from excise.server.composition import known_rules
from excise.server.composition.composer import Update
from excise.simulations.baselines.central.bad_teacher import knows_nothing
from excise.simulations.baselines.central.ours import KNOBS, settings_of
from excise.simulations.baselines.descent import layers
from excise.simulations.baselines.federated import fed_quit, ours
from excise.simulations.baselines.federated.ascent import RADIUS, centre, climbed, projected
from excise.simulations.baselines.federated.fed_eraser import with_length_of
from excise.simulations.baselines.federated.fed_osd import (
    direction,
    gradient,
    not_back,
    orthogonal,
    retain_loss,
    unlearning_loss,
)
from excise.simulations.baselines.federated.fed_quit import quasi_competent
from excise.simulations.baselines.federated.not_ import negated
from excise.simulations.baselines.federated.problem import FederatedProblem, Part
from excise.simulations.baselines.federated.rounds import RATE, Federation, flat, mean, parameters_of, shaped
from excise.simulations.baselines.method import Aim, Problem
from excise.simulations.baselines.registry import CENTRAL, FEDERATED
from tests.simulations.federations import ROUNDS, SITES, federation
from tests.simulations.tiny import first, none_of, same, scores, weights

WHOLE = {"batch": 128}
"""All images of a site are one batch."""


@pytest.fixture(scope="module")
def told() -> tuple[FederatedProblem, list[Weights]]:
    return federation()


@pytest.fixture(scope="module")
def problem(told: tuple[FederatedProblem, list[Weights]]) -> FederatedProblem:
    """Class 0 lies at site a alone, and is to be forgotten."""
    return told[0]


# ---- updates --------------------------------------------------------------------------------------------------------------


def test_updates_are_what_they_say(problem: FederatedProblem) -> None:
    update = difference(snapshot(problem.original), snapshot(problem.initial))
    assert same(shaped(flat(update), update), update)
    assert not any(map(is_statistic, parameters_of(update)))
    both = mean({"a": update, "b": {name: torch.zeros_like(v) for name, v in update.items()}}, {"a": 3, "b": 1, "c": 9})
    assert all(torch.allclose(value, 0.75 * update[name]) for name, value in both.items())


def test_the_history_makes_the_model(told: tuple[FederatedProblem, list[Weights]]) -> None:
    """What is stored is what was added: from the first model the updates lead to the last."""
    problem, models = told
    images = {name: problem.retain[name] + problem.forget[name] for name in SITES}
    for before, updates, after in zip(models, problem.history, [*models[1:], snapshot(problem.original)], strict=True):
        for name, value in moved(before, mean(updates, images)).items():
            if value.is_floating_point():
                torch.testing.assert_close(value, after[name], atol=1e-5, rtol=1e-4)


def test_no_variance_is_negative(problem: FederatedProblem) -> None:
    federation = Federation(problem, problem.original)
    federation.add({name: -2 * value for name, value in snapshot(problem.original).items() if name.endswith("running_var")})
    assert all((value >= 0).all() for name, value in snapshot(federation.model).items() if name.endswith("running_var"))


# ---- bytes ----------------------------------------------------------------------------------------------------------------


def size(problem: FederatedProblem) -> int:
    """Bytes of a model of `tiny.Net`: its numbers are float32, and batch norm's counters do not travel."""
    return 4 * sum(value.numel() for name, value in snapshot(problem.original).items() if "num_batches" not in name)


def test_every_round_moves_a_model_to_each_site_and_an_update_back(problem: FederatedProblem) -> None:
    one = size(problem)
    assert one == 4 * (6 * 9 + 8 * 6 * 9 + 8 * 8 * 9 + 4 * (6 + 8 + 8) + 3 * 72 + 3)
    made = FEDERATED["retrain again"](problem)
    assert made.bytes_up == made.bytes_down == dict.fromkeys(SITES, problem.training.rounds * one)
    assert FEDERATED["fine-tune rounds"](problem, {"rounds": 4}).bytes_up == dict.fromkeys(SITES, 4 * one)
    gone = replace(problem, sites=dict(problem.sites) | {"b": Part(*[none_of(problem.sites["b"].retain)] * 3)})
    assert FEDERATED["retrain again"](gone).bytes_up == dict.fromkeys("ac", problem.training.rounds * one)
    assert FEDERATED["fine-tune rounds"](gone, {"rounds": 4}).bytes_up == {"a": 4 * one, "c": 4 * one}


def test_a_round_of_the_forgetting_site_alone_moves_nothing_elsewhere(problem: FederatedProblem) -> None:
    one = size(problem)
    for name in ("PUF", "FedQUIT-like", "projected ascent"):
        made = FEDERATED[name](problem, {"recovery": 0})
        assert made.bytes_up == made.bytes_down == {"a": one}
        recovered = FEDERATED[name](problem, {"recovery": 2})
        assert recovered.bytes_up == {"a": 3 * one, "b": 2 * one, "c": 2 * one}


def test_gradients_travel_without_statistics_and_stored_updates_do_not_travel_again(problem: FederatedProblem) -> None:
    one, statistics = size(problem), 4 * 2 * (6 + 8 + 8)
    osd = FEDERATED["FedOSD"](problem, {"rounds": 3, "recovery": 0})
    assert osd.bytes_down == dict.fromkeys(SITES, 3 * one)
    assert osd.bytes_up == {"a": 6 * (one - statistics), "b": 3 * (one - statistics), "c": 3 * (one - statistics)}
    eraser = FEDERATED["FedEraser"](replace(problem, history=problem.history[:1]))
    assert eraser.bytes_up == {"a": one}


def test_ours_sends_quantiles_beside_models(problem: FederatedProblem) -> None:
    one, quantiles, rounds = size(problem), 8 * PRESETS["samples"].quantiles, 12
    made = FEDERATED["excise, mean"](replace(problem, whole_class=False), {"retain_batch": 32})
    assert made.bytes_up == dict.fromkeys(SITES, rounds * one + quantiles)
    models = (rounds + 1) * one
    assert made.bytes_down == {"a": models + rounds * quantiles, "b": models, "c": models}


def test_ours_lets_sites_that_forget_nothing_take_turns(problem: FederatedProblem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "FEWEST_TURNS", 1)
    settings = settings_of("samples", {"learning_rate": 0.01, "psi": 0.4, "retain_batch": 32})
    local = settings.local.model_copy(update={"retain_batch_at_site": 16, "rounds": 4})
    made = ours.Unlearning(
        replace(problem, whole_class=False), settings.model_copy(update={"local": local}), CompositionSettings()
    ).run()
    one, quantiles = size(problem), 8 * PRESETS["samples"].quantiles
    assert made.bytes_up == {"a": 4 * one + quantiles, "b": 2 * one + quantiles, "c": 2 * one + quantiles}


# ---- methods --------------------------------------------------------------------------------------------------------------


def test_fine_tuning_begins_with_the_original(problem: FederatedProblem) -> None:
    by_hand = Federation(problem, problem.original)
    by_hand.retain_round(0.05)
    by_hand.retain_round(0.05)
    made = FEDERATED["fine-tune rounds"](problem, {"learning_rate": 0.05, "rounds": 2, **WHOLE})
    assert same(weights(by_hand.model), weights(made.model))
    assert (made.rounds, made.passes) == (2, 2 * sum(problem.retain.values()))


def test_retraining_is_the_recipe_on_retain_images_from_other_weights_than_the_initial_ones(problem: FederatedProblem) -> None:
    made = FEDERATED["retrain again"](problem)
    rounds = problem.training.rounds
    assert (made.rounds, made.passes) == (rounds, rounds * sum(problem.retain.values()))
    assert scores(made.model) == (0.0, pytest.approx(1.0, abs=0.1))
    begun = FEDERATED["retrain again"](replace(problem, training=problem.training.model_copy(update={"learning_rate": 1e-9})))
    for name, value in begun.model.named_parameters():
        if value.ndim > 1:
            assert not torch.allclose(value, problem.initial.get_parameter(name), atol=1e-3)


def test_retraining_knows_nothing_of_the_deployed_model(problem: FederatedProblem) -> None:
    other = replace(problem, original=problem.initial, history=())
    assert same(weights(FEDERATED["retrain again"](problem).model), weights(FEDERATED["retrain again"](other).model))


def test_the_centre_is_the_others_mean(problem: FederatedProblem) -> None:
    last, original, found = problem.history[-1], snapshot(problem.original), snapshot(centre(problem, "a"))
    everyone = mean(last, dict.fromkeys(last, 1))
    for name, own in everyone.items():
        others = (last["b"][name] + last["c"][name]) / 2
        torch.testing.assert_close(found[name], original[name] - own + others, atol=1e-5, rtol=1e-4)
    assert same(weights(centre(replace(problem, history=()), "a")), weights(problem.original))


def test_the_ball_is_not_left(problem: FederatedProblem) -> None:
    update = {"w": torch.tensor([3.0, 4.0])}
    assert projected(update, 6.0) is update
    torch.testing.assert_close(projected(update, 1.0), {"w": torch.tensor([0.6, 0.8])})
    middle = snapshot(centre(problem, "a"))
    radius = RADIUS * float(flat(difference(snapshot(knows_nothing(problem.original, 0)), middle)).norm())
    walked = flat(difference(snapshot(climbed(problem, "a", {"learning_rate": 100.0, **WHOLE}).model), middle))
    assert float(walked.norm()) == pytest.approx(radius, rel=1e-3)


def test_the_climb_ends_when_the_site_has_forgotten(problem: FederatedProblem) -> None:
    blank = Part(problem.sites["a"].forget, problem.sites["a"].retain, problem.sites["a"].unseen)
    wrong = replace(blank, forget=(blank.forget[0], (blank.forget[1] + 1) % 3))  # what the model never says of them
    at_once = climbed(replace(problem, sites={**problem.sites, "a": wrong}, history=()), "a", {"learning_rate": 0.01, **WHOLE})
    assert at_once.passes == problem.forget["a"]
    assert climbed(problem, "a", {"learning_rate": 1e-4, **WHOLE}).passes == 40 * problem.forget["a"]


def test_fed_eraser_needs_a_history_and_gets_it(problem: FederatedProblem) -> None:
    eraser = FEDERATED["FedEraser"]
    with pytest.raises(ConfigError, match="nobody stored them"):
        eraser(replace(problem, history=()))
    assert [eraser(problem, {"interval": every}).rounds for every in (1, 2, 3, 5)] == [ROUNDS, ROUNDS / 2, ROUNDS / 3, 2]
    assert [name for name, method in FEDERATED.items() if method.needs_history] == ["FedEraser"]


def test_the_first_round_of_fed_eraser_takes_what_keeping_sites_sent(problem: FederatedProblem) -> None:
    made = FEDERATED["FedEraser"](replace(problem, history=problem.history[:1]), WHOLE)
    stored, now = problem.history[0], Federation(problem, problem.initial).train("a", problem.sites["a"].retain, 0.05)
    updates = {"a": with_length_of(stored["a"], now), "b": stored["b"], "c": stored["c"]}
    expected = moved(snapshot(problem.initial), mean(updates, problem.retain))
    for name, value in made.model.state_dict().items():
        torch.testing.assert_close(value, expected[name])
    assert made.passes == problem.retain["a"]


def test_an_update_has_the_stored_length_and_the_new_direction() -> None:
    stored, now = {"w": torch.tensor([0.0, 10.0]), "b": torch.ones(2)}, {"w": torch.tensor([3.0, 4.0]), "b": torch.zeros(2)}
    torch.testing.assert_close(with_length_of(stored, now), {"w": torch.tensor([6.0, 8.0]), "b": torch.zeros(2)})


def test_puf_reverses_what_training_would_add(problem: FederatedProblem) -> None:
    added = Federation(problem, problem.original).train("a", problem.sites["a"].forget, RATE)
    made = FEDERATED["PUF"](problem, {"scale": 2.0, "recovery": 0, **WHOLE})
    before = snapshot(problem.original)
    for name, value in snapshot(made.model).items():
        expected = before[name] if is_statistic(name) or name not in added else before[name] - 2.0 * added[name]
        torch.testing.assert_close(value, expected)
    assert (made.rounds, made.passes) == (1, problem.forget["a"])


def test_not_turns_the_first_layer_and_nothing_else(problem: FederatedProblem) -> None:
    for first_layers in (1, 2):
        turned = negated(problem.original, first_layers)
        for number, (one, other) in enumerate(zip(layers(turned), layers(problem.original), strict=True)):
            sign = -1 if number < first_layers else 1
            assert torch.equal(one[0].get_parameter("weight"), sign * other[0].get_parameter("weight"))
            assert all(same(weights(a), weights(b)) for a, b in zip(one[1:], other[1:], strict=True))
    by_hand = Federation(problem, negated(problem.original, 1))
    by_hand.retain_round(0.05)
    assert same(weights(by_hand.model), weights(FEDERATED["NoT"](problem, {"rounds": 1, **WHOLE}).model))


def test_the_unlearning_loss_has_a_least_value() -> None:
    sure, wrong = torch.tensor([[50.0, 0.0]]), torch.tensor([[-50.0, 0.0]])
    assert float(unlearning_loss(sure, torch.tensor([0]))) == pytest.approx(math.log(2))
    assert float(unlearning_loss(wrong, torch.tensor([0]))) == pytest.approx(0)


def test_what_is_left_is_orthogonal_and_as_long() -> None:
    vector, *others = torch.randn(4, 50, generator=Generator().manual_seed(0))
    others.append(others[0] + others[1])  # depends on the others: it takes nothing more away
    left = orthogonal(vector, others)
    torch.testing.assert_close(left, orthogonal(vector, others[:-1]))
    assert max(abs(float(left @ other)) for other in others) < 1e-4
    assert float(left @ vector) > 0
    assert float(left.norm()) == pytest.approx(float(vector.norm()), rel=1e-5)
    assert torch.equal(orthogonal(others[0], others), torch.zeros(50))


def test_a_step_of_fed_osd_is_orthogonal_to_the_retain_gradients(problem: FederatedProblem) -> None:
    federation = Federation(problem, problem.original)
    step = direction(federation)
    kept = [gradient(problem.original, problem.sites[name].retain, retain_loss) for name in SITES]
    wanted = gradient(problem.original, problem.sites["a"].forget, unlearning_loss)
    assert all(abs(float(step @ g)) < 1e-5 * float(step.norm() * g.norm()) for g in kept)
    assert float(step @ wanted) > 0
    made = FEDERATED["FedOSD"](problem, {"learning_rate": 0.1, "rounds": 1, "recovery": 0})
    torch.testing.assert_close(
        flat(difference(snapshot(made.model), snapshot(problem.original))), -0.1 * step, atol=1e-6, rtol=1e-3
    )


def test_the_gradient_is_that_of_all_images(problem: FederatedProblem) -> None:
    model, (x, y) = copy.deepcopy(problem.original), problem.sites["a"].retain
    torch.nn.functional.cross_entropy(model(x.repeat(9, 1, 1, 1)), y.repeat(9)).backward()
    slow = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(
        gradient(problem.original, (x.repeat(9, 1, 1, 1), y.repeat(9)), retain_loss), slow, atol=1e-6, rtol=1e-3
    )


def test_recovery_of_fed_osd_does_not_go_back(problem: FederatedProblem) -> None:
    update = Federation(problem, problem.original).train("b", problem.sites["b"].retain, RATE)
    away = torch.randn(len(flat(update)), generator=Generator().manual_seed(0))
    kept = not_back(update, away)
    assert abs(float(flat(kept) @ away)) < 1e-4 * float(away.norm() * flat(kept).norm())
    assert float(flat(kept).norm()) == pytest.approx(float(flat(update).norm()), rel=1e-4)
    assert all(torch.equal(value, update[name]) for name, value in kept.items() if is_statistic(name))
    settings, before = {"learning_rate": 1.0, "rounds": 4}, snapshot(problem.original)
    short, far = (
        float(flat(difference(snapshot(FEDERATED["FedOSD"](problem, settings | {"recovery": n}).model), before)).norm())
        for n in (0, 3)
    )
    assert far >= short


def test_a_quasi_competent_teacher_keeps_the_order_of_the_others(
    problem: FederatedProblem, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = quasi_competent(torch.tensor([[5.0, 2.0, 1.0]]), torch.tensor([0]))[0]
    assert told[0] == told[2] == told.min()
    assert told[1] > told[2]
    seen: list[Tensor] = []
    monkeypatch.setattr(fed_quit, "quasi_competent", lambda logits, y: seen.append(logits) or quasi_competent(logits, y))
    FEDERATED["FedQUIT-like"](problem, {"epochs": 2, "recovery": 0, **WHOLE})
    expected = predict(problem.original, problem.sites["a"].forget[0]).sort(0).values
    assert len(seen) == 2
    for logits in seen:  # the teacher stays the deployed model
        torch.testing.assert_close(logits.sort(0).values, expected)


# ---- ours -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("whole_class", [True, False])
def test_ours_at_one_site_is_ours_without_sites(problem: FederatedProblem, whole_class: bool) -> None:
    part = problem.sites["a"]
    alone = replace(problem, sites={"a": part}, whole_class=whole_class)
    central = Problem(problem.original, part.forget, part.retain, part.unseen, whole_class)
    settings = {"retain_batch": 32, "learning_rate": 0.03}
    together = FEDERATED["excise, mean"](alone, settings)
    expected = CENTRAL["excise, nearest" if whole_class else "excise, calibrated"](central, settings)
    for name, value in together.model.state_dict().items():
        if value.is_floating_point():  # batch counters stay as they were
            torch.testing.assert_close(value, expected.model.state_dict()[name], atol=1e-4, rtol=1e-3)
    assert together.passes == expected.passes
    rounds = PRESETS["classes"].local.rounds if whole_class else 12  # as many images as ten rounds with 48 retain images
    assert together.rounds == rounds + (not whole_class)


@pytest.mark.parametrize(("batch", "rounds"), [(32, 12), (48, 10), (96, 7), (160, 5)])
def test_larger_batches_go_with_fewer_rounds_where_samples_are_forgotten(batch: int, rounds: int) -> None:
    settings = {"learning_rate": 0.01, "psi": 0.4, "retain_batch": batch}
    assert settings_of("samples", settings).local.rounds == rounds


@pytest.mark.parametrize(
    ("aim", "rounds", "batch", "steps"),
    [
        ("classes", 5, 32, 28),
        ("classes", 5, 96, 12),
        ("classes", 5, 160, 8),
        ("labels", 8, 32, 20),
        ("labels", 8, 100, 7),
        ("labels", 8, 160, 4),
    ],
)
def test_larger_batches_go_with_fewer_steps_where_anything_else_is(aim: Aim, rounds: int, batch: int, steps: int) -> None:
    local = settings_of(aim, {"learning_rate": 0.01, "psi": 0.4, "retain_batch": batch}).local
    assert (local.rounds, local.steps) == (rounds, steps)


@pytest.mark.parametrize(
    ("aim", "negation", "forget_batch", "forget_sample"),
    [("samples", 4, 48, None), ("classes", 0, 16, 256), ("labels", 3, 4, 6)],
)
def test_what_ours_takes_whatever_is_searched(aim: Aim, negation: float, forget_batch: int, forget_sample: int | None) -> None:
    asked = settings_of(aim, {"learning_rate": 0.07, "psi": 0.2, "retain_batch": 50})
    assert (asked.negation, asked.local.forget_batch, asked.forget_sample) == (negation, forget_batch, forget_sample)
    assert (asked.local.learning_rate, asked.psi, asked.local.retain_batch) == (0.07, 0.2, 50)
    assert UnlearningSettings.model_validate(asked.model_dump()) == asked  # an update of a model is not validated


def test_every_rule_of_the_server_is_there() -> None:
    assert [name for name in FEDERATED if name.startswith("excise")] == [f"excise, {rule}" for rule in known_rules()]


def test_updates_are_composed_with_their_weights_and_roles(problem: FederatedProblem, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[str, Update]] = []

    def spy(rule: CompositionSettings, base: Weights) -> object:
        composer = new_composer(rule, base)
        add = composer.add
        composer.add = lambda update: taken.append((rule.rule, update)) or add(update)  # type: ignore[method-assign, func-returns-value]
        return composer

    new_composer = ours.new_composer
    monkeypatch.setattr(ours, "new_composer", spy)
    made = FEDERATED["excise, module_swap"](problem, {"retain_batch": 32})
    rounds = PRESETS["classes"].local.rounds
    assert made.rounds == rounds + 1  # with the recovery round that the rule wants
    assert [rule for rule, _ in taken] == ["module_swap"] * 3 * rounds + ["mean"] * 3
    psi, n_f, n_r = KNOBS["psi"].at("classes").default, problem.forget, problem.retain
    for _, update in taken[: 3 * rounds]:
        p = psi * n_f[update.site] / sum(n_f.values()) + (1 - psi) * n_r[update.site] / sum(n_r.values())
        assert update.weight == pytest.approx(p)
        assert update.forgets is (update.site == "a")
    assert not any(update.forgets for _, update in taken[3 * rounds :])


def test_the_reference_is_that_of_all_sites_together(problem: FederatedProblem) -> None:
    """Pooling quantiles gives about those of the union; a site without unseen images adds nothing."""
    sites = {**problem.sites, "d": Part(*[none_of(problem.sites["a"].forget)] * 3)}
    samples = replace(problem, sites=sites, whole_class=False)
    settings = PRESETS["samples"].model_copy(
        update={"target": PRESETS["samples"].target.model_copy(update={"label_shift": False})}
    )
    found = ours.Unlearning(samples, settings, CompositionSettings()).reference()
    x, y = (torch.cat([part.unseen[i] for part in problem.sites.values()]) for i in (0, 1))
    losses = torch.nn.functional.cross_entropy(predict(problem.original, x), y, reduction="none")[y == 0]
    assert set(found) == {0}
    assert len(found[0]) == settings.quantiles
    assert float(found[0].mean()) == pytest.approx(float(losses.mean()), rel=0.1)


def test_one_small_site_is_heard(problem: FederatedProblem) -> None:
    """Forget images are a tenth of one site's images, and one site of three holds them: they are forgotten all the same."""
    few = {**problem.sites, "a": replace(problem.sites["a"], forget=first(problem.sites["a"].forget, 6))}
    gone, kept = scores(
        FEDERATED["excise, mean"](replace(problem, sites=few), {"retain_batch": 32, "learning_rate": 0.03}).model
    )
    assert gone < 0.5
    assert kept > 0.9
