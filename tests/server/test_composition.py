"""Composition: one contract for every rule, and the mean against a slow one."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from excise.common.errors import ConfigError
from excise.common.weights import Weights, digest
from excise.server.composition import Composer, known_rules, new_composer

every_rule = pytest.mark.parametrize("rule", known_rules())


def _randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=Generator().manual_seed(seed))


def _base() -> Weights:
    return {
        "conv.weight": _randn(3, 2, seed=0),
        "bn.running_mean": _randn(3, seed=1),
        "bn.num_batches_tracked": torch.tensor(17),
        "head.bias": _randn(2, seed=2),
        "head.weight": _randn(5, seed=3).double(),  # float64 shows the order of a sum that float32 rounds away
    }


def _update(seed: int, scale: float = 0.1) -> Weights:
    floats = (name for name, tensor in _base().items() if tensor.is_floating_point())
    return {name: scale * _randn(*_base()[name].shape, seed=10 * seed + i).to(_base()[name]) for i, name in enumerate(floats)}


def _composed(rule: str, updates: list[tuple[Weights, float]]) -> Weights:
    composer: Composer = new_composer(rule, _base())
    for delta, weight in updates:
        composer.add(delta, weight)
    return composer.result()


# --- the contract ----------------------------------------------------------------------------------------------------------


@every_rule
def test_order_does_not_matter_to_the_last_bit(rule: str) -> None:
    updates = [(_update(k, scale), w) for k, (scale, w) in enumerate([(1.0, 0.1), (1e-6, 0.37), (3.0, 1 / 3), (0.1, 0.2)])]
    assert len({digest(_composed(rule, list(order))) for order in permutations(updates)}) == 1


@every_rule
@settings(max_examples=30, deadline=None)
@given(
    entries=st.lists(st.tuples(st.floats(-50, 50, width=32), st.floats(1e-3, 1)), min_size=2, max_size=6),
    seed=st.randoms(use_true_random=False),
)
def test_order_of_any_numbers_does_not_matter(rule: str, entries: list[tuple[float, float]], seed: object) -> None:
    updates = [({name: torch.full_like(t, value) for name, t in _update(0).items()}, weight) for value, weight in entries]
    shuffled = list(updates)
    seed.shuffle(shuffled)  # type: ignore[attr-defined]  # hypothesis' Random
    assert digest(_composed(rule, updates)) == digest(_composed(rule, shuffled))


@every_rule
def test_names_dtypes_and_shapes_stay(rule: str) -> None:
    result, base = _composed(rule, [(_update(1), 0.5), (_update(2), 0.5)]), _base()
    assert {n: (t.dtype, t.shape) for n, t in result.items()} == {n: (t.dtype, t.shape) for n, t in base.items()}
    assert digest({k: t for k, t in result.items() if t.is_floating_point()}) != digest(
        {k: t for k, t in base.items() if t.is_floating_point()}
    )


@every_rule
def test_integer_buffers_come_from_the_base(rule: str) -> None:
    delta = {**_update(1), "bn.num_batches_tracked": torch.tensor(5)}  # a site that sends one all the same
    assert int(_composed(rule, [(delta, 1.0)])["bn.num_batches_tracked"]) == 17


@every_rule
@pytest.mark.parametrize("weight", [0.01, 1.0, 7.0])
def test_one_update_is_added_to_the_base(rule: str, weight: float) -> None:
    result, base, delta = _composed(rule, [(_update(1), weight)]), _base(), _update(1)
    for name, change in delta.items():
        torch.testing.assert_close(result[name], base[name] + change, rtol=1e-6, atol=1e-6)


@every_rule
def test_equal_updates_compose_to_themselves(rule: str) -> None:
    result, base = _composed(rule, [(_update(1), w) for w in (0.2, 0.5, 0.3)]), _base()
    for name, change in _update(1).items():
        torch.testing.assert_close(result[name], base[name] + change, rtol=1e-6, atol=1e-6)


@every_rule
def test_no_update_is_refused(rule: str) -> None:
    with pytest.raises(ValueError, match="no update"):
        new_composer(rule, _base()).result()


@every_rule
@pytest.mark.parametrize("weight", [0.0, -0.1])
def test_a_weight_must_be_positive(rule: str, weight: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        new_composer(rule, _base()).add(_update(1), weight)


@every_rule
def test_inputs_are_not_changed(rule: str) -> None:
    base, delta = _base(), _update(1)
    composer = new_composer(rule, base)
    composer.add(delta, 0.5)
    result = composer.result()
    for tensor in result.values():
        tensor.zero_()
    assert digest(base) == digest(_base())
    assert digest(delta) == digest(_update(1))


# --- the mean --------------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(weights=st.lists(st.floats(1e-3, 10), min_size=1, max_size=6))
def test_mean_is_the_weighted_mean(weights: list[float]) -> None:
    updates = [(_update(k), w) for k, w in enumerate(weights)]
    result = _composed("mean", updates)
    for name, tensor in _base().items():
        if not tensor.is_floating_point():
            continue
        flat = tensor.flatten().tolist()
        for i, start in enumerate(flat):
            shift = math.fsum(w * float(delta[name].flatten()[i]) for delta, w in updates) / math.fsum(weights)
            assert float(result[name].flatten()[i]) == pytest.approx(start + shift, rel=1e-6, abs=1e-6)


def test_mean_without_one_site_is_the_mean_of_the_others() -> None:
    two = _composed("mean", [(_update(1), 0.2), (_update(2), 0.3)])  # the third, of weight 0.5, did not answer
    scaled = _composed("mean", [(_update(1), 0.4), (_update(2), 0.6)])
    for name, tensor in two.items():
        torch.testing.assert_close(tensor, scaled[name])


# --- names -----------------------------------------------------------------------------------------------------------------


def test_an_unknown_rule_names_the_closest() -> None:
    with pytest.raises(ConfigError, match="unknown composition 'meen': did you mean 'mean'"):
        new_composer("meen", _base())
    with pytest.raises(ConfigError, match=r"known: .*mean"):
        new_composer("zzzz", _base())
