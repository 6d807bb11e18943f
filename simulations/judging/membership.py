"""Membership attacks that need the judged model alone: by the loss, and by a classifier of its outputs."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from excise.simulations.judging.checks import Floats, check_logits
from excise.simulations.judging.confidence import scaled_confidence
from excise.simulations.judging.roc import Attack, attack

FOLDS = 5
"""Parts that the attacker's training images are dealt into; each is judged by an attacker trained on the others."""
HIDDEN, PENALTY, STEPS = 16, 0.1, 200
"""Of the attacking network: units, weight of the squared weights, most steps. Small, as it learns from hundreds of images."""


def loss_attack(
    forget: tuple[Tensor, Tensor],
    held_out: tuple[Tensor, Tensor],
    *,
    patients: tuple[Sequence[Hashable], Sequence[Hashable]] | None = None,
    seed: int = 0,
) -> Attack:
    """The loss-threshold attack (Yeom et al., 2018): the smaller an image's loss, the likelier it was trained on.

    Cross-entropies are compared through the logarithm of the odds, which falls as they rise and does not round to 0.

    Parameters
    ----------
    forget, held_out : logits (N, C) and classes (N,) of forget images, and of unseen ones of the same classes and devices
    patients : of the images on each side; one patient's are drawn together for the interval

    Returns
    -------
    0.5 is ideal where samples are forgotten; of a whole class there are no comparable unseen images, and retrained's is ideal

    Raises
    ------
    ValueError : logits or labels that do not fit, or a side without images
    """
    scores = scaled_confidence(*forget, "forget set"), scaled_confidence(*held_out, "held-out images")
    return attack(*scores, groups=patients, seed=seed)


@dataclass(frozen=True)
class OutputAttack:
    """What an attacker who learned on retain and held-out images says of the forget set.

    Attributes
    ----------
    members : share of the forget set that it calls trained on, in [0, 1]; as retrained's is ideal
    score : mean probability that it gives to *trained on*, in [0, 1]; as retrained's is ideal
    auc : how well it tells retain from held-out images that it did not learn on; at 0.5 the two above say nothing
    """

    members: float
    score: float
    auc: float


def output_attack(retain_NC: Tensor, held_out_KC: Tensor, forget_MC: Tensor, seed: int = 0) -> OutputAttack:
    """A network that tells retain from held-out images by the model's outputs (Shokri et al., 2017), asked of the forget set.

    For forgotten classes, whose unseen images cannot be compared with. It sees each image's probabilities from the largest
    down, without class names, since it learns on other classes than it is asked about. Both sides are brought to one number
    of images. Each of `FOLDS` attackers judges the part that it did not learn on, and all of them the forget set.

    It is not the attack that Ebrahimpour-Boroojeny et al. (arXiv:2506.20893) call MIA-NN, which looks at which classes stand
    in for the forgotten one: what that sees shows in `distance.divergence` on the forget set.

    Parameters
    ----------
    retain_NC, held_out_KC : logits of images trained on, and of unseen ones of the same classes; at least `FOLDS` each
    forget_MC : logits of the forget set
    seed : of which images are taken, the deal, and the networks

    Raises
    ------
    ValueError : logits that are not finite, of another number of classes, or too few images
    """
    for logits, name in ((retain_NC, "retain set"), (held_out_KC, "held-out images"), (forget_MC, "forget set")):
        check_logits(logits, name)
        if logits.shape[1] != retain_NC.shape[1]:
            raise ValueError(
                f"{name}: expected logits of {retain_NC.shape[1]} classes as of the retain set, got {logits.shape[1]}"
            )
    count = min(len(retain_NC), len(held_out_KC))
    if count < FOLDS:
        sizes = f"{len(retain_NC)} and {len(held_out_KC)}"
        raise ValueError(f"an attacker learns on at least {FOLDS} retain and {FOLDS} held-out images, got {sizes}")
    rng = np.random.default_rng(seed)
    sides = [_seen(logits)[rng.permutation(len(logits))[:count]] for logits in (retain_NC, held_out_KC)]
    x, truth, asked = np.concatenate(sides), np.r_[np.ones(count), np.zeros(count)], _seen(forget_MC)
    own, of_forget = np.empty(len(x)), np.zeros(len(asked))
    for train, test in StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(x, truth):
        network = MLPClassifier((HIDDEN,), solver="lbfgs", alpha=PENALTY, max_iter=STEPS, random_state=seed)
        attacker = make_pipeline(StandardScaler(), network)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # an attacker that stops early is judged by its own AUC
            attacker.fit(x[train], truth[train])
        own[test] = attacker.predict_proba(x[test])[:, 1]
        of_forget += attacker.predict_proba(asked)[:, 1] / FOLDS
    return OutputAttack(float((of_forget > 0.5).mean()), float(of_forget.mean()), float(roc_auc_score(truth, own)))


def _seen(logits_NC: Tensor) -> Floats:
    """Logarithms of the probabilities, from the largest down."""
    ranked: Floats = logits_NC.detach().cpu().double().log_softmax(1).sort(1, descending=True).values.numpy()
    return ranked
