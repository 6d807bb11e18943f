"""The numbers are normal, follow from the key, and from nothing else."""

from __future__ import annotations

import math
from statistics import NormalDist

import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from scipy.stats import kstest

from excise.client import noise
from excise.client.noise import KeyedNormal

KEY = bytes(range(32))


def test_each_number_is_eight_bytes_of_the_cipher_as_a_normal_quantile() -> None:
    stream = Cipher(AES256(KEY), CTR(bytes(16))).encryptor().update(bytes(8 * 50))
    bits = [int.from_bytes(stream[i : i + 8], "little") & (2**52 - 1) for i in range(0, len(stream), 8)]
    slow = [NormalDist().inv_cdf((b + 0.5) / 2**52) for b in bits]
    assert KeyedNormal(KEY)(50).tolist() == pytest.approx(slow, rel=1e-9)


def test_calls_go_on_where_the_last_one_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = KeyedNormal(KEY)(100)
    draw = KeyedNormal(KEY)
    assert torch.equal(torch.cat([draw(1), draw(0), draw(60), draw(39)]), whole)
    monkeypatch.setattr(noise, "CHUNK", 7)
    assert torch.equal(KeyedNormal(KEY)(100), whole)


def test_the_numbers_are_standard_normal() -> None:
    x = KeyedNormal(KEY)(1_000_000)
    assert x.dtype == torch.float64
    assert abs(float(x.mean())) < 4e-3
    assert float(x.std()) == pytest.approx(1, abs=4e-3)
    assert float((x.abs() > 3).double().mean()) == pytest.approx(2 * NormalDist().cdf(-3), rel=0.1)
    assert kstest(x[:100_000].numpy(), "norm").pvalue > 0.001
    assert abs(float((x[1:] * x[:-1]).mean())) < 4e-3
    assert all(map(math.isfinite, (float(x.min()), float(x.max()))))


def test_another_key_gives_others() -> None:
    a, b = KeyedNormal(KEY)(100_000), KeyedNormal(KEY[::-1])(100_000)
    assert abs(float((a * b).mean())) < 0.013


@pytest.mark.parametrize("bits", [0, 2**52 - 1])
def test_the_ends_of_the_range_are_finite(bits: int) -> None:
    uniform = (torch.tensor([bits]).double() + 0.5) * 2.0**-52
    assert 8 < abs(float(torch.special.ndtri(uniform))) < 8.3


def test_torchs_own_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    KeyedNormal(KEY)(100)
    assert torch.equal(torch.get_rng_state(), before)
