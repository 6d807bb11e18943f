"""Bad input is refused, with what was expected and what came."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from excise.simulations.judging.checks import check_outputs, finite, share
from excise.simulations.judging.collateral import collateral_accuracy
from excise.simulations.judging.confidence import scaled_confidence
from excise.simulations.judging.utility import auroc, by_group, utility

LOGITS = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 0.5]])
Y = torch.tensor([0, 1, 1])
BAD = [
    (LOGITS[:0], Y[:0], "at least one image, got none"),
    (LOGITS, Y[:2], r"expected 3 labels, one for each row of logits, got shape (2,)"),
    (LOGITS, Y.float(), "classes as integers, got torch.float32"),
    (LOGITS, torch.tensor([0, 1, 2]), "classes from 0 to 1, got 0 to 2"),
    (LOGITS, torch.tensor([0, 1, -1]), "classes from 0 to 1, got -1 to 1"),
    (LOGITS[:, :1], Y, "at least two classes, got 1"),
    (LOGITS[0], Y, "floating-point logits (N, C), got torch.float32 (2,)"),
    (LOGITS.long(), Y, "got torch.int64"),
    (LOGITS.clone().index_fill_(0, torch.tensor([1]), torch.nan), Y, "NaN or infinity for 1 of 3 images"),
    (LOGITS.clone().index_fill_(0, torch.tensor([0, 2]), torch.inf), Y, "NaN or infinity for 2 of 3 images"),
]


def of_one_group(logits: Tensor, y: Tensor) -> object:
    return by_group(logits, y, ["a"] * len(y))


def of_first_image(logits: Tensor, y: Tensor) -> float:
    return collateral_accuracy(logits, y, torch.tensor([0]))


@pytest.mark.parametrize(("logits", "y", "message"), BAD)
@pytest.mark.parametrize("metric", [check_outputs, utility, auroc, scaled_confidence, of_one_group, of_first_image])
def test_bad_outputs(metric: Callable[[Tensor, Tensor], object], logits: Tensor, y: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        metric(logits, y)


def test_finite_and_share() -> None:
    assert finite([1, 2], "x").dtype == np.float64
    with pytest.raises(ValueError, match=r"x: expected at least 1 along the first of 1 axes, got shape \(0,\)"):
        finite([], "x")
    with pytest.raises(ValueError, match=r"got shape \(1, 1\)"):
        finite([[1]], "x")
    with pytest.raises(ValueError, match="x: expected finite numbers, got 2 that are not"):
        finite([1, np.nan, np.inf], "x")
    assert share(0.5, "x") == 0.5
    for bad in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"x: expected a number in \[0, 1\]"):
            share(bad, "x")
