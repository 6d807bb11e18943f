"""The policy: whatever is not allowed is refused, and nothing else is."""

from __future__ import annotations

from datetime import UTC, datetime, time
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from excise import __version__
from excise.client.permission import Forbidden, check
from excise.client.policy import LimitSettings, PolicySettings
from excise.common.errors import SiteError
from excise.common.messages import (
    AuditQuery,
    EmbeddingQuery,
    FitInstruction,
    Message,
    MomentsQuery,
    ProbeQuery,
    ReferenceQuery,
    StatusQuery,
    UnlearnInstruction,
)
from excise.common.models import ModelSpec
from excise.common.request import ForgetRequest, RequestKind
from excise.common.settings import LocalSettings, TrainingSettings, UnlearningSettings

SPEC = ModelSpec(name="allcnn", classes=2, size=16, width=0.05)
DEVICE = ForgetRequest(id="d", kind=RequestKind.DEVICE, where="StationName = MR7", reason="r")
SAMPLES = ForgetRequest(id="s", kind=RequestKind.SAMPLES, where="StationName = MR7", reason="r")
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
OPEN = PolicySettings(kinds=(RequestKind.DEVICE,), training=True, profiles=True, embeddings=True)
WEIGHTS = {"w": torch.zeros(1)}


def unlearn(round_index: int = 0, **local: Any) -> UnlearnInstruction:
    return UnlearnInstruction(
        model=SPEC,
        weights=WEIGHTS,
        teacher_digest="0" * 64,
        request=DEVICE,
        settings=UnlearningSettings(local=LocalSettings(**local)),
        a_k=0.5,
        reference={},
        trained={},
        round_index=round_index,
        seed=0,
    )


ASKED: list[Message] = [
    StatusQuery(request=DEVICE),
    ReferenceQuery(model=SPEC, teacher=WEIGHTS, request=DEVICE, points=4),
    FitInstruction(model=SPEC, weights=WEIGHTS, training=TrainingSettings(), round_index=0, seed=0, without=DEVICE),
    unlearn(),
    AuditQuery(model=SPEC, candidates={"a": WEIGHTS}, request=DEVICE),
    ProbeQuery(model=SPEC, candidates={"a": WEIGHTS}, request=DEVICE.model_copy(update={"linear_probe": True})),
    MomentsQuery(model=SPEC, weights=WEIGHTS, request=DEVICE, points=4, dims=2),
    EmbeddingQuery(
        model=SPEC,
        candidates={"before": WEIGHTS, "after": WEIGHTS},
        request=DEVICE,
        points=4,
        mean=(0.0, 0.0),
        axes=(1.0, 0.0, 0.0, 1.0),
        unit=1.0,
    ),
]


@pytest.mark.parametrize("message", ASKED, ids=lambda message: message.KIND)
def test_what_is_allowed_passes_and_without_a_policy_nothing_does(message: Message) -> None:
    check(message, OPEN, LimitSettings(), NOON)
    with pytest.raises(Forbidden, match="requests of kind 'device' are not carried out here, only none") as refused:
        check(message, PolicySettings(training=True, profiles=True, embeddings=True), LimitSettings(), NOON)
    assert refused.value.code is SiteError.FORBIDDEN


@pytest.mark.parametrize(
    "message",
    [
        StatusQuery(request=DEVICE, parts=(DEVICE, SAMPLES)),
        AuditQuery(model=SPEC, candidates={}, request=DEVICE, parts=(SAMPLES,)),
        StatusQuery(request=SAMPLES),
    ],
)
def test_every_request_that_a_message_names_has_to_be_allowed(message: Message) -> None:
    with pytest.raises(Forbidden, match="requests of kind 'samples' are not carried out here, only device"):
        check(message, OPEN, LimitSettings(), NOON)


@pytest.mark.parametrize(
    ("message", "changed", "limits", "clause"),
    [
        (ASKED[2], {"training": False}, {}, "ordinary training is not allowed"),
        (ASKED[1], {"profiles": False}, {}, "losses do not leave"),
        (ASKED[6], {"embeddings": False}, {}, "where models put single images does not leave here"),
        (ASKED[7], {"embeddings": False}, {}, "where models put single images does not leave here"),
        (ASKED[0], {"releases": ("9.9.9",)}, {}, f"excise {__version__} may not run here, only 9.9.9"),
        (ASKED[0], {"hours": (time(20), time(6))}, {}, "from 20:00 to 06:00, it is 12:00"),
        (unlearn(steps=11), {}, {"steps": 10}, "11 gradient steps in a round; at most 10"),
    ],
)
def test_each_clause_refuses(message: Message, changed: dict[str, Any], limits: dict[str, Any], clause: str) -> None:
    check(message, OPEN, LimitSettings(), NOON)
    with pytest.raises(Forbidden, match=clause):
        check(message, OPEN.model_copy(update=changed), LimitSettings(**limits), NOON)


def test_features_are_probed_only_where_the_request_asks_for_it() -> None:
    with pytest.raises(Forbidden, match="the request does not ask for a linear probe"):
        check(ProbeQuery(model=SPEC, candidates={"a": WEIGHTS}, request=DEVICE), OPEN, LimitSettings(), NOON)


@pytest.mark.parametrize(
    ("hours", "hour", "open_"),
    [
        ((8, 18), 7, False),
        ((8, 18), 8, True),
        ((8, 18), 18, False),
        ((20, 6), 23, True),
        ((20, 6), 5, True),
        ((20, 6), 6, False),
    ],
)
def test_hours_may_have_midnight_between_them(hours: tuple[int, int], hour: int, open_: bool) -> None:
    policy = OPEN.model_copy(update={"hours": (time(hours[0]), time(hours[1]))})
    now = NOON.replace(hour=hour)
    if open_:
        check(ASKED[0], policy, LimitSettings(), now)
    else:
        with pytest.raises(Forbidden):
            check(ASKED[0], policy, LimitSettings(), now)


def test_hours_that_end_when_they_begin_are_refused() -> None:
    with pytest.raises(ValidationError, match="begins when it ends"):
        PolicySettings(hours=(time(8), time(8)))


@given(st.floats(0, 500), st.integers(1, 50))
def test_what_must_not_seem_larger_is_rounded_down(amount: float, min_count: int) -> None:
    policy = PolicySettings(min_count=min_count)
    told = policy.told_at_least(amount)
    assert told % min_count == 0
    assert told <= amount < told + min_count
    assert policy.model_copy(update={"exact_counts": True}).told_at_least(amount) == amount
    assert policy.told_at_least(float("nan")) == 0


@given(st.integers(0, 10_000), st.integers(0, 10_000), st.integers(1, 50))
def test_neither_a_number_nor_a_difference_tells_of_few_images(a: int, b: int, min_count: int) -> None:
    policy = PolicySettings(min_count=min_count)
    told = [policy.told(n) for n in (a, b)]
    assert all(n % min_count == 0 for n in told)
    assert all(n - min_count < real <= n for n, real in zip(told, (a, b), strict=True))
    assert (policy.told(0), PolicySettings(exact_counts=True).told(a)) == (0, a)


@pytest.mark.parametrize(
    ("privacy", "message"),
    [
        ({"noise_multiplier": 1.0}, "noise_multiplier needs clip"),
        ({"clip": 1.0, "noise_multiplier": 1e-9}, "is no noise"),
        ({"clip": 1.0, "max_epsilon": 3.0}, "max_epsilon needs noise_multiplier"),
        ({"clip": 0.0}, "greater than 0"),
        ({"clip": 1.0, "noise_multiplier": -1.0}, "greater than or equal to 0"),
        ({"keep_share": 0.0}, "greater than 0"),
        ({"keep_share": 1.5}, "less than or equal to 1"),
        ({"delta": 1.0}, "less than 1"),
        ({"delta": 0.0}, "greater than 0"),
        ({"clip": float("inf")}, "finite"),
        ({"noise": 1.0}, "Extra inputs"),
    ],
)
def test_a_privacy_that_would_not_be_one_is_refused(privacy: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PolicySettings.model_validate({"privacy": privacy})


def test_privacy_is_off_unless_told() -> None:
    assert PolicySettings().privacy == PolicySettings.model_validate({"privacy": {"keep_share": 1}}).privacy
    told = PolicySettings().privacy
    assert (told.clip, told.noise_multiplier, told.keep_share, told.max_epsilon) == (None, 0, 1, None)
