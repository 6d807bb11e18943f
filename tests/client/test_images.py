"""Prepared images: always square and in [0, 1], prepared once, and never half of them."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from excise.client import images
from excise.client.config import DataSettings, SiteConfig, read_site_config
from excise.client.images import image_cache, load_images, prepare
from excise.client.table import Problem
from excise.common.errors import DataError, StorageError
from tests.dicoms import CLASSES, write_dicom, write_hospital

_side = st.integers(1, 40)
_shapes = st.tuples(_side, _side) | st.tuples(_side, _side, st.just(3))


@given(
    arrays.arrays(np.float32, _shapes, elements=st.sampled_from([0.0, 0.25, 1.0])),
    st.integers(16, 40),
    st.sampled_from([1, 3]),
)
def test_prepare_gives_a_square_in_0_1(image: np.ndarray, size: int, channels: int) -> None:
    prepared = prepare(image, size, channels)
    assert prepared.shape == (channels, size, size)
    assert prepared.dtype == np.float32
    assert 0 <= prepared.min() <= prepared.max() <= 1


def test_prepare_pads_with_black_in_the_middle() -> None:
    prepared = prepare(np.ones((16, 8), np.float32), 16, 1)
    assert prepared[0, :, 4:12].min() == 1
    assert prepared[0, :, :4].max() == prepared[0, :, 12:].max() == 0


def test_prepare_leaves_a_fitting_image_alone_and_keeps_the_mean_of_others() -> None:
    image = np.random.default_rng(0).random((32, 32), np.float32)
    np.testing.assert_allclose(prepare(image, 32, 1)[0], image, atol=1e-6)
    assert prepare(image, 16, 1).mean() == pytest.approx(image.mean(), abs=0.01)


def test_prepare_turns_grey_into_colour_and_back() -> None:
    grey = np.full((16, 16), 0.5, np.float32)
    np.testing.assert_allclose(prepare(grey, 16, 3), np.full((3, 16, 16), 0.5))
    colour = np.dstack([np.full((16, 16), v, np.float32) for v in (0.0, 0.3, 0.6)])
    np.testing.assert_allclose(prepare(colour, 16, 1), np.full((1, 16, 16), 0.3), atol=1e-6)
    np.testing.assert_allclose(prepare(colour, 16, 3)[:, 0, 0], [0, 0.3, 0.6], atol=1e-6)


_volumes = st.tuples(_side, _side, _side) | st.tuples(_side, _side, _side, st.just(3))


@given(
    arrays.arrays(np.float32, _volumes, elements=st.sampled_from([0.0, 0.25, 1.0])),
    st.integers(16, 24),
    st.sampled_from([1, 3]),
)
@settings(max_examples=30)
def test_prepare_gives_a_cube_in_0_1(volume: np.ndarray, size: int, channels: int) -> None:
    prepared = prepare(volume, size, channels, dims=3)
    assert prepared.shape == (channels, size, size, size)
    assert prepared.dtype == np.float32
    assert 0 <= prepared.min() <= prepared.max() <= 1


def test_prepare_pads_a_volume_in_the_middle_of_its_short_axis() -> None:
    prepared = prepare(np.ones((8, 16, 16), np.float32), 16, 1, dims=3)[0]
    assert prepared[4:12].min() == 1
    assert prepared[:4].max() == prepared[12:].max() == 0


def test_prepare_leaves_a_fitting_volume_alone_and_keeps_the_mean_of_others() -> None:
    volume = np.random.default_rng(0).random((32, 32, 32), np.float32)
    np.testing.assert_array_equal(prepare(volume, 32, 1, dims=3)[0], volume)
    np.testing.assert_allclose(
        prepare(volume, 16, 1, dims=3)[0], volume.reshape(16, 2, 16, 2, 16, 2).mean(axis=(1, 3, 5)), atol=1e-6
    )


@pytest.fixture
def config(tmp_path: Path) -> SiteConfig:
    for i in range(4):
        path = tmp_path / "images" / CLASSES[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((20, 20), 40 * (i + 1), np.uint8)).save(path)
    data = DataSettings(source="image-folder", path=tmp_path / "images", classes=CLASSES, size=16)
    return SiteConfig(name="site-1", data=data, state=tmp_path / "state")


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Sizes of all images that were prepared."""
    sizes: list[int] = []

    def counting(image: np.ndarray, size: int, channels: int, dims: int) -> np.ndarray:
        sizes.append(size)
        return prepare(image, size, channels, dims)

    monkeypatch.setattr(images, "prepare", counting)
    return sizes


def test_images_stand_in_the_order_of_the_rows(config: SiteConfig) -> None:
    scan, x = load_images(config)
    assert [row.item for row in scan.rows] == ["clear/0.png", "clear/2.png", "ill/1.png", "ill/3.png"]
    np.testing.assert_allclose(x[:][:, 0, 8, 8].numpy(), np.array([40, 120, 80, 160]) / 255, atol=1e-6)


def test_the_cache_is_used_again(config: SiteConfig, prepared: list[int]) -> None:
    _, first = load_images(config)
    assert prepared == [16] * 4
    scan, second = load_images(config)
    assert len(prepared) == 4
    assert len(scan.rows) == 4
    np.testing.assert_array_equal(first[:].numpy(), second[:].numpy())


def test_another_size_channel_or_version_prepares_anew(
    config: SiteConfig, prepared: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    load_images(config)
    for update in ({"size": 24}, {"channels": 3}):
        load_images(config.model_copy(update={"data": config.data.model_copy(update=update)}))
    assert prepared == [16] * 4 + [24] * 4 + [16] * 4
    monkeypatch.setattr(images, "PREPARATION", "square-2")
    load_images(config)
    assert len(prepared) == 16


def test_a_file_that_changed_is_prepared_anew_and_no_other(config: SiteConfig, prepared: list[int]) -> None:
    load_images(config)
    path = config.data.path / "ill" / "3.png"
    Image.fromarray(np.full((20, 20), 255, np.uint8)).save(path)
    os.utime(path, ns=(1, 1))
    _, x = load_images(config)
    assert len(prepared) == 5
    assert x[torch.tensor([3])].min() > 0.999


def test_an_unreadable_image_leaves_the_table_with_its_reason(config: SiteConfig) -> None:
    (config.data.path / "clear" / "2.png").write_bytes(b"no picture")
    for _ in range(2):  # the second time out of the cache
        scan, x = load_images(config)
        assert [row.item for row in scan.rows] == ["clear/0.png", "ill/1.png", "ill/3.png"]
        np.testing.assert_allclose(x[:][:, 0, 8, 8].numpy(), np.array([40, 80, 160]) / 255, atol=1e-6)
        (problem,) = scan.problems
        assert problem.item == "clear/2.png"
        assert "not a readable image" in problem.reason


def test_no_readable_image_at_all(config: SiteConfig) -> None:
    for path in config.data.path.rglob("*.png"):
        path.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"no usable image in .*; 4 skipped, the first: .*not a readable image"):
        load_images(config)


def test_no_image_at_all(config: SiteConfig) -> None:
    for path in config.data.path.rglob("*.png"):
        path.unlink()
    with pytest.raises(DataError, match="no usable image"):
        load_images(config)


def test_a_full_disk_leaves_what_was_kept_before(
    config: SiteConfig, prepared: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "BATCH", 2)
    synced = 0

    def full(_: int) -> None:
        nonlocal synced
        synced += 1
        if synced == 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match=r"No space left on device\. Free space"):
            load_images(config)
    assert len(prepared) == 4
    scan, x = load_images(config)
    assert len(prepared) == 6
    assert len(scan.rows) == len(x) == 4
    np.testing.assert_allclose(x[:][:, 0, 8, 8].numpy(), np.array([40, 120, 80, 160]) / 255, atol=1e-6)


def test_progress_is_told(config: SiteConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "BATCH", 3)
    told: list[tuple[int, int]] = []
    load_images(config, lambda *done: told.append(done))
    load_images(config, lambda *done: told.append(done))
    assert told == [(3, 4), (4, 4)]


def test_images_that_left_the_site_leave_the_cache(config: SiteConfig) -> None:
    load_images(config)
    (config.data.path / "ill" / "3.png").unlink()
    load_images(config)
    assert set(image_cache(config).known()) == {"clear/0.png", "clear/2.png", "ill/1.png"}
    (records,) = (config.state / "images").glob("*.images")
    values = np.fromfile(records, "<f4").reshape(4, -1)
    assert (values.max(1) > 0).tolist() == [True, True, True, False]


def test_several_processes_prepare_what_one_prepares(config: SiteConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    _, alone = load_images(config)
    monkeypatch.setattr(images, "BATCH", 1)
    monkeypatch.setattr(images, "PARALLEL_FROM", 1)
    scan, together = load_images(config.model_copy(update={"state": config.state / "other"}))
    assert len(scan.rows) == 4
    assert torch.equal(alone[:], together[:])


def test_a_copy_under_another_uid_is_left_out(tmp_path: Path) -> None:
    site = write_hospital(tmp_path, patients=6)
    pixels = pydicom.dcmread(tmp_path / "images" / "1.2.3.2.dcm").pixel_array
    copied = {"WindowCenter": "2000", "WindowWidth": "4000", "StationName": "MR9"}
    write_dicom(tmp_path / "images" / "z.dcm", pixels, "1.2.9", "P9", **copied)
    labels = tmp_path / "labels.csv"
    labels.write_text(labels.read_text() + f"1.2.9,{CLASSES[0]}\n")
    scan, x = load_images(read_site_config(site))
    assert len(scan.rows) == len(x) == 6
    assert scan.problems == [Problem("1.2.9", "pixels are those of 1.2.3.2")]
