"""Numbers by which unlearning is judged, as pure functions of labels, losses and outputs."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def accuracy(logits_NC: Tensor, y_N: Tensor) -> float:
    """Share of images whose largest logit is the label's, in [0, 1]; NaN for no images."""
    return float((logits_NC.argmax(1) == y_N).float().mean())


def membership_auc(member_losses: NDArray[np.float32], other_losses: NDArray[np.float32]) -> float:
    """Area under the curve of the loss-threshold membership attack (Yeom et al., 2018).

    The probability that a member's loss lies below a non-member's, ties counted half: 0.5 reveals nothing, 1.0 everything.

    Raises
    ------
    ValueError : one of the two is empty
    """
    if len(member_losses) == 0 or len(other_losses) == 0:
        raise ValueError(f"membership needs images on both sides, got {len(member_losses)} and {len(other_losses)}")
    from sklearn.metrics import roc_auc_score  # a second to import, and sites do without

    truth = np.r_[np.ones(len(member_losses)), np.zeros(len(other_losses))]
    return float(roc_auc_score(truth, -np.r_[member_losses, other_losses]))


def tug_of_war(forget_gap: float, retain_gap: float, test_gap: float) -> float:
    """ToW (Zhao et al., 2024): ``Π (1 − |accuracy gap to the retrained model|)``; 1 is a perfect match."""
    return (1 - abs(forget_gap)) * (1 - abs(retain_gap)) * (1 - abs(test_gap))


def jensen_shannon(p_NC: Tensor, q_NC: Tensor) -> float:
    """Mean Jensen-Shannon divergence of two models' output distributions, nats, in [0, ln 2]."""
    p, q = p_NC.double().clamp_min(1e-12), q_NC.double().clamp_min(1e-12)
    m = (p + q) / 2
    return float((p * (p / m).log() + q * (q / m).log()).sum(1).mean() / 2)


def pooled_quantiles(values_per_site: list[tuple[NDArray[np.float64], int]], levels_Q: NDArray[np.float64]) -> Tensor:
    """Quantiles of the union of several sites, each known only by equally spaced quantiles and its number of images.

    A site's Q quantiles stand for Q equal shares of its images; the union's distribution is their weighted mixture.

    Parameters
    ----------
    values_per_site : per site its quantiles (ascending) and its number of images
    levels_Q : wanted levels in [0, 1]

    Returns
    -------
    float64 tensor of shape (len(levels_Q),), ascending

    Raises
    ------
    ValueError : no site has an image
    """
    kept = [(values, n) for values, n in values_per_site if n > 0]
    if not kept:
        raise ValueError("no site has reference images")
    values = np.concatenate([v for v, _ in kept])
    mass = np.concatenate([np.full(len(v), n / len(v)) for v, n in kept])
    order = np.argsort(values, kind="stable")
    values, mass = values[order], mass[order]
    middles = (np.cumsum(mass) - mass / 2) / mass.sum()
    return torch.from_numpy(np.interp(levels_Q, middles, values))


def calibration_error(logits_NC: Tensor, y_N: Tensor, bins: int = 15) -> float:
    """Expected calibration error (Guo et al., 2017): mean |confidence − accuracy| over equal confidence bins, in [0, 1].

    Labels (N, L) count one by one, each as a choice between its two sides.
    """
    if y_N.ndim > 1:
        logits_NC, y_N = torch.stack([torch.zeros_like(logits_NC), logits_NC], dim=-1).flatten(0, 1), y_N.flatten().long()
    confidence_N, said_N = logits_NC.cpu().softmax(1).max(1)
    # Bins as torchmetrics has them; importing that takes three seconds, and Flower starts a process for every message.
    bin_N = torch.bucketize(confidence_N, torch.linspace(0, 1, bins + 1), right=True) - 1
    gap_B = torch.zeros(bins + 1, dtype=torch.float64).index_add(
        0, bin_N, (said_N == y_N.cpu()).double() - confidence_N.double()
    )
    return float(gap_B.abs().sum()) / len(y_N) if len(y_N) else math.nan
