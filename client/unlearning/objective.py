"""The upper level's objective, as one site sees it.

    F(θ)      = ψ·Σ_k (n_k^f/N_f)·L_k^f(θ) + (1−ψ)·Σ_k (n_k^r/N_r)·L_k^r(θ) + (μ/2)·‖θ − θ0‖²
    F_k(θ)    = a_k·L_k^f(θ) + (1−a_k)·L_k^r(θ) + (μ/2)·‖θ − θ0‖²,            Σ_k p_k·F_k = F

L^f is cross-entropy to the targets; L^r mixes cross-entropy to the labels with distillation from the teacher. Of several
labels an image (`labels.py`) both are means of binary cross-entropies over the labels. The weights a_k and p_k are computed by
the coordinator (`server/weighting.py`).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from excise.common.settings import LocalSettings


def forget_loss(logits_NC: Tensor, targets_NC: Tensor, labels: bool = False) -> Tensor:
    """L^f: mean cross-entropy to target distributions; with `labels`, to a probability of each label."""
    if labels:
        return F.binary_cross_entropy_with_logits(logits_NC, targets_NC)
    return F.cross_entropy(logits_NC, targets_NC)


def label_loss(logits_NC: Tensor, y_N: Tensor) -> Tensor:
    """Mean cross-entropy to classes, int64 (N,); of labels, float (N, L), the mean of their binary ones."""
    return F.binary_cross_entropy_with_logits(logits_NC, y_N) if y_N.ndim > 1 else F.cross_entropy(logits_NC, y_N)


def retain_loss(logits_NC: Tensor, y_N: Tensor, teacher_logits_NC: Tensor | None, settings: LocalSettings) -> Tensor:
    """L^r: ``(1−d)·CE(S, y) + d·τ²·KL(T‖S)`` at temperature τ (Hinton et al., 2015); d = `settings.distil`."""
    labels, hard = y_N.ndim > 1, label_loss(logits_NC, y_N)
    if teacher_logits_NC is None or settings.distil == 0:
        return hard
    tau = settings.distil_temperature
    if labels:
        soft = (teacher_logits_NC / tau).sigmoid()
        entropy = F.binary_cross_entropy_with_logits(teacher_logits_NC / tau, soft)
        divergence = F.binary_cross_entropy_with_logits(logits_NC / tau, soft) - entropy
        return (1 - settings.distil) * hard + settings.distil * tau**2 * divergence
    divergence = F.kl_div(
        (logits_NC / tau).log_softmax(1), (teacher_logits_NC / tau).log_softmax(1), reduction="batchmean", log_target=True
    )
    return (1 - settings.distil) * hard + settings.distil * tau**2 * divergence


def proximal(model: nn.Module, teacher: Mapping[str, Tensor]) -> Tensor:
    """½‖θ − θ0‖² over the parameters; `teacher` holds θ0 by name."""
    terms = [(parameter - teacher[name]).pow(2).sum() for name, parameter in model.named_parameters()]
    total: Tensor = sum(terms[1:], terms[0])
    return total / 2


def site_objective(
    forget: Tensor | None, retain: Tensor | None, a_k: float, pull: Tensor | None = None, mu: float = 0.0
) -> Tensor:
    """F_k from its parts; a part that is absent must have no weight.

    Raises
    ------
    ValueError : a part with weight is absent
    """
    if (forget is None and a_k > 0) or (retain is None and a_k < 1):
        raise ValueError(f"a_k = {a_k:.3g} weighs a loss that has no images")
    parts = []
    if forget is not None and a_k > 0:
        parts.append(a_k * forget)
    if retain is not None and a_k < 1:
        parts.append((1 - a_k) * retain)
    if pull is not None and mu > 0:
        parts.append(mu * pull)
    total: Tensor = sum(parts[1:], parts[0])
    return total
