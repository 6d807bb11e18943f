"""Reading Fashion-MNIST as Debian packs it."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from excise.common.errors import DataError
from excise.simulations.fashion import read_fashion


def write(folder: Path, images: int, labels: int) -> Path:
    rng = np.random.default_rng(0)
    pixels, classes = rng.integers(0, 256, (images, 28, 28), np.uint8), rng.integers(0, 10, labels, np.uint8)
    for name, header, content in (
        ("train-images-idx3-ubyte.gz", struct.pack(">4i", 2051, images, 28, 28), pixels.tobytes()),
        ("train-labels-idx1-ubyte.gz", struct.pack(">2i", 2049, labels), classes.tobytes()),
    ):
        (folder / name).write_bytes(gzip.compress(header + content))
    return folder


def test_images_and_labels(tmp_path: Path) -> None:
    x, y_N = read_fashion("train", write(tmp_path, 12, 12))
    assert (x.shape, x.dtype, y_N.shape, y_N.dtype) == ((12, 1, 28, 28), torch.float32, (12,), torch.int64)
    first = np.random.default_rng(0).integers(0, 256, (12, 28, 28), np.uint8)
    torch.testing.assert_close(x[:, 0], torch.from_numpy(first / np.float32(255)))


def test_what_is_missing_or_broken_is_told_with_its_remedy(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="apt-get install dataset-fashion-mnist"):
        read_fashion("train", tmp_path)
    write(tmp_path, 12, 11)
    with pytest.raises(DataError, match="12 images and 11 labels"):
        read_fashion("train", tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="apt-get install"):
        read_fashion("train", tmp_path)
