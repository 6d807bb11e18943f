"""How far an unlearned model is from the one retrained without the forget set: in its outputs, and in its accuracies."""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass

from torch import Tensor

from excise.common.metrics import jensen_shannon, tug_of_war
from excise.simulations.judging.checks import check_logits, share


def divergence(logits_NC: Tensor, retrained_NC: Tensor, name: str = "images") -> float:
    """Mean Jensen-Shannon divergence of two models' outputs on the same images, bits: 0 alike, 1 disjoint (Lin, 1991).

    Parameters
    ----------
    logits_NC, retrained_NC : logits of the two models, row by row of the same images

    Raises
    ------
    ValueError : no image, logits that are not finite, or two shapes
    """
    check_logits(logits_NC, name)
    check_logits(retrained_NC, f"{name}, retrained model")
    if logits_NC.shape != retrained_NC.shape:
        shapes = f"{tuple(logits_NC.shape)} and {tuple(retrained_NC.shape)}"
        raise ValueError(f"{name}: expected the outputs of both models on the same images, got shapes {shapes}")
    bits = jensen_shannon(logits_NC.double().softmax(1), retrained_NC.double().softmax(1)) / math.log(2)
    return min(max(bits, 0.0), 1.0)  # rounding


@dataclass(frozen=True)
class Accuracies:
    """Accuracies of one model in [0, 1] on the forget set, the retain set and held-out images; else ValueError."""

    forget: float
    retain: float
    test: float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            share(value, f"{name} accuracy")


def tow(unlearned: Accuracies, retrained: Accuracies) -> float:
    """ToW, *tug of war* (Zhao et al., 2024): ``Π (1 − |accuracy − retrained's|)``, in [0, 1]; 1 is retrained's accuracies."""
    forget, retain, test = (a - b for a, b in zip(astuple(unlearned), astuple(retrained), strict=True))
    return tug_of_war(forget, retain, test)
