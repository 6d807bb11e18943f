"""Prepared images: square, of one size, float32 in [0, 1], cached beside the site's data.

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


def prepare(image: NDArray[np.float32], size: int, channels: int) -> NDArray[np.float32]:
    """Pad to a square with black, then shrink or enlarge with antialiasing; float32 (channels, size, size) in [0, 1]."""
    x = torch.from_numpy(np.atleast_3d(image)).permute(2, 0, 1)
    if x.shape[0] != channels:
        x = x.mean(0, keepdim=True).expand(channels, -1, -1)
    height, width = x.shape[1:]
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    x = F.pad(x, (left, side - width - left, top, side - height - top))
    x = F.interpolate(x[None], size=(size, size), mode="bilinear", antialias=True, align_corners=False)[0]
    return x.clamp(0, 1).numpy()


def load_images(config: SiteConfig) -> tuple[Scan, Tensor]:
    """Scan the site's data and return its usable rows with their prepared images, float32 (N, channels, size, size).

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
    text = f"{PREPARATION}|{data.size}|{data.channels}|{source.stamp}|{[row.item for row in source.scan.rows]}"
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _write_cache(cache: Path, source: Source, data: DataSettings) -> None:
    """Write the images, then the list of failures: the list's presence says that the images are whole."""
    images, bad = [], {}
    for i in range(len(source.scan.rows)):
        try:
            images.append(prepare(source.load(i), data.size, data.channels))
        except DataError as error:
            bad[i] = str(error)
    stacked = np.stack(images) if images else np.zeros((0, data.channels, data.size, data.size), np.float32)
    buffer = io.BytesIO()
    np.save(buffer, stacked)
    write_atomically(cache.with_suffix(".npy"), buffer.getvalue())
    write_atomically(cache.with_suffix(".json"), json.dumps(bad))
