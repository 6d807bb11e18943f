"""Prepared images: square or cubic, of one size, float32 in [0, 1], cached beside the site's data.

The cache key covers the source's stamp (names, sizes, times), the preparation settings and the pipeline's version, so a
change of any of them prepares anew. Images that fail to load become problems and leave the table.
"""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from excise.client.config import DataSettings, SiteConfig
from excise.client.sources import Source, open_source
from excise.client.table import Problem, Scan
from excise.common.errors import DataError
from excise.common.files import write_atomically

PREPARATION = "square-1"
"""Part of the cache key: raise it when `prepare` changes."""


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
    x = F.pad(x, [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair])[None]  # last axis first
    if dims == 2:
        x = F.interpolate(x, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    elif size < side:
        x = F.interpolate(x, size=(size,) * 3, mode="area")  # the only one without aliasing that torch has for volumes
    else:
        x = F.interpolate(x, size=(size,) * 3, mode="trilinear", align_corners=False)
    return x[0].clamp(0, 1).numpy()


def load_images(config: SiteConfig) -> tuple[Scan, Tensor]:
    """Scan the site's data and return its usable rows with their prepared images, float32 (N, channels, size, size[, size]).

    Raises
    ------
    DataError : the source cannot be used, or no image is left
    StorageError : the cache cannot be written
    """
    source = open_source(config)
    cache = config.state / "images" / _key(source, config.data)
    if not cache.with_suffix(".json").exists():
        _write_cache(cache, source, config.data)
    bad = {int(i): reason for i, reason in json.loads(cache.with_suffix(".json").read_text()).items()}
    rows = [row for i, row in enumerate(source.scan.rows) if i not in bad]
    problems = [*source.scan.problems, *(Problem(source.scan.rows[i].item, reason) for i, reason in bad.items())]
    if not rows:
        raise DataError(f"no usable image in {config.data.path}; {len(problems)} skipped, the first: {problems[:1]}")
    return Scan(rows, problems), torch.from_numpy(np.load(cache.with_suffix(".npy")))


def _key(source: Source, data: DataSettings) -> str:
    text = f"{PREPARATION}|{data.size}|{data.dims}|{data.channels}|{source.stamp}|{[row.item for row in source.scan.rows]}"
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _write_cache(cache: Path, source: Source, data: DataSettings) -> None:
    """Write the images, then the list of failures: the list's presence says that the images are whole."""
    images, bad = [], {}
    for i in range(len(source.scan.rows)):
        try:
            images.append(prepare(source.load(i), data.size, data.channels, data.dims))
        except DataError as error:
            bad[i] = str(error)
    stacked = np.stack(images) if images else np.zeros((0, data.channels, *[data.size] * data.dims), np.float32)
    buffer = io.BytesIO()
    np.save(buffer, stacked)
    write_atomically(cache.with_suffix(".npy"), buffer.getvalue())
    write_atomically(cache.with_suffix(".json"), json.dumps(bad))
