"""A site's images as a table: one row per image, split by patient."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from excise.client.config import SplitSettings
from excise.common.predicate import Fields, Predicate


class Split(StrEnum):
    """What an image is used for."""

    TRAIN = "train"
    REFERENCE = "reference"
    HELD_OUT = "held-out"


@dataclass(frozen=True)
class Row:
    """One image.

    Attributes
    ----------
    item : identifier within the site (SOPInstanceUID, file name, index)
    patient : key by which images are split; all images of a patient fall into one split
    label : index into the site's class names; of several labels the indices of those it has, ascending
    split : what the image is used for
    fields : what a predicate may ask for, by name (DICOM keywords, ``class``, ``site``, ``patient``, ``item``)
    copies : the fields of the same image under other names, which are not used
    """

    item: str
    patient: str
    label: int | tuple[int, ...]
    split: Split
    fields: Fields
    copies: tuple[Fields, ...] = ()

    @property
    def items(self) -> tuple[str, ...]:
        """Its identifier and those of its copies."""
        return (self.item, *(str(fields["item"]) for fields in self.copies))

    def matches(self, predicate: Predicate, lists: Mapping[str, frozenset[str]]) -> bool:
        """Whether the image matches, under any of its names: what is to be forgotten of a copy is to be forgotten of it."""
        return any(predicate.matches(fields, lists) for fields in (self.fields, *self.copies))


@dataclass(frozen=True)
class Problem:
    """A file or label that is left out, and why. Stays at the site: names can identify a patient.

    Attributes
    ----------
    fields : what a predicate may ask for, where the image is known so far
    copies : the fields of the same image under other names
    place, stamp : where the image is, as its source names it, and what changes when it does
    """

    item: str
    reason: str
    fields: Fields | None = field(default=None, compare=False, repr=False)
    copies: tuple[Fields, ...] = field(default=(), compare=False, repr=False)
    place: Any = field(default=None, compare=False, repr=False)
    stamp: str = field(default="", compare=False, repr=False)

    @property
    def names(self) -> set[str]:
        """Everything that it is called by."""
        return {self.item, *(str(fields["item"]) for fields in (self.fields, *self.copies) if fields is not None)}

    def matches(self, predicate: Predicate, lists: Mapping[str, frozenset[str]]) -> bool:
        """Whether the image matches, under any of its names."""
        return any(predicate.matches(fields, lists) for fields in (self.fields, *self.copies) if fields is not None)


@dataclass(frozen=True)
class Scan:
    """What a look at the site's data found: usable rows, all that was skipped, and how many images were forgotten before."""

    rows: Sequence[Row]
    problems: Sequence[Problem] = field(default_factory=tuple)
    forgotten: int = 0


def split_of(patient: str, settings: SplitSettings) -> Split:
    """The split of a patient: a keyed hash (HMAC-SHA256) as a number in [0, 1) against the shares."""
    mac = hmac.new(settings.key.encode(), patient.encode(), hashlib.sha256).digest()
    position = int.from_bytes(mac[:8], "big") / 2**64
    if position < settings.reference:
        return Split.REFERENCE
    if position < settings.reference + settings.held_out:
        return Split.HELD_OUT
    return Split.TRAIN
