"""What is done to an update before it leaves, against the same thing written out number by number."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from excise.client.noise import KeyedNormal
from excise.client.policy import UpdatePrivacySettings
from excise.client.privacy import LEAST_VARIANCE, clipped, noised, private, sparsified, total_norm
from excise.common.errors import UpdateRefused
from excise.common.messages import SiteUpdate
from excise.common.weights import Weights, digest
from excise.server.admission import admit

BASE = {
    "conv.weight": torch.zeros(4, 3),
    "bn.running_mean": torch.zeros(4),
    "bn.running_var": torch.tensor([1.0, 0.01, 2.0, 0.0]),
    "bn.count": torch.tensor(7),
}
NOTHING = UpdatePrivacySettings()
clips = st.floats(1e-3, 1e3)
shares = st.floats(1e-3, 1)


@st.composite
def updates(draw: st.DrawFn) -> Weights:
    """Updates of the floating tensors of `BASE`; some numbers are equal, some zero."""
    of_size = draw(st.sampled_from([1e-6, 1.0, 100.0]))
    shapes = {name: tensor.shape for name, tensor in BASE.items() if tensor.is_floating_point()}
    numbers = st.floats(-1, 1, width=32)
    return {
        name: of_size * torch.tensor(draw(st.lists(numbers, min_size=n, max_size=n)), dtype=torch.float32).reshape(shape)
        for name, shape in shapes.items()
        if (n := math.prod(shape))
    }


def normal(key: int = 0) -> KeyedNormal:
    return KeyedNormal(key.to_bytes(32, "big"))


def numbers(delta: Weights) -> list[float]:
    return [float(x) for tensor in delta.values() for x in tensor.flatten()]


def same(a: Weights, b: Weights) -> bool:
    return list(a) == list(b) and digest(a) == digest(b)


@given(updates())
def test_without_a_word_in_the_policy_an_update_leaves_as_it_is(delta: Weights) -> None:
    before = digest(delta)
    assert private(delta, BASE, NOTHING) is delta
    assert digest(delta) == before


# --- clip -------------------------------------------------------------------------------------------------------------------


@given(updates(), clips)
def test_clipping_scales_everything_by_one_factor_down_to_the_norm(delta: Weights, clip: float) -> None:
    found = clipped(delta, clip)
    size = math.sqrt(sum(x * x for x in numbers(delta)))
    assert total_norm(found) <= clip or size <= clip
    assert numbers(found) == pytest.approx([x * min(1, clip / size) if size else x for x in numbers(delta)], rel=1e-6)
    assert same(clipped(found, clip), found)  # once is enough
    if size <= clip * (1 - 1e-9):
        assert found is delta


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_rounding_does_not_carry_the_norm_over_the_bound(dtype: torch.dtype) -> None:
    delta = {"a": torch.full((1000,), 0.7, dtype=dtype), "b": torch.linspace(-3, 3, 77).to(dtype)}
    found = clipped(delta, 0.3)
    assert 0.29 < total_norm(found) <= 0.3
    assert {tensor.dtype for tensor in found.values()} == {dtype}


def test_statistics_count_too() -> None:
    delta = {"w": torch.zeros(2), "bn.running_mean": torch.tensor([3.0, 4.0])}
    assert total_norm(delta) == 5
    assert total_norm(clipped(delta, 1.0)) == pytest.approx(1.0)


def test_a_clipped_variance_does_not_become_negative() -> None:
    delta = {name: -tensor for name, tensor in BASE.items() if tensor.is_floating_point()}  # all the way down to zero
    for clip in (1e-3, 0.5, 2.2, 100.0):
        _admitted(private(delta, BASE, UpdatePrivacySettings(clip=clip)))


# --- sparsify ---------------------------------------------------------------------------------------------------------------


@given(updates(), shares)
def test_so_many_of_the_largest_numbers_are_kept_and_no_others(delta: Weights, share: float) -> None:
    before, after = numbers(delta), numbers(sparsified(delta, share))
    count = max(1, round(share * len(before)))
    slow = sorted((abs(x) for x in before), reverse=True)[:count]
    assert sorted((abs(x) for x in after), reverse=True)[:count] == slow
    assert sum(x != 0 for x in after) == sum(x != 0 for x in slow)
    assert all(x in (0, y) for x, y in zip(after, before, strict=True))


def test_of_equal_numbers_no_more_are_kept_than_were_asked_for() -> None:
    delta = {"a": torch.ones(7), "b": -torch.ones(3, 1)}
    assert sum(x != 0 for x in numbers(sparsified(delta, 0.3))) == 3


@given(updates(), shares)
def test_sparsifying_twice_is_sparsifying_once(delta: Weights, share: float) -> None:
    once = sparsified(delta, share)
    assert sorted(map(abs, numbers(sparsified(once, share)))) == sorted(map(abs, numbers(once)))


# --- noise ------------------------------------------------------------------------------------------------------------------


@given(updates(), st.floats(1e-3, 10), st.integers(0, 100))
def test_noise_is_added_to_every_number(delta: Weights, deviation: float, key: int) -> None:
    found, draw = noised(delta, BASE, deviation, normal(key)), normal(key)
    assert list(found) == list(delta)
    for name in sorted(delta):
        for i, (x, y) in enumerate(zip(delta[name].flatten(), found[name].flatten(), strict=True)):
            wanted = float(x) + deviation * float(draw(1))
            if name.endswith("running_var"):
                wanted = max(wanted, (LEAST_VARIANCE - 1) * float(BASE[name].flatten()[i]))
            assert float(y) == pytest.approx(wanted, rel=1e-6, abs=1e-12)


def test_the_noise_is_as_large_as_the_policy_says_and_on_all_numbers_alike() -> None:
    base = {"a": torch.zeros(300, 300), "bn.running_mean": torch.zeros(90_000)}
    delta = {"a": torch.full((300, 300), 0.01), "bn.running_mean": torch.zeros(90_000)}
    found = private(delta, base, UpdatePrivacySettings(clip=2.0, noise_multiplier=1.5), normal())
    kept = clipped(delta, 2.0)  # the noise is around the clipped update
    for name in delta:
        noise = (found[name] - kept[name]).double()
        assert float(noise.std()) == pytest.approx(3.0, rel=0.01)
        assert abs(float(noise.mean())) < 4 * 3.0 / 300
    both = torch.corrcoef(torch.stack([found["a"].flatten(), found["bn.running_mean"]]))[0, 1]
    assert abs(float(both)) < 4 / 300


@given(updates(), st.integers(0, 1000))
def test_a_noised_update_is_admitted(delta: Weights, key: int) -> None:
    settings = UpdatePrivacySettings(clip=1.0, noise_multiplier=2.0, keep_share=0.5)
    _admitted(private(delta, BASE, settings, normal(key)))


def test_without_the_floor_such_an_update_would_be_refused() -> None:
    zero = {name: torch.zeros_like(tensor) for name, tensor in BASE.items() if tensor.is_floating_point()}
    bare = {name: tensor + normal()(tensor.numel()).reshape(tensor.shape).float() for name, tensor in zero.items()}
    with pytest.raises(UpdateRefused) as refused:
        _admitted(bare)
    assert refused.value.code == "statistics"
    found = noised(zero, BASE, 1.0, normal())["bn.running_var"] + BASE["bn.running_var"]
    assert bool((found >= LEAST_VARIANCE * BASE["bn.running_var"] * (1 - 1e-6)).all())


def test_which_numbers_are_kept_is_decided_after_the_noise() -> None:
    """Else zeros would tell where the update was small, whatever noise is on the others."""
    delta = {"w": torch.cat([torch.ones(10), torch.zeros(990)])}
    settings = UpdatePrivacySettings(clip=1.0, noise_multiplier=10.0, keep_share=0.01)
    found = private(delta, delta, settings, normal())
    noisy = noised(clipped(delta, 1.0), delta, 10.0, normal())
    assert same(found, sparsified(noisy, 0.01))
    assert int((found["w"] != 0).sum()) == 10
    assert int((found["w"][:10] != 0).sum()) < 10


@given(updates())
def test_the_order_of_the_tensors_does_not_show(delta: Weights) -> None:
    settings = UpdatePrivacySettings(clip=1.0, noise_multiplier=1.0)
    turned = dict(reversed(delta.items()))
    assert digest(private(turned, BASE, settings, normal())) == digest(private(delta, BASE, settings, normal()))


def _admitted(delta: dict[str, Tensor]) -> None:
    admit(SiteUpdate(weights_in=digest(BASE), delta=delta, passes=1, seconds=0.1), BASE, digest(BASE), 1e9)
