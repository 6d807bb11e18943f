"""The last gate before a reply leaves: whatever is not on its list stays, and with it the whole reply.

Before it, `permitted` leaves out what the site's policy does not want told; a round goes on without.

It trusts none of the code before it. Every field, every name of a number, every text and every array is compared with what a
reply of its kind to such a question may hold; a text has to be an enumerated word, a digest, an incident's number, or one of
the site's own public names.
"""

from __future__ import annotations

import dataclasses
import math
import re

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from excise import __version__
from excise.client.policy import Metric, PolicySettings
from excise.common import messages as m
from excise.common.embedding import moments_fault, points_fault
from excise.common.errors import ExciseError, SiteError

DIGEST = re.compile(r"[0-9a-f]{64}")
INCIDENT = re.compile(r"[0-9a-f]{16}")
_SETS = r"(?:forget|retain|reference|held_out|part\d+)"
_METRICS = {
    "update": r"loss|gradient_norm|step_sum|retain_loss|forget_loss|overshoot|crossing_rate|path_length",
    "audit": rf"{_SETS}_(?:images|scored|accuracy|loss|ece|accuracy_class_\d+|images_class_\d+)|(?:forget|held_out)_effective",
    "probe": r"probe_auc",
    "reference": r"(?:unseen|trained)/(?:all|\d+)",
}
_KINDS = {
    Metric.ACCURACY: re.compile(r"_accuracy(?:_class_\d+)?$"),
    Metric.CALIBRATION: re.compile(r"_ece$"),
    Metric.LOSS: re.compile(r"(?:^|_)loss$"),
    Metric.SEARCH: re.compile(r"^(?:crossing_rate|path_length)$"),
    Metric.PROGRESS: re.compile(r"^(?:gradient_norm|step_sum|overshoot)$"),
    Metric.PROBE: re.compile(r"/probe_auc$"),
}
_WITH_PROFILES = re.compile(r"_effective$")  # tells how sure the membership test is, which needs them
_COUNT = re.compile(r"_(?:images|scored|images_class_\d+)$")
_PROFILES = {"audit": rf"{_SETS}/\d+", "reference": r"(?:unseen|trained)/(?:all|\d+)"}


class Withheld(ExciseError):
    """A reply holds something that may not leave. Says what, for the site's own log."""

    code = SiteError.EGRESS


def permitted(reply: m.Message, policy: PolicySettings) -> m.Message:
    """`reply` without the measured numbers that the policy does not let leave."""

    def told(metrics: dict[str, float]) -> dict[str, float]:
        return {name: value for name, value in metrics.items() if may(name)}

    def may(name: str) -> bool:
        if _WITH_PROFILES.search(name):
            return policy.profiles
        return bool(_COUNT.search(name)) or _kind_of(name) in policy.metrics

    if isinstance(reply, m.SiteUpdate):
        ascent = reply.ascent if Metric.SEARCH in policy.metrics else ()
        return dataclasses.replace(reply, metrics=told(reply.metrics), ascent=ascent)
    if isinstance(reply, m.AuditReply):
        return dataclasses.replace(reply, metrics=told(reply.metrics), profiles=reply.profiles if policy.profiles else {})
    if isinstance(reply, m.ProbeReply):
        return dataclasses.replace(reply, metrics=told(reply.metrics))
    if isinstance(reply, m.MomentsReply) and not policy.embeddings:
        return dataclasses.replace(reply, images=0, mean=(), covariance=())
    if isinstance(reply, m.EmbeddingReply) and not policy.embeddings:
        return dataclasses.replace(reply, before=(), after=(), groups=(), labels=())
    return reply


def _kind_of(name: str) -> Metric | None:
    """The kind of a metric; None when it is of none that is known."""
    return next((kind for kind, pattern in _KINDS.items() if pattern.search(name)), None)


def release(reply: m.Message, question: m.Message | None, public: frozenset[str]) -> RecordDict:
    """Pack a reply to `question`, when nothing in it is unknown.

    Parameters
    ----------
    question : what was asked; None when it could not be read
    public : the site's public names: its own and those of its classes

    Raises
    ------
    Withheld : something in it may not leave
    """
    record = reply.to_record()
    fields = {field.name for field in dataclasses.fields(reply)}
    for name, part in record.items():
        if name != "message" and name not in fields:
            raise Withheld(f"a '{reply.KIND}' reply has no part '{name}'")
        if isinstance(part, ArrayRecord):
            _check_arrays(part, question)
        elif isinstance(part, MetricRecord):
            _check_names(reply.KIND, list(part), _METRICS, question)
            _check_numbers(name, list(part.values()))
        elif name != "message":
            _check_names(reply.KIND, list(part), _PROFILES, question)
            for values in part.values():
                _check_numbers(name, values)
    _check_points(reply, question)
    config = record["message"]
    assert isinstance(config, ConfigRecord)
    for name, value in config.items():
        if name not in fields | {"kind", "protocol"}:
            raise Withheld(f"a '{reply.KIND}' reply has no field '{name}'")
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, str):
                _check_text(name, one, reply, public)
            else:
                _check_numbers(name, one)
    return record


def _check_arrays(arrays: ArrayRecord, question: m.Message | None) -> None:
    if not isinstance(question, m.FitInstruction | m.UnlearnInstruction):
        raise Withheld("arrays leave only in answer to training or unlearning")
    for name, array in arrays.items():
        sent = question.weights.get(name)
        if sent is None:
            raise Withheld("an array has a name that the model does not have")
        if tuple(array.shape) != tuple(sent.shape) or array.dtype != str(sent.numpy().dtype):
            raise Withheld(f"array '{name}' is {array.dtype} of shape {tuple(array.shape)}, the model's {tuple(sent.shape)}")


def _check_points(reply: m.Message, question: m.Message | None) -> None:
    """Numbers of single images, and moments, leave only where they were asked for, and in no other form."""
    if isinstance(reply, m.MomentsReply):
        asked, fault = isinstance(question, m.MomentsQuery), moments_fault(reply.images, reply.mean, reply.covariance)
    elif isinstance(reply, m.EmbeddingReply) and isinstance(question, m.EmbeddingQuery):
        classes = 0 if question.model.multi_label else question.model.classes
        asked, fault = True, points_fault(reply.before, reply.after, reply.groups, reply.labels, classes, question.points)
    else:
        asked, fault = not isinstance(reply, m.EmbeddingReply), ""
    if not asked or fault:
        raise Withheld(f"a '{reply.KIND}' reply is not what was asked for, or not as one should be: {fault or 'not asked'}")


def _check_names(kind: str, names: list[str], known: dict[str, str], question: m.Message | None) -> None:
    pattern = known.get(kind)
    asked = question.candidates if isinstance(question, m.AuditQuery | m.ProbeQuery) else {}
    candidates = "|".join(map(re.escape, asked))
    for name in names:
        if pattern is None or not re.fullmatch(f"(?:{candidates})/(?:{pattern})" if candidates else pattern, name):
            raise Withheld(f"a '{kind}' reply holds a number of a name that is not on the list")


def _check_numbers(name: str, values: object) -> None:
    for value in values if isinstance(values, list) else [values]:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise Withheld(f"'{name}' holds something that is not a finite number")


def _check_text(name: str, text: str, reply: m.Message, public: frozenset[str]) -> None:
    allowed = {
        "kind": text == reply.KIND,
        "code": text in set(SiteError),
        "incident": bool(INCIDENT.fullmatch(text)),
        "weights_in": bool(DIGEST.fullmatch(text)),
        "commitment": not text or bool(DIGEST.fullmatch(text)),
        "source": not text or bool(DIGEST.fullmatch(text)),
        "release": text in ("", __version__),
        "site": text in public,
        "classes": text in public,
    }
    if not allowed.get(name, False):
        raise Withheld(f"'{name}' holds a text that is not on the list")
