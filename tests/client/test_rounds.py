"""What a site does in each kind of round, on a tiny hospital of DICOM files."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from excise.client import preparation, rounds
from excise.client.audit import loss_profile
from excise.client.config import ComputeSettings
from excise.client.permission import Forbidden
from excise.client.policy import LimitSettings
from excise.client.rounds.losses import evenly_spread
from excise.client.rounds.model import SiteFailure
from excise.client.site import Site, open_site
from excise.client.unlearning.inference import predict
from excise.client.unlearning.labels import boundary_losses
from excise.client.unlearning.local import ForgetSet, LocalResult, unlearn_locally
from excise.client.unlearning.negation import step_away
from excise.common import weights as w
from excise.common.errors import DataError, MessageError, SiteError
from excise.common.messages import AuditQuery, FitInstruction, ReferenceQuery, StatusQuery, UnlearnInstruction
from excise.common.models import ModelSpec, build_model
from excise.common.request import ForgetRequest, RequestKind, joined
from excise.common.settings import (
    LocalSettings,
    SearchSettings,
    TargetSettings,
    TrainingSettings,
    UnlearningSettings,
)
from tests.dicoms import CLASSES, write_hospital

SPEC = ModelSpec(size=16, width=0.05)
REQUEST = ForgetRequest(id="mr7", kind=RequestKind.DEVICE, where="StationName = MR7", reason="coil fault")
SETTINGS = UnlearningSettings(
    search=SearchSettings(max_steps=4),
    target=TargetSettings(band=0.0),
    local=LocalSettings(rounds=2, steps=2, forget_batch=8, retain_batch=8, distil=0.7),
)


@pytest.fixture(scope="module")
def site_toml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hospital(tmp_path_factory.mktemp("hospital"))


@pytest.fixture
def site(site_toml: Path, tmp_path: Path) -> Site:
    """The hospital, with a state folder of this test's own."""
    opened = open_site(site_toml)
    return replace(opened, config=opened.config.model_copy(update={"state": tmp_path / "state"}))


def _weights(spec: ModelSpec = SPEC, seed: int = 0) -> w.Weights:
    return w.snapshot(build_model(spec, seed))


def _with_min_count(site: Site, min_count: int) -> Site:
    policy = site.config.policy.model_copy(update={"min_count": min_count})
    return replace(site, config=site.config.model_copy(update={"policy": policy}))


def _unlearn(
    *,
    round_index: int = 0,
    settings: UnlearningSettings = SETTINGS,
    model: ModelSpec = SPEC,
    weights: w.Weights | None = None,
    a_k: float = 0.5,
    request: ForgetRequest = REQUEST,
) -> UnlearnInstruction:
    return UnlearnInstruction(
        model=model,
        weights=_weights() if weights is None else weights,
        teacher_digest=w.digest(_weights()),
        request=request,
        settings=settings,
        a_k=a_k,
        reference={"all": (0.1, 0.5, 0.9)},
        trained={},
        round_index=round_index,
        seed=7 + round_index,
    )


def _bring_teacher(site: Site) -> None:
    rounds.reference.answer(site, ReferenceQuery(model=SPEC, teacher=_weights(), request=REQUEST, points=8))


# --- status --------------------------------------------------------------------------------------------------------------


def test_status_counts_every_image_once(site: Site) -> None:
    whole = rounds.status.answer(site, StatusQuery())
    assert (whole.site, whole.classes, whole.skipped) == ("site-1", CLASSES, 0)
    assert whole.train + whole.reference + whole.held_out == 40
    assert whole.forget == whole.excluded == 0
    asked = rounds.status.answer(site, StatusQuery(request=REQUEST))
    assert asked.train == whole.train
    assert asked.forget + asked.excluded == 14  # every third of forty
    assert asked.forget + asked.retain == asked.train
    assert asked.train + asked.excluded + asked.reference + asked.held_out == 40
    assert min(asked.forget, asked.retain, asked.reference, asked.held_out, asked.excluded) > 0


# --- reference -----------------------------------------------------------------------------------------------------------


def test_reference_keeps_the_teacher_and_tells_its_losses(site: Site) -> None:
    teacher = _weights()
    reply = rounds.reference.answer(site, ReferenceQuery(model=SPEC, teacher=teacher, request=REQUEST, points=4))
    kept = site.config.state / "teachers" / f"{w.digest(teacher)}.safetensors"
    assert w.digest(w.load_weights(kept)) == w.digest(teacher)
    sets = site.select(REQUEST)
    index = torch.cat([sets.reference, sets.held_out])
    model = build_model(SPEC)
    assert set(reply.profiles) == set(reply.patients) == {"unseen/all", "unseen/0", "unseen/1"}
    for key, of in (("all", index), *((str(c), index[site.y_N[index] == c]) for c in range(2))):
        wanted = loss_profile(boundary_losses(predict(model, site.x[of]), site.y_N[of]).double().numpy(), 4, 1)
        assert reply.profiles[f"unseen/{key}"] == pytest.approx(wanted, rel=1e-5)
        assert reply.patients[f"unseen/{key}"] == len({site.scan.rows[i].patient for i in of})
    assert reply.passes == len(index)


def test_classes_are_told_apart_where_each_has_enough_images(site: Site) -> None:
    sets = site.select(REQUEST)
    counts = {part: site.y_N[getattr(sets, part)].bincount(minlength=2).tolist() for part in ("reference", "held_out")}
    query = ReferenceQuery(model=SPEC, teacher=_weights(), request=REQUEST, points=4)
    for min_count in range(1, 9):
        told = rounds.reference.answer(_with_min_count(site, min_count), query)
        # Audits tell of the two sets apart, so each must be told, or told by class, by itself.
        large = {part: n for part, n in counts.items() if sum(n) >= min_count}
        by_class = [part for part, n in large.items() if min(n) >= min_count]
        assert told.passes == sum(sum(n) for n in large.values())
        assert len(told.profiles) == (3 if by_class else bool(large))
        if by_class:
            rows = torch.cat([getattr(sets, part) for part in by_class])
            assert told.patients["unseen/0"] == len({site.scan.rows[i].patient for i in rows[site.y_N[rows] == 0].tolist()})


@pytest.mark.parametrize("trained", [False, True])
def test_reference_says_nothing_of_few_images(site: Site, trained: bool) -> None:
    query = ReferenceQuery(model=SPEC, teacher=_weights(), request=REQUEST, points=4, trained=trained)
    reply = rounds.reference.answer(_with_min_count(site, 30), query)
    assert (reply.profiles, reply.patients, reply.passes) == ({}, {}, 0)
    assert list((site.config.state / "teachers").iterdir())  # the teacher is needed all the same


# --- fit -----------------------------------------------------------------------------------------------------------------


def _fit(without: ForgetRequest | None = None, weights: w.Weights | None = None, model: ModelSpec = SPEC) -> FitInstruction:
    training = TrainingSettings(rounds=4, batch_size=8, learning_rate=0.05)
    weights = _weights(model) if weights is None else weights
    return FitInstruction(model=model, weights=weights, training=training, round_index=0, seed=3, without=without)


def test_fit_trains_on_what_remains(site: Site) -> None:
    status = rounds.status.answer(site, StatusQuery(request=REQUEST))
    update, without = rounds.fit.answer(site, _fit()), rounds.fit.answer(site, _fit(REQUEST))
    assert update.passes == status.train
    assert without.passes == status.retain
    assert update.weights_in == w.digest(_weights())
    assert set(update.delta) == set(w.floating(_weights()))
    assert w.norm(update.delta) > 0
    assert math.isfinite(update.metrics["loss"])
    assert w.digest(rounds.fit.answer(site, _fit()).delta) == w.digest(update.delta)


def test_fit_with_nothing_left_is_bad_data(site: Site) -> None:
    everything = REQUEST.model_copy(update={"where": 'PatientID matches "*"'})
    with pytest.raises(DataError, match="no training image is left"):
        rounds.fit.answer(site, _fit(everything))


def test_diverged_training_is_told_as_such(site: Site) -> None:
    weights = {
        name: tensor * math.nan if tensor.is_floating_point() and "weight" in name else tensor
        for name, tensor in _weights().items()
    }
    with pytest.raises(SiteFailure) as caught:
        rounds.fit.answer(site, _fit(weights=weights))
    assert caught.value.code is SiteError.DIVERGED


def test_unlearning_that_diverges_is_told_as_such(site: Site) -> None:
    teacher = {name: tensor * math.nan if name.startswith("head") else tensor for name, tensor in _weights().items()}
    _bring_teacher(site)
    with pytest.raises(SiteFailure) as caught:
        rounds.unlearn.answer(site, _unlearn(weights=teacher))
    assert caught.value.code is SiteError.DIVERGED


# --- unlearn -------------------------------------------------------------------------------------------------------------


def test_unlearn_needs_the_teacher(site: Site) -> None:
    with pytest.raises(SiteFailure) as caught:
        rounds.unlearn.answer(site, _unlearn())
    assert caught.value.code is SiteError.TEACHER_MISSING


def test_unlearn_searches_once(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    _bring_teacher(site)
    first = rounds.unlearn.answer(site, _unlearn())
    assert first.ascent
    assert first.metrics.keys() == {"forget_loss", "retain_loss", "gradient_norm", "step_sum", "crossing_rate", "path_length"}
    assert 0 <= first.metrics["crossing_rate"] <= 1
    assert set(first.delta) == set(w.floating(_weights()))
    assert w.norm(first.delta) > 0

    def search_again(*_: object) -> None:
        raise AssertionError("searched twice")

    monkeypatch.setattr(preparation, "boundary_search", search_again)
    second = rounds.unlearn.answer(site, _unlearn(round_index=1))
    steps = SETTINGS.local.steps * (SETTINGS.local.forget_batch + SETTINGS.local.retain_batch)
    assert second.passes == steps < first.passes
    repeated = rounds.unlearn.answer(site, _unlearn())
    assert w.digest(repeated.delta) == w.digest(first.delta)  # what came from the disk is what was computed


def test_the_overshoot_is_corrected_by_the_model_that_came(site: Site) -> None:
    _bring_teacher(site)
    within = SETTINGS.model_copy(update={"target": TargetSettings(band=0.02)})
    assert (
        "overshoot" not in rounds.unlearn.answer(site, _unlearn(settings=within)).metrics
    )  # the teacher itself needs the whole
    assert "overshoot" not in rounds.unlearn.answer(site, _unlearn(round_index=1)).metrics  # nor where no band is set
    guessing = {name: tensor * 0 if name.startswith("head") else tensor for name, tensor in _weights().items()}
    update = rounds.unlearn.answer(site, _unlearn(settings=within, round_index=1, weights=guessing))
    forget = len(site.select(REQUEST).forget)
    assert update.metrics["overshoot"] == pytest.approx(1 / within.target.overshoot)  # 0.5 is far below exp(−0.5)
    assert update.passes == within.local.steps * (within.local.forget_batch + within.local.retain_batch) + forget
    few = rounds.unlearn.answer(_with_min_count(site, forget + 1), _unlearn(settings=within, round_index=1, weights=guessing))
    assert "overshoot" not in few.metrics


@pytest.mark.parametrize(
    "changed",
    [
        {"settings": SETTINGS.model_copy(update={"search": SearchSettings(max_steps=3)})},
        {"settings": SETTINGS.model_copy(update={"target": TargetSettings(overshoot=2.5)})},  # the path must go further
        {"request": REQUEST.model_copy(update={"id": "mr7-again"})},
        {"a_k": 0.0},
    ],
)
def test_another_question_is_prepared_anew(site: Site, changed: dict[str, object]) -> None:
    _bring_teacher(site)
    rounds.unlearn.answer(site, _unlearn())
    rounds.unlearn.answer(site, _unlearn(**changed))  # type: ignore[arg-type]
    assert len(list((site.config.state / "preparations").iterdir())) == 2


def test_other_targets_off_the_same_paths_share_the_search(site: Site) -> None:
    _bring_teacher(site)
    rounds.unlearn.answer(site, _unlearn())
    other = SETTINGS.model_copy(update={"psi": 0.6, "target": TargetSettings(band=0.5, tau=2.0)})
    steps = SETTINGS.local.steps * (SETTINGS.local.forget_batch + SETTINGS.local.retain_batch)
    assert rounds.unlearn.answer(site, _unlearn(settings=other)).passes == steps


@pytest.mark.parametrize(("min_count", "away"), [(8, True), (9, False)])
def test_the_first_round_steps_away_from_enough_forget_images(site: Site, min_count: int, away: bool) -> None:
    site = _with_min_count(site, min_count)
    _bring_teacher(site)
    forget = site.select(REQUEST).forget
    assert len(forget) == 8
    settings = SETTINGS.model_copy(update={"negation": 4.0})
    update = rounds.unlearn.answer(site, _unlearn(settings=settings, a_k=0.6))
    student = build_model(SPEC, 0)
    x, y_N = site.x[forget], site.y_N[forget]
    step_away(student, x, y_N, 4.0 * 0.6 / settings.psi, settings.local.clip_norm, torch.Generator().manual_seed(7))
    expected = w.difference(w.snapshot(student), _weights())
    same = all(torch.equal(tensor, expected[name]) for name, tensor in update.delta.items())
    assert same is away
    assert ("forget_loss" in update.metrics) is False  # of a step away there is none; of joint steps it stays, over so few
    assert rounds.unlearn.answer(site, _unlearn(settings=settings, round_index=1)).passes == 2 * (8 + 8)


@pytest.fixture
def trained_on(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The targets of every round that the site trains in."""
    targets = []

    def watched(student: nn.Module, forget: ForgetSet, *rest: Any) -> LocalResult:
        targets.append(forget.targets_NC)
        return unlearn_locally(student, forget, *rest)

    monkeypatch.setattr(rounds.unlearn, "unlearn_locally", watched)
    return targets


def test_the_corrected_overshoot_is_that_of_the_targets(site: Site, trained_on: list[Tensor]) -> None:
    _bring_teacher(site)
    guessing = {name: tensor * 0 if name.startswith("head") else tensor for name, tensor in _weights().items()}
    y_N = site.y_N[site.select(REQUEST).forget]
    for band in (0.0, 0.001):
        settings = SETTINGS.model_copy(update={"target": TargetSettings(band=band)})
        rounds.unlearn.answer(site, _unlearn(settings=settings, round_index=1, weights=guessing))
    whole, corrected = (-targets_NC.gather(1, y_N[:, None]).log().sort(dim=0).values for targets_NC in trained_on)
    torch.testing.assert_close(corrected, whole / 1.8**2, atol=1e-4, rtol=1e-3)  # 1/1.8 of the reference, in place of 1.8


def test_targets_follow_the_losses_of_their_class(site: Site, trained_on: list[Tensor]) -> None:
    _bring_teacher(site)
    y_N = site.y_N[site.select(REQUEST).forget]
    rounds.unlearn.answer(site, replace(_unlearn(), reference={"all": (0.1, 0.1), "1": (0.4, 0.4)}))
    losses_N = -trained_on[0].gather(1, y_N[:, None])[:, 0].log()
    torch.testing.assert_close(losses_N, 1.8 * torch.where(y_N == 1, 0.4, 0.1))
    with pytest.raises(MessageError, match="without those of 'all' classes"):
        rounds.unlearn.answer(site, replace(_unlearn(), reference={"1": (0.4, 0.4)}))


def test_retain_images_tell_what_to_expect_of_the_forget_images(site: Site, trained_on: list[Tensor]) -> None:
    plain = rounds.reference.answer(site, ReferenceQuery(model=SPEC, teacher=_weights(), request=REQUEST, points=4))
    assert not any(key.startswith("trained") for key in plain.profiles)
    asked = ReferenceQuery(model=SPEC, teacher=_weights(), request=REQUEST, points=4, trained=True)
    told = rounds.reference.answer(site, asked)
    assert told.profiles.items() > plain.profiles.items()
    assert len(told.profiles["trained/all"]) == 4
    assert told.passes > plain.passes
    few = rounds.reference.answer(_with_min_count(site, len(site.select(REQUEST).retain) + 1), asked)
    assert few.profiles == {}
    y_N = site.y_N[site.select(REQUEST).forget]
    harder, easier = (0.001, 0.002, 0.003), (7.0, 8.0, 9.0)  # than all retain images, than none
    for trained in (harder, easier):
        rounds.unlearn.answer(site, replace(_unlearn(), trained={"all": trained}))
    losses = [-targets_NC.gather(1, y_N[:, None]).log() for targets_NC in trained_on]
    torch.testing.assert_close(losses[0], torch.full_like(losses[0], 1.8 * 0.9))  # the largest unseen loss, overshot
    torch.testing.assert_close(losses[1], torch.full_like(losses[1], 1.8 * 0.1))


def test_a_stricter_site_does_not_tell_what_a_laxer_one_kept(site: Site) -> None:
    _bring_teacher(site)
    strict = _with_min_count(site, len(site.select(REQUEST).forget))
    crossing = SETTINGS.model_copy(update={"search": SearchSettings(max_steps=4, stop="crossed")})
    assert rounds.unlearn.answer(site, _unlearn(settings=crossing)).ascent
    assert rounds.unlearn.answer(strict, _unlearn(settings=crossing)).ascent == ()  # of fewer than all: some crossed at once


def test_a_corrected_label_is_prepared_anew(site: Site) -> None:
    _bring_teacher(site)
    rounds.unlearn.answer(site, _unlearn())
    changed = site.select(REQUEST).forget[0]
    rows = list(site.scan.rows)
    rows[changed] = replace(rows[changed], label=1 - rows[changed].label)
    rounds.unlearn.answer(replace(site, scan=replace(site.scan, rows=rows)), _unlearn())
    assert len(list((site.config.state / "preparations").iterdir())) == 2


def test_a_site_that_computes_in_bfloat16_sends_float32(site: Site) -> None:
    cast = replace(site, config=site.config.model_copy(update={"compute": ComputeSettings(precision="bfloat16")}))
    _bring_teacher(cast)
    plain, lower = rounds.unlearn.answer(site, _unlearn()), rounds.unlearn.answer(cast, _unlearn(a_k=0.6))
    assert {x.dtype for x in lower.delta.values()} == {torch.float32}
    assert lower.delta.keys() == plain.delta.keys()
    fitted, rounded = rounds.fit.answer(site, _fit()), rounds.fit.answer(cast, _fit())
    assert w.norm(w.difference(fitted.delta, rounded.delta)) < 0.6 * w.norm(fitted.delta)  # early steps are all noise
    assert w.digest(fitted.delta) != w.digest(rounded.delta)


def test_a_sample_of_a_class_is_searched_and_is_the_same_in_every_round(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    _bring_teacher(site)
    small, few = _with_min_count(site, 3), _sampling(3)
    whole_class = ForgetRequest(id="all", kind=RequestKind.CLASS, where=f"class = {CLASSES[0]}", reason="test")
    used = []

    def watch(student: object, forget: ForgetSet, *rest: object) -> LocalResult:
        used.append(forget)
        return unlearn_locally(student, forget, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(rounds.unlearn, "unlearn_locally", watch)
    first = rounds.unlearn.answer(small, _unlearn(settings=few, request=whole_class))
    rounds.unlearn.answer(small, _unlearn(settings=few, request=whole_class, round_index=1))
    assert torch.equal(used[0].x, used[1].x)
    assert torch.equal(used[0].targets_NC, used[1].targets_NC)
    rows = site.select(whole_class).forget
    assert len(rows) >= 6
    assert [sum(bool(torch.equal(x, site.x[row])) for row in rows) for x in used[0].x] == [1, 1, 1]
    assert {"forget_loss", "crossing_rate"} <= first.metrics.keys()
    # Beside a number over all images, one over all but two would tell those of the two.
    rounds.unlearn.answer(small, _unlearn(settings=_sampling(len(rows) - 2), request=whole_class))
    assert len(used[-1].x) == len(rows)


def _sampling(most: int) -> UnlearningSettings:
    return SETTINGS.model_copy(update={"target": TargetSettings(kind="nearest"), "forget_sample": most})


def test_a_sample_cannot_stand_for_what_is_to_be_forgotten_itself(site: Site) -> None:
    _bring_teacher(site)
    with pytest.raises(MessageError, match="not of whole classes"):
        rounds.unlearn.answer(site, _unlearn(settings=_sampling(3)))


@pytest.mark.parametrize(("a_k", "absent"), [(0.0, "forget_loss"), (1.0, "retain_loss")])
def test_a_term_without_weight_is_not_measured(site: Site, a_k: float, absent: str) -> None:
    _bring_teacher(site)
    update = rounds.unlearn.answer(site, _unlearn(a_k=a_k))
    assert absent not in update.metrics
    assert bool(update.ascent) == (a_k > 0)


@pytest.mark.parametrize(("where", "moves"), [("StationName = MR7 and class = ill", False), ("StationName = MR7", True)])
def test_forget_images_of_one_class_leave_the_statistics_alone(site: Site, where: str, moves: bool) -> None:
    _bring_teacher(site)
    settings = SETTINGS.model_copy(update={"local": LocalSettings(rounds=2, steps=2, retain_batch=2)})
    request = REQUEST.model_copy(update={"where": where})
    update = rounds.unlearn.answer(site, _unlearn(request=request, settings=settings))
    statistics = [delta for name, delta in update.delta.items() if "running" in name]
    assert any(bool((delta != 0).any()) for delta in statistics) == moves


def test_unlearn_says_nothing_of_few_images(site: Site) -> None:
    _bring_teacher(site)
    few = len(site.select(REQUEST).forget) + 1
    update = rounds.unlearn.answer(_with_min_count(site, few), _unlearn())
    assert update.metrics.keys() == {"retain_loss", "gradient_norm", "step_sum"}
    assert update.ascent == ()


def _local(**settings: Any) -> UnlearningSettings:
    return SETTINGS.model_copy(update={"local": SETTINGS.local.model_copy(update=settings)})


def test_nothing_is_learnt_from_few_images(site: Site) -> None:
    _bring_teacher(site)
    settings = _local(steps=1, forget_batch=4, retain_batch=9)
    rounds.unlearn.answer(_with_min_count(site, 9), _unlearn(settings=settings))
    with pytest.raises(Forbidden, match=r"from 4 images of weight 0.5 and 9 images of weight 0.5") as refused:
        rounds.unlearn.answer(_with_min_count(site, 10), _unlearn(settings=settings))
    assert refused.value.code == "forbidden"
    with pytest.raises(Forbidden, match="from 4 images of weight 1; "):
        rounds.unlearn.answer(_with_min_count(site, 9), _unlearn(settings=settings, a_k=1.0))
    retain = len(site.select(REQUEST).retain)
    with pytest.raises(Forbidden, match=f"from {retain} images"):
        rounds.fit.answer(_with_min_count(site, retain + 1), _fit(REQUEST))


@pytest.mark.parametrize(("few", "told"), [("forget", "retain_loss"), ("retain", "forget_loss")])
def test_no_loss_of_few_images_is_told(site: Site, few: str, told: str) -> None:
    _bring_teacher(site)
    settings = _local(steps=1, **{f"{name}_batch": 1 if name == few else 12 for name in ("forget", "retain")})
    update = rounds.unlearn.answer(_with_min_count(site, 8), _unlearn(settings=settings))
    assert update.metrics.keys() & {"retain_loss", "forget_loss"} == {told}


@pytest.mark.parametrize("epochs", [None, 3])
def test_more_steps_than_the_site_allows_are_not_begun(site: Site, epochs: int | None) -> None:
    _bring_teacher(site)
    local = LocalSettings(rounds=1, steps=6, epochs=epochs, forget_batch=4, schedule="constant" if epochs else "linear")
    instruction = _unlearn(settings=SETTINGS.model_copy(update={"local": local}))
    steps = 6 if epochs is None else 3 * math.ceil(len(site.select(REQUEST).forget) / 4)
    rounds.unlearn.answer(_with_steps(site, steps), instruction)
    with pytest.raises(Forbidden, match=f"{steps} gradient steps in a round"):
        rounds.unlearn.answer(_with_steps(site, steps - 1), instruction)
    with pytest.raises(Forbidden, match="gradient steps in a round"):
        rounds.fit.answer(_with_steps(site, 1), _fit())


def test_endless_epochs_are_refused_before_anything_is_made_for_them(site: Site) -> None:
    _bring_teacher(site)
    local = LocalSettings(rounds=1, epochs=10**9, forget_batch=1, schedule="constant")
    with pytest.raises(Forbidden, match="gradient steps in a round"):
        rounds.unlearn.answer(site, _unlearn(settings=SETTINGS.model_copy(update={"local": local})))


def _with_steps(site: Site, steps: int) -> Site:
    return replace(site, config=site.config.model_copy(update={"limits": LimitSettings(steps=steps)}))


# --- audit ---------------------------------------------------------------------------------------------------------------


def _audit(model: ModelSpec = SPEC) -> AuditQuery:
    return AuditQuery(model=model, candidates={"a": _weights(model)}, request=REQUEST)


def test_audit_tells_how_many_independent_images_the_judged_sets_are_worth(site: Site) -> None:
    sets = site.select(REQUEST)
    told = rounds.audit.answer(site, _audit()).of("a").metrics
    # One image a patient: each is worth itself.
    assert {key: value for key, value in told.items() if key.endswith("_effective")} == {
        "forget_effective": pytest.approx(len(sets.forget)),
        "held_out_effective": pytest.approx(len(sets.held_out)),
    }
    whole = replace(site, scan=replace(site.scan, rows=[replace(row, patient="one") for row in site.scan.rows]))
    for few in (_with_min_count(site, len(sets.forget) + 1), whole):
        assert "forget_effective" not in rounds.audit.answer(few, _audit()).of("a").metrics
    brief = rounds.audit.answer(site, replace(_audit(), brief=True)).of("a").metrics
    assert not [key for key in brief if key.endswith("_effective")]


def test_what_images_are_worth_is_rounded_down_and_their_number_up(site: Site) -> None:
    policy = site.config.policy.model_copy(update={"min_count": 3, "exact_counts": False})
    rounded = replace(site, config=site.config.model_copy(update={"policy": policy}))
    told, images = rounds.audit.answer(rounded, _audit()).of("a").metrics, len(site.select(REQUEST).forget)
    assert (told["forget_effective"], told["forget_images"]) == (images // 3 * 3, -(-images // 3) * 3)


def test_audit_scores_every_set(site: Site) -> None:
    reply, sets = rounds.audit.answer(site, _audit()).of("a"), site.select(REQUEST)
    for name in ("forget", "retain", "reference", "held_out"):
        index = getattr(sets, name)
        assert reply.metrics[f"{name}_images"] == len(index)
        assert 0 <= reply.metrics[f"{name}_accuracy"] <= 1
    assert {key.split("/")[0] for key in reply.profiles} == {"forget", "reference", "held_out"}
    for key, profile in reply.profiles.items():
        name, c = key.split("/")
        images = int((site.y_N[getattr(sets, name)] == int(c)).sum())
        assert len(profile) == images <= rounds.audit.PROFILE_POINTS  # min_count is 1 at this site
        assert list(profile) == sorted(profile)


def test_audit_leaves_out_small_sets(site: Site) -> None:
    sets = site.select(REQUEST)
    assert len(sets.held_out) < len(sets.retain)
    min_count = max(len(sets.held_out), len(sets.forget)) + 1
    reply = rounds.audit.answer(_with_min_count(site, min_count), _audit()).of("a")
    assert {key.split("_")[0] for key in reply.metrics} == {"retain"}
    assert reply.profiles == {}
    nothing = rounds.audit.answer(_with_min_count(site, 41), _audit())
    assert (nothing.metrics, nothing.profiles) == ({}, {})


def test_audit_keeps_candidates_apart(site: Site) -> None:
    deployed, zero = _weights(), {name: torch.zeros_like(x) for name, x in _weights().items()}
    both = rounds.audit.answer(site, replace(_audit(), candidates={"deployed": deployed, "zero": zero}))
    for name, weights in (("deployed", deployed), ("zero", zero)):
        alone = rounds.audit.answer(site, replace(_audit(), candidates={"a": weights}))
        assert both.of(name) == alone.of("a")
    assert both.of("deployed") != both.of("zero")


@pytest.mark.parametrize(("min_count", "few"), [(1, True), (3, True), (39, False)])
def test_a_brief_audit_and_a_full_one_differ_by_enough_images_or_by_none(site: Site, min_count: int, few: bool) -> None:
    site, sets = _with_min_count(site, min_count), site.select(REQUEST)
    full, brief = (rounds.audit.answer(site, replace(_audit(), brief=brief)) for brief in (False, True))
    kept = brief.passes - len(sets.forget) - len(sets.reference)
    assert (kept < len(sets.retain)) is few
    assert kept == (len(sets.reference) if few else len(sets.retain))
    assert not any("held_out" in key for key in (*brief.metrics, *brief.profiles))
    for c in range(SPEC.classes):
        whole, some = (reply.of("a").metrics.get(f"retain_images_class_{c}", 0) for reply in (full, brief))
        assert whole - some == 0 or whole - some >= min_count or min_count == 39


def test_no_number_that_leaves_tells_of_few_images(site: Site) -> None:
    policy = site.config.policy.model_copy(update={"min_count": 4, "exact_counts": False})
    rounded = replace(site, config=site.config.model_copy(update={"policy": policy}))
    _bring_teacher(rounded)
    status = rounds.status.answer(rounded, StatusQuery(request=REQUEST))
    reference = rounds.reference.answer(
        rounded, ReferenceQuery(model=SPEC, teacher=_weights(), request=REQUEST, points=4, trained=True)
    )
    audit = rounds.audit.answer(rounded, _audit())
    counts = [value for key, value in audit.metrics.items() if "images" in key or key.endswith("_scored")]
    passes = [reply.passes for reply in (rounds.unlearn.answer(rounded, _unlearn()), rounds.fit.answer(rounded, _fit()))]
    numbers = [status.train, status.forget, status.held_out, audit.passes, reference.passes, *reference.patients.values()]
    assert counts
    assert all(n % 4 == 0 for n in (*numbers, *counts, *passes))


def test_no_reference_no_judging(site: Site) -> None:
    assert len(evenly_spread(site.select(REQUEST).retain, 0, site.y_N, 1)) == 0


def _parts(*wheres: str) -> AuditQuery:
    parts = [REQUEST.model_copy(update={"id": f"p{i}", "where": where}) for i, where in enumerate(wheres)]
    return replace(_audit(), parts=tuple(parts), request=joined(parts))


def test_each_part_of_a_joined_request_is_scored(site: Site) -> None:
    query = _parts(*(f"StationName = MR7 and class = {name}" for name in CLASSES))
    told = rounds.audit.answer(site, query).of("a")
    images = [len(site.select(part).forget) for part in query.parts]
    assert min(images) > 0
    assert [told.metrics[f"part{i}_images"] for i in range(2)] == images
    weighed = sum(n * told.metrics[f"part{i}_accuracy"] for i, n in enumerate(images)) / sum(images)
    assert weighed == pytest.approx(told.metrics["forget_accuracy"])
    assert {"part0", "part1"} < {key.split("/")[0] for key in told.profiles}


def test_parts_are_not_told_when_any_combination_is_small(site: Site) -> None:
    small, large = 'PatientID matches "*1"', 'PatientID matches "*"'
    images = [len(site.select(part).forget) for part in _parts(small, large).parts]
    assert 0 < images[0] < images[1]
    for min_count, said in ((images[0], True), (images[0] + 1, False)):
        told = rounds.audit.answer(_with_min_count(site, min_count), _parts(small, large)).of("a").metrics
        assert any(key.startswith("part") for key in told) is said
    beyond = images[1] - images[0] + 1  # the large one without the small one
    told = rounds.audit.answer(_with_min_count(site, min(beyond, 40)), _parts(small, large)).of("a").metrics
    assert not any(key.startswith("part") for key in told)


# --- what does not fit ---------------------------------------------------------------------------------------------------

OTHERS = [SPEC.model_copy(update=update) for update in ({"classes": 3}, {"channels": 3}, {"size": 32})]


@pytest.mark.parametrize("spec", OTHERS)
def test_a_model_for_other_data_is_bad_data(site: Site, spec: ModelSpec) -> None:
    teacher = _weights(spec)
    for call in (
        lambda: rounds.reference.answer(site, ReferenceQuery(model=spec, teacher=teacher, request=REQUEST, points=4)),
        lambda: rounds.fit.answer(site, _fit(model=spec)),
        lambda: rounds.unlearn.answer(site, _unlearn(model=spec)),
        lambda: rounds.audit.answer(site, _audit(spec)),
    ):
        with pytest.raises(DataError, match="the model wants"):
            call()
    assert not (site.config.state / "teachers").exists()


def test_a_model_for_volumes_is_bad_data(site: Site) -> None:
    volumes = SPEC.model_copy(update={"name": "densenet121", "dims": 3})
    with pytest.raises(
        DataError, match=r"the model wants \(2, False, 1, 16, 3\) classes, multi_label, channels, pixels, dimensions; we have"
    ):
        rounds.audit.answer(site, replace(_audit(), model=volumes))


def test_weights_that_do_not_fit_are_a_bad_message(site: Site) -> None:
    _bring_teacher(site)
    wide = _weights(SPEC.model_copy(update={"width": 0.1}))
    lacking = dict(list(_weights().items())[1:])
    for bad in (wide, lacking, {}):
        for call in (
            lambda bad=bad: rounds.fit.answer(site, _fit(weights=bad)),
            lambda bad=bad: rounds.unlearn.answer(site, _unlearn(weights=bad)),
            lambda bad=bad: rounds.audit.answer(site, replace(_audit(), candidates={"a": bad})),
        ):
            with pytest.raises(MessageError, match="do not fit the model 'allcnn'"):
                call()


def test_images_are_as_the_files_say(site: Site) -> None:
    assert site.x.shape == (40, 1, 16, 16)
    assert site.x[:].dtype == torch.float32
    bright = site.x[:].mean((1, 2, 3)).numpy()
    assert np.all((bright > 0.4) == (site.y_N.numpy() == 1))


def test_a_site_with_nothing_to_prepare_goes_through_every_round(site: Site) -> None:
    _bring_teacher(site)
    settings = SETTINGS.model_copy(update={"local": SETTINGS.local.model_copy(update={"distil": 0.0})})
    for round_index in (0, 1):  # the second round must not look for a file that holds nothing
        update = rounds.unlearn.answer(site, _unlearn(round_index=round_index, settings=settings, a_k=0.0))
        assert update.passes > 0
        assert update.ascent == ()
