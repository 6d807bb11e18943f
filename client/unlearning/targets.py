"""Targets: what the student should say on a forget image, read off the boundary search's path.

Classes are forgotten by saying another class (`nearest`, `soft`, `topk`). Samples are not: a retrained model is not wrong on
images it never saw, it is as good on them as on any other unseen image. `calibrated` therefore asks the student to be *as
uncertain as on held-out data*: in each class (of labels: on each side of each) the losses of the targets are distributed as
the teacher's losses on unseen images there (where classes become rarer, as those would be then: `common/class_mix.py`), times
an overshoot, because the few steps of the upper level end short of their targets.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from excise.client.unlearning.boundary import path_losses
from excise.client.unlearning.labels import confidence, place_of, sought_labels, strata
from excise.client.unlearning.reference import Reference
from excise.common.settings import TargetSettings


def make_targets(
    logits_TNC: Tensor,
    y_N: Tensor,
    settings: TargetSettings,
    reference: Reference | None = None,
    forgotten: Sequence[int] = (),
    overshoot: Tensor | None = None,
) -> Tensor:
    """Targets of the kind that `settings` names: float32 (N, C), rows sum to 1; for labels (N, L), each of its own.

    Parameters
    ----------
    logits_TNC : teacher's logits along the boundary search's path, float32 (T+1, N, C)
    y_N : classes of the forget images, int64; or labels, float (N, L)
    reference : `calibrated` only: losses on unseen images, for each stratum of `y_N` (`reference.py`)
    forgotten : classes that are forgotten as a whole: none of them is a target of `nearest`, `soft` or `topk`. Labels that
        are: only where an image has one of them is anything forgotten
    overshoot : in place of that of `settings`: what `correction.py` makes of it; for labels (L,)

    Raises
    ------
    ValueError : `calibrated` without a reference, `topk` of labels, or no class is left to be a target
    """
    if y_N.ndim > 1:
        return _of_labels(logits_TNC, y_N, settings, reference, forgotten, overshoot)
    last_NC = logits_TNC[-1]
    if forgotten and settings.mask_true_class:
        last_NC = last_NC.clone()
        last_NC[:, list(forgotten)] = -torch.inf
        if bool(_without_true_class(last_NC, y_N).isinf().all(1).any()):
            raise ValueError("no class is left to be a target: every other one is forgotten as well")
    if settings.kind == "nearest":
        return nearest(last_NC, y_N, settings.mask_true_class)
    if settings.kind == "soft":
        return soft(last_NC, y_N, settings.tau)
    if settings.kind == "topk":
        return topk(last_NC, y_N, settings.tau, settings.k)
    targets_NC = torch.empty_like(last_NC)
    for c in y_N.unique().tolist():
        of_class = y_N == c
        wanted_Q, largest_Q = _wanted(settings, reference, c, overshoot)
        targets_NC[of_class] = calibrated(logits_TNC[:, of_class], y_N[of_class], wanted_Q, float(largest_Q[-1]))
    return targets_NC


def _wanted(
    settings: TargetSettings, reference: Reference | None, key: int, overshoot: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Wanted losses at the levels of the reference, and those with the whole overshoot, which difficulty is measured up to."""
    if not reference:
        raise ValueError("calibrated targets need the reference losses of the round 'query.reference'")
    largest_Q = settings.overshoot * reference[key]
    return largest_Q if overshoot is None else overshoot.to(reference[key]) * reference[key], largest_Q


def _of_labels(
    logits_TNL: Tensor,
    y_NL: Tensor,
    settings: TargetSettings,
    reference: Reference | None,
    forgotten: Sequence[int],
    overshoot: Tensor | None,
) -> Tensor:
    """Probabilities of labels (N, L): one number says all about a label, so a target is a probability of its true side."""
    if settings.kind == "topk":
        raise ValueError("topk chooses among classes; labels have two sides: use nearest, soft or calibrated")
    if settings.kind == "nearest":
        true_NL = torch.zeros_like(y_NL)
    elif settings.kind == "soft":  # as at the end of the path, and never on the true side
        true_NL = confidence(logits_TNL[-1] / settings.tau, y_NL).clamp_max(0.5)
    else:
        losses_TNL, wanted_NL = path_losses(logits_TNL, y_NL), torch.empty_like(y_NL)
        for s in strata(y_NL):
            rows, label = place = place_of(s, y_NL)
            factor = overshoot[label] if overshoot is not None else None
            wanted_Q, largest_Q = _wanted(settings, reference, s, factor)
            wanted_NL[place] = wanted_losses(difficulty(losses_TNL[:, rows, label], float(largest_Q[-1])), wanted_Q)
        true_NL = torch.exp(-wanted_NL).clamp(1e-6, 1 - 1e-6)
    targets_NL = torch.where(y_NL > 0.5, true_NL, 1 - true_NL)
    return torch.where(sought_labels(y_NL, forgotten), targets_NL, logits_TNL[0].sigmoid())


def nearest(logits_NC: Tensor, y_N: Tensor, mask_true_class: bool = True) -> Tensor:
    """One-hot of the largest logit among c ≠ y; without the mask a search that did not cross keeps y (the published code)."""
    scores_NC = _without_true_class(logits_NC, y_N) if mask_true_class else logits_NC
    return F.one_hot(scores_NC.argmax(1), logits_NC.shape[1]).float()


def soft(logits_NC: Tensor, y_N: Tensor, tau: float) -> Tensor:
    """Softmax at temperature τ over the classes c ≠ y."""
    return (_without_true_class(logits_NC, y_N) / tau).softmax(1)


def topk(logits_NC: Tensor, y_N: Tensor, tau: float, k: int) -> Tensor:
    """As `soft`, over the k largest logits among c ≠ y only."""
    masked_NC = _without_true_class(logits_NC, y_N)
    k = min(k, int((masked_NC > -torch.inf).sum(1).min()))
    kept = masked_NC.topk(k, dim=1)
    return (torch.full_like(masked_NC, -torch.inf).scatter(1, kept.indices, kept.values) / tau).softmax(1)


def calibrated(logits_TNC: Tensor, y_N: Tensor, reference_Q: Tensor, largest_loss: float | None = None) -> Tensor:
    """Targets whose losses are distributed as the losses of `reference_Q` are.

    The forget image of difficulty rank r of n is given the reference quantile of level r/(n−1) as its wanted loss; its
    target is the softmax of the logits at the point of its path, interpolated between steps, that has this loss. Losses
    count for the difficulty up to `largest_loss`, or the largest of `reference_Q`.
    """
    losses_TN = path_losses(logits_TNC, y_N)
    largest_loss = float(reference_Q[-1]) if largest_loss is None else largest_loss
    wanted_N = wanted_losses(difficulty(losses_TN, largest_loss), reference_Q)
    return _with_loss(_at_loss(logits_TNC, losses_TN, y_N, wanted_N), y_N, wanted_N)


def difficulty(losses_TN: Tensor, largest_loss: float) -> Tensor:
    """How close an image lies to the boundary: its mean loss along the path, clamped at `largest_loss`. Larger is harder."""
    return losses_TN.clamp_max(largest_loss).mean(0)


def wanted_losses(difficulty_N: Tensor, reference_Q: Tensor) -> Tensor:
    """The reference quantile of each image's difficulty rank, float32 (N,)."""
    n, q = len(difficulty_N), len(reference_Q)
    rank_N = torch.empty(n, dtype=torch.float64)
    rank_N[difficulty_N.cpu().argsort(stable=True)] = torch.arange(n, dtype=torch.float64)
    level_N = rank_N / max(n - 1, 1) * (q - 1) if n > 1 else torch.full((1,), (q - 1) / 2, dtype=torch.float64)
    below_N = level_N.floor().long().clamp_max(q - 2) if q > 1 else torch.zeros(n, dtype=torch.int64)
    reference = reference_Q.double().cpu()
    wanted_N = torch.lerp(reference[below_N], reference[(below_N + 1).clamp_max(q - 1)], level_N - below_N)
    return wanted_N.float().to(difficulty_N.device)


def _at_loss(logits_TNC: Tensor, losses_TN: Tensor, y_N: Tensor, wanted_N: Tensor) -> Tensor:
    """Probabilities (N, C) at the first point of each path whose loss is the wanted one, or the end that comes nearest."""
    reached_TN = losses_TN >= wanted_N
    reached_N = reached_TN.any(0)
    after_N = torch.where(reached_N, reached_TN.float().argmax(0), losses_TN.argmax(0))
    before_N = torch.where(reached_N, (after_N - 1).clamp_min(0), after_N)
    index_N = torch.arange(len(y_N), device=y_N.device)
    a_NC, b_NC = logits_TNC[before_N, index_N], logits_TNC[after_N, index_N]
    # Bisection on the segment: its loss is at most the wanted one at `a` and at least that at `b`. 30 halvings reach float32.
    low_N, high_N = torch.zeros_like(wanted_N), torch.ones_like(wanted_N)
    for _ in range(30):
        middle_N = (low_N + high_N) / 2
        loss_N = F.cross_entropy(torch.lerp(a_NC, b_NC, middle_N[:, None]), y_N, reduction="none")
        too_far_N = loss_N >= wanted_N
        low_N, high_N = torch.where(too_far_N, low_N, middle_N), torch.where(too_far_N, middle_N, high_N)
    return torch.lerp(a_NC, b_NC, high_N[:, None]).softmax(1)


def _with_loss(q_NC: Tensor, y_N: Tensor, wanted_N: Tensor) -> Tensor:
    """Set the true class's probability to exp(−wanted) and scale the others to fill the rest.

    On a path that reaches the wanted loss this changes nothing beyond rounding. Where the wanted loss lies below the path's
    start or above its end, it makes the loss distribution equal the reference's all the same.
    """
    true_N1 = torch.exp(-wanted_N)[:, None].clamp(1e-6, 1 - 1e-6)
    others_NC = q_NC.clamp_min(1e-8).scatter(1, y_N[:, None], 0.0)
    others_NC = others_NC / others_NC.sum(1, keepdim=True) * (1 - true_N1)
    return others_NC.scatter(1, y_N[:, None], true_N1)


def _without_true_class(logits_NC: Tensor, y_N: Tensor) -> Tensor:
    return logits_NC.scatter(1, y_N[:, None], -torch.inf)
