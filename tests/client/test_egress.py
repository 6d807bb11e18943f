"""The gate: honest replies pass, and whatever is slipped into one keeps the whole of it at the site."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from excise.client.egress import Withheld, permitted, release
from excise.client.policy import Metric, PolicySettings
from excise.common import messages as m
from excise.common.errors import SiteError
from excise.common.models import ModelSpec
from excise.common.request import ForgetRequest, RequestKind
from excise.common.settings import TrainingSettings

SPEC = ModelSpec(name="allcnn", classes=2, size=16, width=0.05)
WEIGHTS = {"layer.weight": torch.zeros(2, 3), "layer.count": torch.zeros((), dtype=torch.int64)}
REQUEST = ForgetRequest(id="d", kind=RequestKind.DEVICE, where="StationName = MR7", reason="r")
PUBLIC = frozenset({"site-1", "clear", "no tumour"})
CANARY = "DOE^JANE"

STATUS = m.SiteStatus(
    site="site-1",
    train=30,
    forget=10,
    excluded=0,
    reference=10,
    held_out=10,
    skipped=0,
    forgotten=0,
    classes=("clear", "no tumour"),
    parts=(10.0,),
)
FIT = m.FitInstruction(model=SPEC, weights=WEIGHTS, training=TrainingSettings(), round_index=0, seed=0)
UPDATE = m.SiteUpdate(
    weights_in="0" * 64,
    delta={"layer.weight": torch.ones(2, 3)},
    passes=10,
    seconds=0.5,
    metrics={"loss": 0.1, "crossing_rate": 0.5},
    ascent=(0.1, 0.2),
)
AUDIT = m.AuditQuery(model=SPEC, candidates={"deployed": WEIGHTS, "a.b": WEIGHTS}, request=REQUEST)
AUDITED = m.AuditReply(
    metrics={"deployed/held_out_accuracy": 0.5, "a.b/part0_accuracy_class_1": 0.5},
    profiles={"deployed/forget/1": (0.1, 0.2)},
    passes=4,
)
REFERENCE = m.ReferenceReply(
    profiles={"unseen/all": (0.1,), "trained/1": (0.2,)}, patients={"unseen/all": 9.0, "trained/1": 9.0}, passes=1
)
ASKED_REFERENCE = m.ReferenceQuery(model=SPEC, teacher=WEIGHTS, request=REQUEST, points=4)
PROBE = m.ProbeQuery(model=SPEC, candidates={"deployed": WEIGHTS}, request=REQUEST)
PROBED = m.ProbeReply(metrics={"deployed/probe_auc": 0.6}, images=10)
MOMENTS = m.MomentsQuery(model=SPEC, weights=WEIGHTS, request=REQUEST, points=1, dims=2)
SPREAD = m.MomentsReply(images=10, mean=(0.5, 0.1), covariance=(1.0, 0.2, 1.0), passes=10)
PLACES = m.EmbeddingQuery(
    model=SPEC,
    candidates={"before": WEIGHTS, "after": WEIGHTS},
    request=REQUEST,
    points=1,
    mean=(0.0, 0.0),
    axes=(1.0, 0.0, 0.0, 1.0),
    unit=1.0,
)
PLACED = m.EmbeddingReply(
    before=(1.0, -2.0, 3.0, 4.0), after=(0.0, 0.0, 255.0, -255.0), groups=(0.0, 1.0), labels=(1.0, 0.0), passes=20
)
FAILURE = m.Failure(code=SiteError.BAD_DATA, incident="0123456789abcdef")


@pytest.mark.parametrize(
    ("reply", "question"),
    [
        (STATUS, m.StatusQuery()),
        (UPDATE, FIT),
        (AUDITED, AUDIT),
        (replace(AUDITED, metrics={"deployed/forget_effective": 20.0, "deployed/held_out_effective": 10.0}), AUDIT),
        (PROBED, PROBE),
        (REFERENCE, ASKED_REFERENCE),
        (SPREAD, MOMENTS),
        (replace(SPREAD, images=0, mean=(), covariance=()), MOMENTS),
        (PLACED, PLACES),
        (FAILURE, None),
        (FAILURE, FIT),
    ],
    ids=[
        "status",
        "update",
        "audit",
        "effective",
        "probe",
        "reference",
        "moments",
        "no moments",
        "points",
        "failure to read",
        "failure",
    ],
)
def test_an_honest_reply_leaves_as_it_is(reply: m.Message, question: m.Message | None) -> None:
    assert release(reply, question, PUBLIC) == reply.to_record()


@pytest.mark.parametrize(
    ("reply", "question"),
    [
        (replace(STATUS, site=CANARY), m.StatusQuery()),
        (replace(STATUS, classes=("clear", CANARY)), m.StatusQuery()),
        (replace(STATUS, parts=(float("nan"),)), m.StatusQuery()),
        (replace(FAILURE, code=CANARY), None),
        (replace(FAILURE, incident=CANARY), None),
        (replace(UPDATE, weights_in=CANARY), FIT),
        (replace(UPDATE, metrics={CANARY: 1.0}), FIT),
        (replace(UPDATE, metrics={"loss": float("inf")}), FIT),
        (replace(UPDATE, ascent=(float("nan"),)), FIT),
        (replace(UPDATE, delta={CANARY: torch.ones(2, 3)}), FIT),
        (replace(UPDATE, delta={"layer.weight": torch.ones(2, 4)}), FIT),
        (replace(UPDATE, delta={"layer.weight": torch.ones(2, 3, dtype=torch.float64)}), FIT),
        (UPDATE, AUDIT),  # weights in answer to another question
        (UPDATE, None),
        (replace(AUDITED, metrics={"deployed/held_out_pixels": 1.0}), AUDIT),
        (replace(AUDITED, metrics={f"{CANARY}/held_out_accuracy": 1.0}), AUDIT),
        (replace(AUDITED, metrics={"aXb/held_out_accuracy": 1.0}), AUDIT),
        (replace(AUDITED, profiles={"deployed/forget/P1": (1.0,)}), AUDIT),
        (replace(REFERENCE, profiles={CANARY: (1.0,)}), ASKED_REFERENCE),
        (replace(REFERENCE, patients={CANARY: 1.0}), ASKED_REFERENCE),
        (replace(AUDITED, metrics={"deployed/retain_effective": 1.0}), AUDIT),
        (replace(AUDITED, metrics={"deployed/probe_auc": 1.0}), AUDIT),
        (replace(PROBED, metrics={f"{CANARY}/probe_auc": 0.6}), PROBE),
        (replace(PROBED, metrics={"deployed/held_out_accuracy": 0.6}), PROBE),
        (replace(PROBED, metrics={"deployed/probe_auc": float("nan")}), PROBE),
        (SPREAD, PLACES),
        (PLACED, MOMENTS),  # points in answer to another question
        (PLACED, None),
        (replace(SPREAD, mean=(0.5, 0.1, 0.2)), MOMENTS),
        (replace(SPREAD, covariance=(1.0, float("nan"), 1.0)), MOMENTS),
        (replace(PLACED, before=(1.0, -2.0, 3.0, 4.5)), PLACES),  # finer than the grid
        (replace(PLACED, after=(0.0, 0.0, 256.0, 0.0)), PLACES),
        (replace(PLACED, after=(0.0, 0.0, float("nan"), 0.0)), PLACES),
        (replace(PLACED, groups=(0.0, 0.0)), PLACES),  # more of a group than was asked for
        (replace(PLACED, groups=(0.0, 3.0)), PLACES),
        (replace(PLACED, labels=(0.0, 20250101.0)), PLACES),
        (replace(PLACED, labels=(0.0,)), PLACES),
    ],
    ids=range(37),
)
def test_what_is_not_on_the_list_stays(reply: m.Message, question: m.Message | None) -> None:
    with pytest.raises(Withheld) as withheld:
        release(reply, question, PUBLIC)
    assert CANARY not in str(withheld.value)
    assert withheld.value.code is SiteError.EGRESS


def _field(record: RecordDict) -> None:
    config = record["message"]
    assert isinstance(config, ConfigRecord)
    config["note"] = CANARY


def _kind(record: RecordDict) -> None:
    config = record["message"]
    assert isinstance(config, ConfigRecord)
    config["kind"] = CANARY


def _bytes(record: RecordDict) -> None:
    config = record["message"]
    assert isinstance(config, ConfigRecord)
    config["passes"] = CANARY.encode()


def _numbers(record: RecordDict) -> None:
    record["extra"] = MetricRecord({"loss": 1.0})


def _texts(record: RecordDict) -> None:
    record["extra"] = ConfigRecord({"name": CANARY})


def _arrays(record: RecordDict) -> None:
    record["extra"] = ArrayRecord({"x": Array(np.zeros(3))})


@pytest.mark.parametrize("slip", [_field, _kind, _bytes, _numbers, _texts, _arrays])
def test_whoever_writes_the_record_the_gate_sees_it(
    monkeypatch: pytest.MonkeyPatch, slip: Callable[[RecordDict], None]
) -> None:
    packed = UPDATE.to_record()
    slip(packed)
    monkeypatch.setattr(m.SiteUpdate, "to_record", lambda _: packed)
    with pytest.raises(Withheld):
        release(UPDATE, FIT, PUBLIC)


# ---- what the policy leaves out -------------------------------------------------------------------------------------------

EVERYTHING = PolicySettings(metrics=tuple(Metric), profiles=True)
NAMES = {
    Metric.ACCURACY: ["deployed/forget_accuracy", "deployed/part0_accuracy_class_1"],
    Metric.CALIBRATION: ["deployed/held_out_ece"],
    Metric.LOSS: ["deployed/retain_loss", "loss", "retain_loss", "forget_loss"],
    Metric.SEARCH: ["crossing_rate", "path_length"],
    Metric.PROGRESS: ["gradient_norm", "step_sum", "overshoot"],
    Metric.PROBE: ["deployed/probe_auc"],
}
COUNTS = ["deployed/forget_images", "deployed/forget_scored", "deployed/forget_images_class_1"]


@pytest.mark.parametrize("left_out", Metric)
def test_the_policy_leaves_out_a_kind_of_numbers_and_nothing_else(left_out: Metric) -> None:
    policy = PolicySettings(metrics=tuple(kind for kind in Metric if kind is not left_out))
    every = {name: 1.0 for names in (*NAMES.values(), COUNTS) for name in names}
    remain = every.keys() - set(NAMES[left_out])
    update, audited, probed = (replace(reply, metrics=every) for reply in (UPDATE, AUDITED, PROBED))
    for reply in (update, audited, probed):
        told = permitted(reply, policy)
        assert isinstance(told, m.SiteUpdate | m.AuditReply | m.ProbeReply)
        assert told.metrics.keys() == remain
        assert permitted(reply, EVERYTHING) == reply
    searched = permitted(update, policy)
    assert isinstance(searched, m.SiteUpdate)
    assert bool(searched.ascent) == (left_out is not Metric.SEARCH)


def test_without_a_word_of_embeddings_no_point_leaves() -> None:
    every = PolicySettings(metrics=tuple(Metric), profiles=True)
    assert permitted(PLACED, every) == m.EmbeddingReply(before=(), after=(), groups=(), labels=(), passes=20)
    assert permitted(SPREAD, every) == m.MomentsReply(images=0, mean=(), covariance=(), passes=10)
    allowed = PolicySettings(embeddings=True)
    assert (permitted(PLACED, allowed), permitted(SPREAD, allowed)) == (PLACED, SPREAD)


def test_without_profiles_no_losses_of_groups_leave_in_an_audit() -> None:
    told = permitted(AUDITED, PolicySettings(metrics=tuple(Metric)))
    assert isinstance(told, m.AuditReply)
    assert (told.metrics, told.profiles, told.passes) == (AUDITED.metrics, {}, AUDITED.passes)


@pytest.mark.parametrize("profiles", [True, False])
def test_what_losses_are_worth_leaves_with_them(profiles: bool) -> None:
    audited = replace(AUDITED, metrics={"deployed/forget_effective": 10.0})
    told = permitted(audited, PolicySettings(metrics=() if profiles else tuple(Metric), profiles=profiles))
    assert isinstance(told, m.AuditReply)
    assert bool(told.metrics) == bool(told.profiles) == profiles


def test_every_kind_of_metric_may_leave() -> None:
    names = [name for of_kind in (*NAMES.values(), COUNTS) for name in of_kind if of_kind != NAMES[Metric.PROBE]]
    release(permitted(PROBED, EVERYTHING), PROBE, PUBLIC)
    for reply, question, ours in ((UPDATE, FIT, False), (AUDITED, AUDIT, True)):
        metrics = {name: 1.0 for name in names if ("/" in name) == ours}
        release(permitted(replace(reply, metrics=metrics), EVERYTHING), question, PUBLIC)  # type: ignore[type-var]


def test_without_a_word_in_the_policy_nothing_measured_leaves() -> None:
    told = permitted(
        replace(AUDITED, metrics={"deployed/forget_accuracy": 1.0, "deployed/unheard_of": 1.0, COUNTS[0]: 4.0}),
        PolicySettings(),
    )
    assert isinstance(told, m.AuditReply)
    assert (told.metrics, told.profiles) == ({COUNTS[0]: 4.0}, {})
    update = permitted(UPDATE, PolicySettings())
    assert isinstance(update, m.SiteUpdate)
    assert (update.metrics, update.ascent, update.delta) == ({}, (), UPDATE.delta)
