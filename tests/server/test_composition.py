"""Composition: one contract for every rule, and each rule against a slow or a foreign one."""

from __future__ import annotations

import math
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from flwr.server.strategy.aggregate import aggregate_krum, aggregate_median, aggregate_trimmed_avg
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from excise.common.errors import ConfigError
from excise.common.settings import CompositionSettings
from excise.common.weights import Weights, digest, is_statistic
from excise.server.composition import Composer, Update, known_rules, new_composer, recovery_rounds, rule_options
from excise.server.composition.ties import trimmed

every_rule = pytest.mark.parametrize("rule", known_rules())
GENTLE = {"ties": {"density": 1.0}, "dare": {"drop": 0.0}}
"""Options under which a rule leaves a single update as it is, where its defaults do not."""


def _randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=Generator().manual_seed(seed))


def _base() -> Weights:
    return {
        "conv.weight": _randn(3, 2, seed=0),
        "bn.running_mean": _randn(3, seed=1),
        "bn.num_batches_tracked": torch.tensor(17),
        "head.bias": _randn(2, seed=2),
        "head.weight": _randn(5, seed=3).double(),  # float64 shows the order of a sum that float32 rounds away
        "bn.running_var": _randn(3, seed=4).abs() + 1,
    }


def _update(seed: int, scale: float = 0.1) -> Weights:
    floats = (name for name, tensor in _base().items() if tensor.is_floating_point())
    return {name: scale * _randn(*_base()[name].shape, seed=10 * seed + i).to(_base()[name]) for i, name in enumerate(floats)}


def _updates(*parts: tuple[Weights, float] | tuple[Weights, float, bool]) -> list[Update]:
    """Updates of sites a, b, …; every other one forgets unless its role is given."""
    return [Update(chr(97 + i), p[0], p[1], p[2] if len(p) == 3 else i % 2 == 0) for i, p in enumerate(parts)]


def _composed(rule: str, updates: list[Update], base: Weights | None = None, **options: float) -> Weights:
    composer: Composer = new_composer(CompositionSettings(rule=rule, options=options), base or _base())
    for update in updates:
        composer.add(update)
    return composer.result()


def _slow_mean(updates: list[Update]) -> dict[str, np.ndarray]:
    """Base plus weighted mean, one number at a time."""
    total = math.fsum(update.weight for update in updates)
    moved = {}
    for name, tensor in _base().items():
        if tensor.is_floating_point():
            columns = zip(*(update.delta[name].flatten().tolist() for update in updates), strict=True)
            shifts = [math.fsum(u.weight * x for u, x in zip(updates, column, strict=True)) / total for column in columns]
            moved[name] = (tensor.flatten().double().numpy() + np.array(shifts)).reshape(tensor.shape)
    return moved


def _assert_equal(result: Weights, expected: dict[str, Any], names: list[str] | None = None) -> None:
    for name in names or [name for name, tensor in result.items() if tensor.is_floating_point()]:
        np.testing.assert_allclose(result[name].double().numpy(), np.asarray(expected[name]), rtol=1e-5, atol=1e-6)


PARAMETERS = [name for name, tensor in _base().items() if tensor.is_floating_point() and not is_statistic(name)]
STATISTICS = [name for name in _base() if is_statistic(name)]


# --- the contract ----------------------------------------------------------------------------------------------------------


@every_rule
def test_order_does_not_matter_to_the_last_bit(rule: str) -> None:
    scales = [(1.0, 0.1), (1e-6, 0.37), (3.0, 1 / 3), (0.1, 0.2), (0.5, 0.25)]
    updates = _updates(*((_update(k, scale), w) for k, (scale, w) in enumerate(scales)))
    assert len({digest(_composed(rule, list(order))) for order in permutations(updates)}) == 1


@every_rule
@settings(max_examples=30, deadline=None)
@given(
    entries=st.lists(st.tuples(st.floats(-50, 50, width=32), st.floats(1e-3, 1), st.booleans()), min_size=2, max_size=6),
    seed=st.randoms(use_true_random=False),
)
def test_order_of_any_numbers_does_not_matter(rule: str, entries: list[tuple[float, float, bool]], seed: Any) -> None:
    updates = _updates(
        *(({name: torch.full_like(t, value) for name, t in _update(0).items()}, w, role) for value, w, role in entries)
    )
    shuffled = list(updates)
    seed.shuffle(shuffled)
    assert digest(_composed(rule, updates)) == digest(_composed(rule, shuffled))


@every_rule
def test_names_dtypes_and_shapes_stay(rule: str) -> None:
    result, base = _composed(rule, _updates((_update(1), 0.5), (_update(2), 0.5))), _base()
    assert {n: (t.dtype, t.shape) for n, t in result.items()} == {n: (t.dtype, t.shape) for n, t in base.items()}
    assert not any(torch.equal(result[name], base[name]) for name in PARAMETERS)


@every_rule
def test_integer_buffers_come_from_the_base(rule: str) -> None:
    delta = {**_update(1), "bn.num_batches_tracked": torch.tensor(5)}  # a site that sends one all the same
    assert int(_composed(rule, _updates((delta, 1.0)))["bn.num_batches_tracked"]) == 17


@every_rule
@pytest.mark.parametrize("forgets", [True, False])
@pytest.mark.parametrize("weight", [0.01, 1.0, 7.0])
def test_one_update_is_added_to_the_base(rule: str, weight: float, forgets: bool) -> None:
    updates = _updates((_update(1), weight, forgets))
    _assert_equal(_composed(rule, updates, **GENTLE.get(rule, {})), _slow_mean(updates))


@every_rule
def test_equal_updates_of_one_role_compose_to_themselves(rule: str) -> None:
    updates = _updates(*((_update(1), w, True) for w in (0.2, 0.5, 0.3)))
    _assert_equal(_composed(rule, updates, **GENTLE.get(rule, {})), _slow_mean(updates[:1]))


@every_rule
def test_statistics_stay_between_those_of_the_sites(rule: str) -> None:
    updates = _updates(*((_update(k), 0.2) for k in range(6)))
    result = _composed(rule, updates)
    for name in STATISTICS:
        told = torch.stack([_base()[name] + update.delta[name] for update in updates])
        assert bool(((result[name] >= told.amin(0) - 1e-6) & (result[name] <= told.amax(0) + 1e-6)).all())


@every_rule
def test_a_variance_never_becomes_negative(rule: str) -> None:
    """Not by rounding either: here the exact mean is positive and below the resolution of the sum."""
    base = {**_base(), "bn.running_var": torch.full((3,), 6e-13)}
    delta = {**_update(1, 0.0), "bn.running_var": torch.full((3,), -5.4e-13)}
    result = _composed(rule, _updates((delta, 0.9, True), (delta, 0.1, True)), base=base)
    assert bool((result["bn.running_var"] >= 0).all())


@every_rule
def test_no_update_is_refused(rule: str) -> None:
    with pytest.raises(ValueError, match="no update"):
        new_composer(CompositionSettings(rule=rule), _base()).result()


@every_rule
@pytest.mark.parametrize("weight", [0.0, -0.1, math.nan, math.inf])
def test_a_weight_must_be_positive_and_finite(rule: str, weight: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        new_composer(CompositionSettings(rule=rule), _base()).add(Update("a", _update(1), weight, True))


@every_rule
def test_inputs_are_not_changed(rule: str) -> None:
    base, delta = _base(), _update(1)
    composer = new_composer(CompositionSettings(rule=rule), base)
    composer.add(Update("a", delta, 0.5, True))
    result = composer.result()
    for tensor in result.values():
        tensor.zero_()
    assert digest(base) == digest(_base())
    assert digest(delta) == digest(_update(1))


@every_rule
def test_a_site_may_use_its_tensors_again(rule: str) -> None:
    updates = _updates(*((_update(k), 0.25) for k in range(4)))
    composer = new_composer(CompositionSettings(rule=rule), _base())
    for update in updates:
        passed = {name: tensor.clone() for name, tensor in update.delta.items()}
        composer.add(Update(update.site, passed, update.weight, update.forgets))
        for tensor in passed.values():
            tensor.zero_()
    assert digest(composer.result()) == digest(_composed(rule, updates))


@every_rule
def test_the_only_site_that_forgets_is_heard(rule: str) -> None:
    """Among many that do next to nothing: what robust rules that ignore roles get wrong."""
    forget = {name: torch.ones_like(tensor) for name, tensor in _update(0).items()}
    idle = [(_update(k, 1e-3), 0.1, False) for k in range(1, 8)]
    result = _composed(rule, _updates((forget, 0.3, True), *idle), **GENTLE.get(rule, {}))
    for name in PARAMETERS if rule != "module_swap" else ["head.bias", "head.weight"]:
        assert float((result[name] - _base()[name]).mean()) > 0.2


@every_rule
def test_memory_layout_does_not_matter(rule: str) -> None:
    """Convolutions may come channels-last, and the sums must not care."""
    shape = (4, 3, 3, 3)

    def composed(layout: torch.memory_format) -> Weights:
        base = {"head.weight": _randn(*shape, seed=0).to(memory_format=layout)}
        composer = new_composer(CompositionSettings(rule=rule), base)
        for k in range(3):
            delta = {"head.weight": _randn(*shape, seed=k + 1).to(memory_format=layout)}
            composer.add(Update(f"site-{k}", delta, 0.3, k == 0))
        return composer.result()

    assert digest(composed(torch.contiguous_format)) == digest(composed(torch.channels_last))


# --- each rule -------------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(weights=st.lists(st.floats(1e-3, 10), min_size=1, max_size=6))
def test_mean_is_the_weighted_mean(weights: list[float]) -> None:
    updates = _updates(*((_update(k), w) for k, w in enumerate(weights)))
    _assert_equal(_composed("mean", updates), _slow_mean(updates))


def test_mean_without_one_site_is_the_mean_of_the_others() -> None:
    two = _composed("mean", _updates((_update(1), 0.2), (_update(2), 0.3)))  # the third, of weight 0.5, did not answer
    scaled = _composed("mean", _updates((_update(1), 0.4), (_update(2), 0.6)))
    for name, tensor in two.items():
        torch.testing.assert_close(tensor, scaled[name])


FIVE = [(_update(k), w) for k, w in enumerate((0.1, 0.3, 0.2, 0.15, 0.25))]


def test_task_arithmetic_scales_the_parameters_alone() -> None:
    updates, base, mean = _updates(*FIVE), _base(), _slow_mean(_updates(*FIVE))
    result = _composed("task_arithmetic", updates, scale=2.5)
    _assert_equal(result, mean, STATISTICS)
    _assert_equal(result, {n: base[n].numpy() + 2.5 * (mean[n] - base[n].numpy()) for n in PARAMETERS}, PARAMETERS)


@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
def test_ties_is_trim_elect_merge_one_coordinate_at_a_time(density: float) -> None:
    updates = _updates(*FIVE)
    kept = []
    for update in updates:
        sizes = sorted((abs(float(x)) for n in PARAMETERS for x in update.delta[n].flatten()), reverse=True)
        least = sizes[math.ceil(density * len(sizes)) - 1]
        kept.append({n: [x if abs(x) >= least else 0.0 for x in update.delta[n].flatten().tolist()] for n in PARAMETERS})
    expected: dict[str, Any] = {}
    for name in PARAMETERS:
        merged = []
        for i in range(_base()[name].numel()):
            column = [(update.weight, part[name][i]) for update, part in zip(updates, kept, strict=True)]
            elected = sum(w * x for w, x in column)
            agreeing = [(w, x) for w, x in column if x * elected > 0]
            merged.append(2 * sum(w * x for w, x in agreeing) / sum(w for w, _ in agreeing) if agreeing else 0.0)
        expected[name] = _base()[name].numpy() + np.array(merged).reshape(_base()[name].shape)
    result = _composed("ties", updates, density=density, scale=2.0)
    _assert_equal(result, expected, PARAMETERS)
    _assert_equal(result, _slow_mean(updates), STATISTICS)


def test_trimming_keeps_at_least_one() -> None:
    kept = trimmed({"a": torch.tensor([1.0, -3.0]), "b": torch.tensor([2.0])}, 1e-9)
    assert [x.tolist() for x in kept.values()] == [[0.0, -3.0], [0.0]]


def test_dare_thins_and_rescales() -> None:
    base = {"w": torch.zeros(20_000)}
    delta = {"w": torch.ones(20_000)}
    composer = new_composer(CompositionSettings(rule="dare", options={"drop": 0.75}), base)
    composer.add(Update("a", delta, 1.0, True))
    result = composer.result()["w"]
    assert set(result.unique().tolist()) == {0.0, 4.0}
    assert float(result.mean()) == pytest.approx(1.0, abs=0.05)  # unbiased; three standard errors are 0.037
    again = new_composer(CompositionSettings(rule="dare", options={"drop": 0.75}), base)
    again.add(Update("a", {"w": torch.full((20_000,), 1.5)}, 1.0, True))
    assert not torch.equal(result > 0, again.result()["w"] > 0)  # another round, another mask


@pytest.mark.parametrize(("agreement", "passes"), [(1.0, False), (0.8, False), (0.75, True), (0.5, True)])
def test_sign_consensus_needs_the_share_of_forgetting_sites(agreement: float, passes: bool) -> None:
    plus = {name: torch.ones_like(tensor) for name, tensor in _update(0).items()}
    minus = {name: -tensor for name, tensor in plus.items()}
    idle = {name: 0.5 * tensor for name, tensor in plus.items()}
    sites = _updates((plus, 0.2, True), (plus, 0.2, True), (plus, 0.2, True), (minus, 0.2, True), (idle, 0.2, False))
    result = _composed("sign_consensus", sites, agreement=agreement)
    shift = 0.1 + (0.4 if passes else 0.0)
    _assert_equal(result, {n: _base()[n].numpy() + shift for n in PARAMETERS}, PARAMETERS)
    _assert_equal(result, _slow_mean(sites), STATISTICS)


def test_orthogonal_leaves_nothing_of_the_forget_update_along_the_retain_update() -> None:
    sites = _updates((_update(1), 0.3, True), (_update(2), 0.1, True), (_update(3), 0.4, False), (_update(4), 0.2, False))
    result, base = _composed("orthogonal", sites), _base()

    def flat(moved: dict[str, Any]) -> np.ndarray:
        return np.concatenate([(np.asarray(moved[n]) - base[n].numpy()).ravel() for n in PARAMETERS])

    forget, retain = flat(_slow_mean(sites[:2])), flat(_slow_mean(sites[2:]))
    across = flat(result) - 0.6 * retain  # the forget part that came through
    assert across @ retain == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(across, 0.4 * (forget - forget @ retain / (retain @ retain) * retain), atol=1e-6)
    _assert_equal(result, _slow_mean(sites), STATISTICS)


def test_module_swap_takes_the_head_from_those_that_forget() -> None:
    sites = _updates((_update(1), 0.3, True), (_update(2), 0.1, True), (_update(3), 0.4, False), (_update(4), 0.2, False))
    result = _composed("module_swap", sites)
    heads = [name for name in PARAMETERS if name.startswith("head.")]
    _assert_equal(result, _slow_mean(sites[:2]), heads)
    _assert_equal(result, _slow_mean(sites[2:]), [n for n in PARAMETERS + STATISTICS if n not in heads])


def test_module_swap_asks_for_recovery_and_for_a_head() -> None:
    assert recovery_rounds(CompositionSettings(rule="module_swap", options={"recovery_rounds": 3})) == 3
    assert {rule for rule in known_rules() if recovery_rounds(CompositionSettings(rule=rule))} == {"module_swap"}
    with pytest.raises(ConfigError, match="no tensors named 'head"):
        new_composer(CompositionSettings(rule="module_swap"), {"w": torch.zeros(2)})


def _as_flower(updates: list[Update]) -> list[tuple[list[np.ndarray], int]]:
    return [([update.delta[name].double().numpy() for name in sorted(update.delta)], 1) for update in updates]


@pytest.mark.parametrize("sites", [1, 2, 5, 6, 9])
@pytest.mark.parametrize(
    ("rule", "options", "flower"),
    [
        ("median", {}, aggregate_median),
        ("trimmed_mean", {"trim": 0.2}, lambda results: aggregate_trimmed_avg(results, 0.2)),
        ("trimmed_mean", {"trim": 0.45}, lambda results: aggregate_trimmed_avg(results, 0.45)),
    ],
)
def test_on_equal_roles_robust_rules_are_flowers(rule: str, options: dict[str, float], flower: Any, sites: int) -> None:
    updates = _updates(*((_update(k), 0.1 * (k + 1), True) for k in range(sites)))
    expected = dict(zip(sorted(updates[0].delta), flower(_as_flower(updates)), strict=True))
    shifted = {name: _base()[name].double().numpy() + shift for name, shift in expected.items()}
    _assert_equal(_composed(rule, updates, **options), shifted)


@pytest.mark.parametrize(("sites", "faulty", "keep"), [(5, 1, 1), (5, 1, 3), (9, 2, 4), (9, 3, 1)])
def test_on_equal_roles_multi_krum_is_flowers(sites: int, faulty: int, keep: int) -> None:
    parameters = [
        {n: _update(k)[n] if n in PARAMETERS else torch.zeros_like(_update(k)[n]) for n in _update(k)} for k in range(sites)
    ]
    updates = _updates(*((delta, 0.1, True) for delta in parameters))  # Flower measures distances over everything
    expected = aggregate_krum(_as_flower(updates), faulty, keep)
    shifted = {n: _base()[n].double().numpy() + x for n, x in zip(sorted(updates[0].delta), expected, strict=True)}
    _assert_equal(_composed("multi_krum", updates, faulty=faulty, keep=keep), shifted)


@pytest.mark.parametrize(
    ("rule", "options"), [("median", {}), ("trimmed_mean", {"trim": 0.25}), ("multi_krum", {"faulty": 1})]
)
@pytest.mark.parametrize("role", [True, False])
def test_a_faulty_site_is_outvoted_within_its_role(rule: str, options: dict[str, float], role: bool) -> None:
    honest = {name: torch.ones_like(tensor) for name, tensor in _update(0).items()}
    faulty = {name: torch.full_like(tensor, -1e6) for name, tensor in honest.items()}
    sites = _updates(*((honest, 0.1, role) for _ in range(5)), (faulty, 0.1, role), (honest, 0.4, not role))
    _assert_equal(_composed(rule, sites, **options), {n: _base()[n].numpy() + 1 for n in PARAMETERS + STATISTICS})


def test_streaming_rules_say_so() -> None:
    keeping = {rule for rule in known_rules() if not new_composer(CompositionSettings(rule=rule), _base()).streaming}
    assert keeping == {"median", "trimmed_mean", "multi_krum"}


# --- names and options -----------------------------------------------------------------------------------------------------


def test_an_unknown_rule_names_the_closest() -> None:
    with pytest.raises(ConfigError, match="unknown composition 'meen': did you mean 'mean'"):
        new_composer(CompositionSettings(rule="meen"), _base())
    with pytest.raises(ConfigError, match=r"known: .*mean"):
        new_composer(CompositionSettings(rule="zzzz"), _base())


@pytest.mark.parametrize(
    ("rule", "options", "said"),
    [
        ("ties", {"densty": 0.2}, "no option 'densty': did you mean 'density'"),
        ("mean", {"scale": 2}, "no option 'scale': it has none"),
        ("ties", {"density": 0}, "density must lie in"),
        ("ties", {"scale": 11}, "scale must lie in"),
        ("task_arithmetic", {"scale": -1}, "scale must lie in"),
        ("dare", {"drop": 1}, "drop must lie in"),
        ("sign_consensus", {"agreement": 0.4}, "agreement must lie in"),
        ("trimmed_mean", {"trim": 0.5}, "trim must lie in"),
        ("multi_krum", {"faulty": 1.5}, "faulty must be a whole number"),
        ("multi_krum", {"keep": -1}, "keep must be a whole number"),
        ("module_swap", {"recovery_rounds": 0.5}, "recovery_rounds must be a whole number"),
    ],
)
def test_a_wrong_option_says_what_is_expected(rule: str, options: dict[str, float], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        new_composer(CompositionSettings(rule=rule, options=options), _base())


@every_rule
def test_defaults_are_told_and_accepted(rule: str) -> None:
    new_composer(CompositionSettings(rule=rule, options=rule_options(rule)), _base())


def test_a_composition_is_a_name_or_a_table() -> None:
    assert CompositionSettings.model_validate("ties") == CompositionSettings(rule="ties")
    table = CompositionSettings.model_validate({"rule": "ties", "density": 0.3})
    assert table == CompositionSettings(rule="ties", options={"density": 0.3})
    assert CompositionSettings.model_validate(table.model_dump()) == table  # as config.toml keeps it
