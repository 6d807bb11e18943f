"""Losses of a model as audits and calibration tell them, and which of the retain images they are of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from excise.client.unlearning.labels import boundary_losses, place_of, strata
from excise.common.profiles import ALL_CLASSES


def losses_by_stratum(logits: Tensor, y: Tensor, told: Sequence[int]) -> dict[str, tuple[Tensor, NDArray[np.float64]]]:
    """Rows and losses of all images, of several labels their means, and of each stratum in `told`."""
    losses = boundary_losses(logits, y).double()
    places = {str(s): place_of(s, y) for s in told}
    each = {key: (place[0].nonzero().flatten(), losses[place].numpy()) for key, place in places.items()}
    whole = losses if losses.ndim == 1 else losses.mean(1)
    return {ALL_CLASSES: (torch.arange(len(y)), whole.numpy()), **each}


def evenly_spread(index: Tensor, most: int, y_N: Tensor, min_count: int) -> Tensor:
    """At most `most` of the rows, evenly spread, the same in every round; all of them where the others would be too few.

    Beside a number over all rows, one over these would tell that of the others, in any class.
    """
    if not 0 < most < len(index):
        return index[:0] if most == 0 else index
    chosen = torch.arange(most) * len(index) // most
    left = torch.ones(len(index), dtype=torch.bool)
    left[chosen] = False
    y_left = y_N[index[left]]
    few = any(int(place_of(s, y_left)[0].sum()) < min_count for s in strata(y_left))
    return index if few else index[chosen]
