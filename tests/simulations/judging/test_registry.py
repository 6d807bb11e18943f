"""The registry of metrics, and how far a value is from its ideal."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from excise.simulations.judging.metrics import known_metrics
from excise.simulations.judging.registry import RETRAINED, Better, Metric, Registry, shortfall, signed_gap

AUC = Metric("auc", "membership", "share", 0.0, 1.0, 0.5, Better.CLOSER, "an AUC")
ACCURACY = replace(AUC, name="accuracy", ideal=RETRAINED)
TOW = replace(AUC, name="tow", ideal=1.0, better=Better.HIGHER)
RATIO = replace(AUC, name="ratio", high=math.inf, ideal=0.125, better=Better.LOWER)


def test_shortfall_by_hand() -> None:
    assert shortfall(AUC, 0.4) == shortfall(AUC, 0.6) == pytest.approx(0.1)
    assert shortfall(ACCURACY, 0.4, 0.7) == shortfall(ACCURACY, 0.7, 0.4) == pytest.approx(0.3)
    assert shortfall(TOW, 0.9) == pytest.approx(0.1)
    assert shortfall(replace(TOW, ideal=0.8), 0.9) == 0
    assert shortfall(RATIO, 0.1) == 0  # beyond the ideal falls short by nothing
    assert shortfall(RATIO, 0.225) == pytest.approx(0.1)
    assert shortfall(RATIO, math.inf) == math.inf
    assert signed_gap(0.4, 0.7) == pytest.approx(-0.3)


def test_shortfall_of_what_is_missing() -> None:
    assert math.isnan(shortfall(AUC, math.nan))
    assert math.isnan(shortfall(ACCURACY, 0.4))
    assert math.isnan(signed_gap(math.nan, 0.4))


@given(value=st.floats(0, 1), retrained=st.floats(0, 1), metric=st.sampled_from([AUC, ACCURACY, TOW, RATIO]))
def test_the_ideal_falls_short_by_nothing(value: float, retrained: float, metric: Metric) -> None:
    ideal = retrained if isinstance(metric.ideal, str) else metric.ideal
    assert shortfall(metric, ideal, retrained) == 0
    assert shortfall(metric, value, retrained) >= 0


def test_shortfall_refuses_values_out_of_range() -> None:
    for value, retrained in ((1.2, 0.5), (0.5, -0.1)):
        with pytest.raises(ValueError, match=r"accuracy: expected a number from 0\.0 to 1\.0"):
            shortfall(ACCURACY, value, retrained)


def test_registry_refuses_duplicates_and_unknown_names() -> None:
    known = Registry()
    known.add(AUC)
    known.add(TOW)
    assert known.get("tow") is TOW
    assert known.all() == (AUC, TOW)
    with pytest.raises(ValueError, match="a metric 'auc' already"):
        known.add(AUC)
    with pytest.raises(ValueError, match="unknown metric 'tov': did you mean 'tow'"):
        known.get("tov")


def test_metric_refuses_what_contradicts_itself() -> None:
    with pytest.raises(ValueError, match=r"expected an ideal from 0\.0 to 1\.0, got 2"):
        replace(AUC, ideal=2.0)
    with pytest.raises(ValueError, match="got 'as original'"):
        replace(AUC, ideal="as original")
    with pytest.raises(ValueError, match="expected 'as retrained'"):
        replace(ACCURACY, better=Better.HIGHER)


def test_every_group_of_the_design_is_there() -> None:
    known = known_metrics().all()
    groups = ["utility", "distance", "membership", "depth", "collateral", "persistence", "cost"]
    assert list(dict.fromkeys(metric.group for metric in known)) == groups
    assert all(metric.text and metric.unit and metric.low < metric.high for metric in known)


def test_ideal_of_the_loss_attack_hangs_on_what_is_forgotten() -> None:
    samples, whole = known_metrics(), known_metrics(whole_class=True)
    assert samples.get("loss_auc").ideal == 0.5
    assert whole.get("loss_auc").ideal == RETRAINED
    assert whole.get("ulira_auc").ideal == 0.5
    assert samples.get("rmia_tpr").ideal == 0.01
    assert [m.name for m in samples.all()] == [m.name for m in whole.all()]
