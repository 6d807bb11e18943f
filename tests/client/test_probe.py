"""A linear probe: what features tell of images of patients that it has not seen, and of how few it says nothing."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from excise.client import rounds
from excise.client.probe import probe_auc
from excise.client.rounds.probe import _sides
from excise.client.site import Site, open_site
from excise.common.messages import ProbeQuery, ProbeReply
from excise.common.models import ModelSpec, build_model
from excise.common.request import ForgetRequest, RequestKind
from excise.common.weights import Weights, snapshot
from tests.dicoms import write_hospital

SPEC = ModelSpec(size=16, width=0.05)
DEVICE = ForgetRequest(id="mr7", kind=RequestKind.DEVICE, where="StationName = MR7", reason="r", linear_probe=True)
CLASS = ForgetRequest(id="ill", kind=RequestKind.CLASS, where="class = ill", reason="r", linear_probe=True)


def probed(features: np.ndarray, forget: np.ndarray, patients: np.ndarray, seed: int = 0) -> float:
    return probe_auc(features, forget, [str(patient) for patient in patients], np.ones(len(forget)), seed)


def test_what_features_tell_is_found() -> None:
    rng = np.random.default_rng(0)
    patients, forget = np.arange(120), np.arange(120) % 2 == 0
    features = rng.normal(size=(120, 30))
    features[:, 7] += 3 * forget
    assert probed(features, forget, patients) > 0.95
    assert probed(features * 1000 + 7, forget, patients) == pytest.approx(probed(features, forget, patients), abs=1e-6)


def test_noise_tells_nothing_though_there_is_more_of_it_than_images() -> None:
    rng = np.random.default_rng(1)
    found = [probed(rng.normal(size=(60, 200)), np.arange(60) % 2 == 0, np.arange(60), seed) for seed in range(20)]
    assert np.mean(found) == pytest.approx(0.5, abs=0.05)


def test_who_the_patient_is_does_not_pass_for_what_is_forgotten() -> None:
    """Every patient has features of their own; image by image they would tell the sides apart without an error."""
    rng = np.random.default_rng(2)
    patients = np.repeat(np.arange(24), 10)
    features = rng.normal(size=(24, 50))[patients] + 0.1 * rng.normal(size=(240, 50))
    found = [probed(features, np.isin(patients, rng.permutation(24)[:12]), patients, seed) for seed in range(12)]
    assert np.mean(found) == pytest.approx(0.5, abs=0.12)
    assert probed(features, patients < 12, np.arange(240)) > 0.99


def test_other_images_count_as_their_weights_say() -> None:
    """Half of the other images are easily told apart; where they weigh nothing, little is told."""
    rng = np.random.default_rng(3)
    forget = np.arange(300) < 100
    features = rng.normal(size=(300, 3))
    features[200:, 0] += 6
    names = [str(i) for i in range(300)]
    light = np.where(np.arange(300) < 200, 1.0, 1e-6)
    assert probe_auc(features, forget, names, np.ones(300), 0) > 0.7
    assert probe_auc(features, forget, names, light, 0) == pytest.approx(0.5, abs=0.12)


@pytest.mark.parametrize("case", ["one patient", "one side", "not finite"])
def test_where_nothing_can_be_told_it_is_not_measured(case: str) -> None:
    features, forget, patients = np.random.default_rng(0).normal(size=(20, 2)), np.arange(20) < 10, np.arange(20)
    if case == "one patient":
        patients = np.where(forget, 0, patients)
    elif case == "one side":
        forget = np.zeros(20, dtype=bool)
    else:
        features[3, 1] = np.inf
    assert math.isnan(probed(features, forget, patients))


# --- at a site -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return open_site(write_hospital(tmp_path_factory.mktemp("hospital"), patients=80))


def with_policy(site: Site, **policy: Any) -> Site:
    changed = site.config.policy.model_copy(update=policy)
    return replace(site, config=site.config.model_copy(update={"policy": changed}))


def query(request: ForgetRequest, **candidates: Weights) -> ProbeQuery:
    return ProbeQuery(model=SPEC, candidates=candidates or {"a": snapshot(build_model(SPEC))}, request=request)


def test_a_class_that_images_show_is_told_from_the_others(site: Site) -> None:
    reply = rounds.probe.answer(site, query(CLASS))
    assert reply.metrics["a/probe_auc"] > 0.9  # its images are brighter, which even a new model's features tell
    assert reply.images == len(site.select(CLASS).forget)


def test_models_are_compared_on_the_same_images(site: Site) -> None:
    new, other = (snapshot(build_model(SPEC, seed)) for seed in (0, 1))
    reply = rounds.probe.answer(site, query(DEVICE, a=new, b=other, again=new))
    assert reply.metrics["a/probe_auc"] == reply.metrics["again/probe_auc"]
    assert reply.metrics["a/probe_auc"] != reply.metrics["b/probe_auc"]


def test_images_are_compared_with_unseen_ones_in_their_mix_of_classes(site: Site) -> None:
    mostly_ill = replace(site, y_N=site.y_N.clone())
    sets = site.select(DEVICE)
    mostly_ill.y_N[sets.forget[2:]] = 1
    mostly_ill.y_N[sets.forget[:2]] = 0
    sides = _sides(mostly_ill, query(DEVICE))
    assert sides is not None
    y_N, others = mostly_ill.y_N[sides.rows].numpy(), ~sides.forget_N
    unseen = {*sets.reference.tolist(), *sets.held_out.tolist()}
    assert set(sides.rows[torch.from_numpy(others)].tolist()) <= unseen
    shares = [np.average(y_N[side], weights=sides.weights_N[side]) for side in (others, sides.forget_N)]
    assert shares[0] == pytest.approx(shares[1])


@pytest.mark.parametrize("request_", [DEVICE, CLASS], ids=["device", "class"])
def test_nothing_is_told_of_few_images(site: Site, request_: ForgetRequest) -> None:
    most = len(site.select(request_).forget)
    assert rounds.probe.answer(with_policy(site, min_count=most + 1), query(request_)) == _nothing()
    nobody = request_.model_copy(update={"where": "StationName = MR99 and class = ill"})
    assert rounds.probe.answer(site, query(nobody)) == _nothing()


def test_nothing_is_told_of_few_patients(site: Site) -> None:
    rows = [replace(row, patient="one" if i % 2 else "other") for i, row in enumerate(site.scan.rows)]
    same = with_policy(replace(site, scan=replace(site.scan, rows=rows)), min_count=3)
    assert rounds.probe.answer(same, query(CLASS)) == _nothing()


def test_numbers_of_images_are_rounded_up(site: Site) -> None:
    reply = rounds.probe.answer(with_policy(site, min_count=4, exact_counts=False), query(CLASS))
    images = len(site.select(CLASS).forget)
    assert reply.images == -(-images // 4) * 4


def _nothing() -> ProbeReply:
    return ProbeReply(metrics={}, images=0)
