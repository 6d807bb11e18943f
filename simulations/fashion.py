"""Fashion-MNIST from Debian's package, for benchmarks: 60,000 training and 10,000 test images of ten classes, 28×28, grey."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from excise.common.errors import DataError

FOLDER = Path("/usr/share/datasets/fashion-mnist")


def read_fashion(part: str, folder: Path = FOLDER) -> tuple[Tensor, Tensor]:
    """Images, float32 (N, 1, 28, 28) in [0, 1], and labels, int64 (N,), of "train" or "t10k".

    Raises
    ------
    DataError : the package is not installed, or a file is not as its format says
    """
    try:
        raw = [gzip.decompress((folder / f"{part}-{kind}-ubyte.gz").read_bytes()) for kind in ("images-idx3", "labels-idx1")]
        images = np.frombuffer(raw[0], np.uint8, offset=16).reshape(-1, 28, 28)
        labels = np.frombuffer(raw[1], np.uint8, offset=8)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"no Fashion-MNIST in {folder} ({error}): apt-get install dataset-fashion-mnist") from error
    if len(images) != len(labels):
        raise DataError(f"{folder} holds {len(images)} images and {len(labels)} labels of '{part}'; install it anew")
    return torch.from_numpy(images.astype(np.float32) / 255).unsqueeze(1), torch.from_numpy(labels.astype(np.int64))
