"""Resolving a forget request at the site: which images it concerns, and what remains. Never leaves the site but as counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from excise.client.table import Row, Split
from excise.common.request import ForgetRequest


@dataclass(frozen=True)
class Selection:
    """Row numbers of each set, int64 and ascending.

    Attributes
    ----------
    forget : training images that match the request: D_k^f
    retain : training images that do not: D_k^r
    reference, held_out : images never trained on that do not match it
    excluded : images never trained on that match it; nobody uses them any more
    """

    forget: Tensor
    retain: Tensor
    reference: Tensor
    held_out: Tensor
    excluded: Tensor


def select(
    rows: Sequence[Row],
    request: ForgetRequest | None,
    lists: Mapping[str, frozenset[str]],
    also: frozenset[int] = frozenset(),
) -> Selection:
    """Resolve `request` over `rows`; no request matches nothing.

    Parameters
    ----------
    lists : the site's own lists by name, for predicates such as ``PatientID in @withdrawn``
    also : numbers of rows that match whatever the predicate says of them

    Raises
    ------
    RequestError : the predicate names a list that the site does not have
    """
    predicate = request.predicate if request else None
    matched = [predicate is not None and (row.matches(predicate, lists) or i in also) for i, row in enumerate(rows)]

    def where(split: Split | None, match: bool) -> Tensor:
        wanted = [
            i
            for i, row in enumerate(rows)
            if matched[i] == match and (row.split is split if split else row.split is not Split.TRAIN)
        ]
        return torch.tensor(wanted, dtype=torch.int64)

    return Selection(
        forget=where(Split.TRAIN, True),
        retain=where(Split.TRAIN, False),
        reference=where(Split.REFERENCE, False),
        held_out=where(Split.HELD_OUT, False),
        excluded=where(None, True),
    )
