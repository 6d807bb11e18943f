"""Losses by class, as they travel: quantiles under the number of a stratum, and under `ALL_CLASSES` those of all together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

ALL_CLASSES = "all"
"""Stands in place of a class where losses are told of all classes together."""


def losses_of(stratum: int, told: Mapping[str, Sequence[float]], multi_label: bool) -> tuple[float, ...]:
    """The losses that were told of a stratum (`client/unlearning/labels.py`), or what stands for them.

    A class that nobody told of has those of all images. A side of a label has those of the same side of other labels, on
    average: not having a label and having one are two different things, and most images lack most labels.
    """
    if own := told.get(str(stratum)):
        return tuple(own)
    alike = [losses for key, losses in told.items() if multi_label and key != ALL_CLASSES and int(key) % 2 == stratum % 2]
    if alike:
        return tuple(sum(at_level) / len(alike) for at_level in zip(*alike, strict=True))
    return tuple(told[ALL_CLASSES])
