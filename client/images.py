"""Prepared images: square or cubic, of one size, float32 in [0, 1], cached in the site's state.

Settings and versions of the preparation make up the cache's name, and each image has a stamp of its file, so what has changed
is prepared anew, and nothing else. Images that fail to load become problems and leave the table.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from excise.client.cache import ImageCache, Known, Prepared
from excise.client.config import DataSettings, SiteConfig
from excise.client.decoded import Decoded
from excise.client.dicom.pixels import PIPELINE
from excise.client.parallel import in_parallel
from excise.client.sources import open_source
from excise.client.table import Problem, Row, Scan
from excise.common.errors import DataError

PREPARATION = "square-1"
"""Part of the cache's name: raise it when `prepare` changes."""
BATCH = 128
"""Images that one process prepares at once, and that one commit keeps."""
PARALLEL_FROM = 2048
"""Images below which other processes would not have started before this one is done."""
IMAGES = "images"
"""Folder of the caches, in the site's state."""
FORGOTTEN = "forgotten"
FATAL = "image ends the process that decodes it"
Forgotten = Callable[[str, str | None], bool]
"""Whether an image of this identifier, or of this fingerprint, was forgotten."""
Progress = Callable[[int, int], None]
"""Called with images prepared so far and images to prepare."""


class Images:
    """The prepared images of a site's rows, read from disk as they are asked for; `fingerprints` are those of each."""

    def __init__(self, records: NDArray[np.float32], places: NDArray[np.int64], fingerprints: Sequence[str]) -> None:
        self._records, self._places, self.fingerprints = records, places, fingerprints

    def __len__(self) -> int:
        return len(self._places)

    @property
    def shape(self) -> torch.Size:
        """(N, channels, size, size[, size])."""
        return torch.Size((len(self._places), *self._records.shape[1:]))

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        """Images of these rows, float32 (n, channels, size, size[, size]) in [0, 1]: a copy in memory."""
        places = self._places[rows.numpy() if isinstance(rows, Tensor) else rows]
        return torch.from_numpy(np.array(self._records[places]))

    def only(self, rows: Sequence[int]) -> Images:
        """The images of these rows alone."""
        fingerprints = [self.fingerprints[i] for i in rows]
        return Images(self._records, self._places[np.asarray(rows, dtype=np.int64)], fingerprints)


def prepare(image: NDArray[np.float32], size: int, channels: int, dims: int = 2) -> NDArray[np.float32]:
    """Pad to a square or a cube with black, then shrink or enlarge without aliasing.

    Parameters
    ----------
    image : rows × columns, or slices × rows × columns for `dims` 3; with or without a last axis of channels

    Returns
    -------
    float32 (channels, size, size) or (channels, size, size, size), in [0, 1]
    """
    x = torch.from_numpy(image)
    x = x.movedim(-1, 0) if x.ndim > dims else x[None]
    if x.shape[0] != channels:
        x = x.mean(0, keepdim=True).expand(channels, *x.shape[1:])
    side = max(x.shape[1:])
    before = [(side - length) // 2 for length in x.shape[1:]]
    after = [side - length - left for length, left in zip(x.shape[1:], before, strict=True)]
    if any((*before, *after)):
        x = F.pad(x, [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair])  # last axis first
    x = x[None]
    if dims == 2:
        x = F.interpolate(x, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    elif size < side:
        x = F.interpolate(x, size=(size,) * 3, mode="area")  # the only one without aliasing that torch has for volumes
    else:
        x = F.interpolate(x, size=(size,) * 3, mode="trilinear", align_corners=False)
    return x[0].clamp(0, 1).numpy()


def image_cache(config: SiteConfig) -> ImageCache:
    """The cache of the site's images as its settings want them prepared.

    Raises
    ------
    StorageError : it cannot be written
    """
    data = config.data
    settings = data.model_dump_json(include={"source", "size", "dims", "channels", "frames", "ct_window"})
    name = hashlib.sha256(f"{PREPARATION}|{PIPELINE}|{settings}".encode()).hexdigest()[:24]
    return ImageCache(config.state / IMAGES / name, (data.channels, *[data.size] * data.dims))


def load_images(
    config: SiteConfig,
    progress: Progress = lambda *_: None,
    forgotten: Forgotten = lambda *_: False,
    retry: bool = False,
) -> tuple[Scan, Images]:
    """The site's usable rows and their images; what is new or has changed is decoded and prepared first.

    What was forgotten is neither among them nor kept in the cache. What could not be prepared before is tried again with
    `retry`: a decoder may have been installed meanwhile.

    Raises
    ------
    DataError : the source cannot be used, or no image is left
    StorageError : the cache cannot be written
    """
    source, data, cache = open_source(config), config.data, image_cache(config)
    rows, stamps, known = source.scan.rows, source.stamps, cache.known()
    wanted = [i for i, row in enumerate(rows) if not any(forgotten(item, None) for item in row.items)]
    stale = [i for i in wanted if _is_stale(known.get(rows[i].item), stamps[i], retry)]
    cache.purge(known.keys() - {rows[i].item for i in wanted})  # what left the site's data leaves its cache
    if stale:
        workers = None if source.parallel and len(stale) >= PARALLEL_FROM else 0
        work, done = partial(_prepared, source.read, data), 0
        fatal: _Made = (None, "", FATAL)
        for batch, made in in_parallel(work, _batches([(i, source.places[i]) for i in stale]), fatal, workers):
            kept_ones = (
                Prepared(rows[i].item, stamps[i], *((None, "", FORGOTTEN) if forgotten(rows[i].item, one[1]) else one))
                for (i, _), one in zip(batch, made, strict=True)
            )
            cache.add(kept_ones)
            progress(done := done + len(batch), len(stale))
        known = cache.known()
    kept: list[Row] = []
    places: list[int] = []
    fingerprints: list[str] = []
    problems = list(source.scan.problems)
    again = 0  # forgotten images that came back under another name
    no_copies, first = data.is_dicom, dict[str, int]()  # other sources have no names that copies come under
    back: list[str] = []
    for i in wanted:
        row, one = rows[i], known[rows[i].item]
        place, pixels, reason = one.place, str(one.pixels), one.reason
        if reason == FORGOTTEN:
            again += 1
        elif place is None:
            told = reason or "not prepared"
            problems.append(Problem(row.item, told, row.fields, row.copies, source.places[i], stamps[i]))
        elif forgotten(row.item, pixels):  # a copy that was prepared before the other one was forgotten
            back.append(row.item)
            again += 1
        elif no_copies and (number := first.setdefault(pixels, len(kept))) < len(kept):
            problems.append(Problem(row.item, f"pixels are those of {kept[number].item}"))
            kept[number] = replace(kept[number], copies=(*kept[number].copies, row.fields, *row.copies))
        else:
            kept.append(row)
            places.append(place)
            fingerprints.append(pixels)
    cache.purge(back)
    if not kept:
        raise DataError(f"no usable image in {data.where}; {len(problems)} skipped, the first: {problems[:1]}")
    return Scan(kept, problems, len(rows) - len(wanted) + again), Images(
        cache.images(), np.array(places, dtype=np.int64), fingerprints
    )


def _is_stale(known: Known | None, stamp: str, retry: bool) -> bool:
    return known is None or known.stamp != stamp or (retry and known.reason not in (None, FORGOTTEN))


_Made = tuple[NDArray[np.float32] | None, str, str | None]
"""A prepared image, the fingerprint of what it was made of, and why there is none."""


def _prepared(read: Callable[[Any], Decoded], data: DataSettings, batch: Sequence[tuple[int, Any]]) -> list[_Made]:
    """Read and prepare the images at the places of a batch."""
    made: list[_Made] = []
    for _, place in batch:
        try:
            decoded = read(place)
        except DataError as error:
            made.append((None, "", str(error)))
            continue
        made.append((prepare(decoded.image, data.size, data.channels, data.dims), decoded.pixels, None))
    return made


def _batches(items: Sequence[tuple[int, Any]]) -> Iterator[list[tuple[int, Any]]]:
    left = iter(items)
    while batch := list(islice(left, BATCH)):
        yield batch
