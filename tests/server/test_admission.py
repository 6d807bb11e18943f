"""A sound update passes; every fault is refused by its own code."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from excise.common.errors import UpdateRefused
from excise.common.messages import SiteUpdate
from excise.common.weights import Weights, digest
from excise.server.admission import CODES, admit

BASE: Weights = {
    "conv.weight": torch.ones(2, 3),
    "bn.running_mean": torch.zeros(2),
    "bn.running_var": torch.full((2,), 0.5),
    "bn.num_batches_tracked": torch.tensor(4),
}


def sound() -> SiteUpdate:
    delta = {name: torch.full_like(tensor, 0.1) for name, tensor in BASE.items() if tensor.is_floating_point()}
    return SiteUpdate(weights_in=digest(BASE), delta=delta, passes=1, seconds=0.1)


def with_delta(**changes: torch.Tensor) -> SiteUpdate:
    update = sound()
    return replace(update, delta=update.delta | {name.replace("__", "."): value for name, value in changes.items()})


def without(name: str) -> SiteUpdate:
    update = sound()
    return replace(update, delta={key: tensor for key, tensor in update.delta.items() if key != name})


def one(value: float) -> torch.Tensor:
    tensor = torch.zeros(2, 3)
    tensor[1, 2] = value
    return tensor


CORRUPTIONS: dict[str, tuple[Callable[[], SiteUpdate], str]] = {
    "starts from other weights": (lambda: replace(sound(), weights_in="0" * 64), "wrong_base"),
    "lacks a tensor": (lambda: without("conv.weight"), "names"),
    "lacks a statistic": (lambda: without("bn.running_mean"), "names"),
    "brings another tensor": (lambda: with_delta(head=torch.ones(1)), "names"),
    "brings a counter": (lambda: with_delta(bn__num_batches_tracked=torch.tensor(1)), "names"),
    "is empty": (lambda: replace(sound(), delta={}), "names"),
    "is transposed": (lambda: with_delta(conv__weight=torch.zeros(3, 2)), "shapes"),
    "would broadcast": (lambda: with_delta(conv__weight=torch.zeros(1, 3)), "shapes"),
    "is of double precision": (lambda: with_delta(conv__weight=torch.zeros(2, 3, dtype=torch.float64)), "dtypes"),
    "is of integers": (lambda: with_delta(conv__weight=torch.zeros(2, 3, dtype=torch.int64)), "dtypes"),
    "holds NaN": (lambda: with_delta(conv__weight=one(math.nan)), "not_finite"),
    "holds infinity": (lambda: with_delta(conv__weight=one(math.inf)), "not_finite"),
    "holds minus infinity": (lambda: with_delta(conv__weight=one(-math.inf)), "not_finite"),
    "has a statistic of NaN": (lambda: with_delta(bn__running_var=torch.tensor([0.0, math.nan])), "not_finite"),
    "is too large": (lambda: with_delta(conv__weight=one(100.5)), "norm"),
    "is huge": (lambda: with_delta(conv__weight=one(3e38)), "norm"),
    "makes a variance negative": (lambda: with_delta(bn__running_var=torch.tensor([0.0, -0.6])), "statistics"),
}


@pytest.mark.parametrize(("corrupted", "code"), CORRUPTIONS.values(), ids=CORRUPTIONS.keys())
def test_an_update_is_refused_when_it(corrupted: Callable[[], SiteUpdate], code: str) -> None:
    with pytest.raises(UpdateRefused) as caught:
        admit(corrupted(), BASE, digest(BASE), 100)
    assert caught.value.code == code


def test_every_code_has_its_fault() -> None:
    assert {code for _, code in CORRUPTIONS.values()} == set(CODES)


def test_a_sound_update_passes() -> None:
    admit(sound(), BASE, digest(BASE), 100)


def test_an_update_at_the_bound_passes() -> None:
    admit(with_delta(conv__weight=one(100)), BASE, digest(BASE), 100)


def test_statistics_do_not_count_towards_the_norm() -> None:
    admit(with_delta(bn__running_mean=torch.full((2,), 1e6)), BASE, digest(BASE), 100)


def test_a_variance_may_fall_to_zero() -> None:
    admit(with_delta(bn__running_var=torch.full((2,), -0.5)), BASE, digest(BASE), 100)
