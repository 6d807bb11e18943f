"""ε of the updates that left: against Opacus' own accountant and a slow search, over restarts, and up to the bound."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opacus.accountants import RDPAccountant

from excise.client.accountant import Accountant, Spent, epsilon
from excise.client.permission import Forbidden
from excise.client.policy import UpdatePrivacySettings
from excise.common import files
from excise.common.errors import DataError, SiteError, StorageError
from tests.deployment import ROOT

NOISE = UpdatePrivacySettings(clip=1.0, noise_multiplier=2.0)
multipliers = st.floats(0.01, 100)
deltas = st.floats(1e-9, 0.1)


def slow(counts: dict[float, int], delta: float) -> float:
    """Balle et al. (2020), theorem 21, at the best of many orders; each update has the Rényi divergence 2α/z²."""
    rho = sum(2 * n / z**2 for z, n in counts.items())
    orders = [1 + 10 ** (k / 500) for k in range(-3500, 2500)]
    return max(0.0, min(a * rho + math.log((a - 1) / a) - (math.log(delta) + math.log(a)) / (a - 1) for a in orders))


@given(st.dictionaries(multipliers, st.integers(1, 1000), min_size=1, max_size=3), deltas)
def test_epsilon_is_the_bound_at_the_best_order(counts: dict[float, int], delta: float) -> None:
    best = slow(counts, delta)
    assert best - 1e-9 <= epsilon(counts, delta) <= best * 1.01 + 0.01  # never below it: our orders are fewer


@pytest.mark.parametrize(("z", "updates"), [(2.0, 10), (8.0, 1), (8.0, 100)])
def test_opacus_own_accountant_says_the_same_of_half_the_noise(z: float, updates: int) -> None:
    """Half: two updates of a site differ by up to twice the clip, and Opacus counts noise in units of that difference."""
    theirs = RDPAccountant()
    for _ in range(updates):
        theirs.step(noise_multiplier=z / 2, sample_rate=1.0)
    assert epsilon({z: updates}, 1e-5) == pytest.approx(theirs.get_epsilon(1e-5), rel=0.01)


@pytest.mark.parametrize(("z", "told"), [(1e-6, 2e13), (1e-3, 2e7), (1e4, 0.01)])
def test_the_ends_of_the_range_are_told_too(z: float, told: float) -> None:
    found = epsilon({z: 10}, 1e-5)
    assert math.isfinite(found)
    assert found >= told if z < 1 else 0 <= found <= told


def test_nothing_costs_nothing_and_no_noise_costs_everything() -> None:
    assert epsilon({}, 1e-5) == 0
    assert epsilon({1.0: 0, 0.0: 0}, 1e-5) == 0
    assert epsilon({1.0: 1, 0.0: 1}, 1e-5) == math.inf


@given(multipliers, st.integers(1, 100), deltas)
def test_more_updates_or_less_noise_or_a_smaller_delta_cost_more(z: float, n: int, delta: float) -> None:
    here = epsilon({z: n}, delta)
    assert epsilon({z: n + 1}, delta) >= here
    assert epsilon({z / 2: n}, delta) >= here
    assert epsilon({z: n}, delta / 2) >= here


# --- what is kept -----------------------------------------------------------------------------------------------------------


def test_every_update_counts_whatever_its_noise_and_over_restarts(tmp_path: Path) -> None:
    assert Accountant(tmp_path).spent(1e-5) == Spent(0, 0, 0.0, 1e-5)
    for privacy in (NOISE, UpdatePrivacySettings(), NOISE, NOISE.model_copy(update={"noise_multiplier": 4.0})):
        Accountant(tmp_path).count(privacy)  # a new one each time, as Flower starts a process for every message
    spent = Accountant(tmp_path).spent(1e-6)
    assert spent == Spent(4, 1, epsilon({2.0: 2, 4.0: 1}, 1e-6), 1e-6)
    assert not (tmp_path / "state").exists()  # which may be deleted


def test_looking_counts_nothing(tmp_path: Path) -> None:
    Accountant(tmp_path).check(NOISE)
    Accountant(tmp_path).spent(1e-5)
    assert not Accountant(tmp_path).path.exists()


COUNTS = """
import sys
from pathlib import Path
from excise.client.accountant import Accountant
from excise.client.policy import UpdatePrivacySettings
while True:
    Accountant(Path(sys.argv[1])).count(UpdatePrivacySettings(clip=1.0, noise_multiplier=2.0))
    print("counted", flush=True)
"""


def test_a_process_that_is_killed_leaves_a_count_that_can_be_gone_on_with(tmp_path: Path) -> None:
    accountant, environment = Accountant(tmp_path), {**os.environ, "PYTHONPATH": str(ROOT)}
    counting = [sys.executable, "-c", COUNTS, str(tmp_path)]
    with subprocess.Popen(counting, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout
        assert [process.stdout.readline() for _ in range(20)] == ["counted\n"] * 20
        process.kill()  # amid its next counts
    before = accountant.spent(1e-5).updates
    accountant.count(NOISE)
    assert accountant.spent(1e-5).updates == before + 1 > 20


def test_updates_that_leave_at_the_same_time_are_all_counted(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: Accountant(tmp_path).count(NOISE), range(24)))
    assert Accountant(tmp_path).spent(1e-5).updates == 24


@pytest.mark.parametrize("content", ["", "[1]", '{"a": 1}', '{"1.0": null}', '{"1.0": -3}', '{"nan": 1}', '{"1.0": 2'])
def test_damaged_counts_stop_every_update(tmp_path: Path, content: str) -> None:
    accountant = Accountant(tmp_path)
    accountant.path.parent.mkdir()
    accountant.path.write_text(content)
    for act in (accountant.check, accountant.count):
        with pytest.raises(DataError, match=r"updates\.json .*backup"):
            act(NOISE)
    assert accountant.path.read_text() == content


def test_what_cannot_be_written_is_not_counted_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accountant = Accountant(tmp_path)
    accountant.count(NOISE)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(StorageError):
        accountant.count(NOISE)
    assert json.loads(accountant.path.read_text()) == {"2.0": 1}


# --- the bound --------------------------------------------------------------------------------------------------------------


def test_the_last_update_within_the_bound_leaves_and_the_next_does_not(tmp_path: Path) -> None:
    bound = NOISE.model_copy(update={"max_epsilon": epsilon({2.0: 3}, 1e-5)})
    accountant = Accountant(tmp_path)
    for _ in range(3):
        accountant.check(bound)
        accountant.count(bound)
    for act in (accountant.check, accountant.count):
        with pytest.raises(Forbidden, match=r"one update more .* at δ = 1e-05; policy\.privacy\.max_epsilon = ") as refused:
            act(bound)
        assert refused.value.code is SiteError.FORBIDDEN
    assert accountant.spent(1e-5).updates == 3
    accountant.count(NOISE)  # a site that takes its bound away goes on, and the count with it
    assert accountant.spent(1e-5).updates == 4


def test_earlier_updates_with_other_noise_count_for_the_bound(tmp_path: Path) -> None:
    accountant = Accountant(tmp_path)
    accountant.count(NOISE.model_copy(update={"noise_multiplier": 0.1}))
    with pytest.raises(Forbidden):
        accountant.check(NOISE.model_copy(update={"max_epsilon": 100.0}))


def test_earlier_updates_without_noise_are_told_and_do_not_use_the_bound_up(tmp_path: Path) -> None:
    accountant = Accountant(tmp_path)
    accountant.count(UpdatePrivacySettings())
    accountant.check(NOISE.model_copy(update={"max_epsilon": 10.0}))
    assert (accountant.spent(1e-5).bare, accountant.spent(1e-5).epsilon) == (1, 0.0)
