"""The cache: what is kept comes back, what is purged is gone from the disk, and a killed process leaves it whole."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from excise.client.cache import ImageCache, Known, Prepared
from excise.common.errors import DataError

SHAPE = (1, 4, 4)


def image(value: float) -> np.ndarray:
    return np.full(SHAPE, value, np.float32)


def filled(folder: Path) -> ImageCache:
    cache = ImageCache(folder / "cache", SHAPE)
    cache.add([Prepared("a", "1", image(0.1), "x"), Prepared("b", "1", reason="broken"), Prepared("c", "2", image(0.3), "y")])
    return cache


def test_what_is_kept_comes_back(tmp_path: Path) -> None:
    filled(tmp_path)
    cache = ImageCache(tmp_path / "cache", SHAPE)
    known = cache.known()
    assert known["b"] == Known("1", None, None, "broken")
    assert [known[item].pixels for item in "ac"] == ["x", "y"]
    images = cache.images()
    for item, value in (("a", 0.1), ("c", 0.3)):
        place = known[item].place
        assert place is not None
        np.testing.assert_array_equal(images[place], image(value))
    assert len(ImageCache(tmp_path / "empty", SHAPE).images()) == 0


def test_an_item_that_changed_takes_its_own_place(tmp_path: Path) -> None:
    cache = filled(tmp_path)
    before = cache.known()
    cache.add([Prepared("a", "9", image(0.9), "z"), Prepared("d", "1", image(0.4), "w")])
    assert cache.known()["a"] == Known("9", before["a"].place, "z", None)
    assert np.fromfile(cache.path, "<f4").reshape(-1, 16)[:, 0].tolist() == pytest.approx([0.9, 0.3, 0.4])
    cache.add([Prepared("a", "10", reason="now it is broken")])
    assert 0.9 not in np.fromfile(cache.path, "<f4").round(3)


def test_what_is_purged_is_nowhere_any_more(tmp_path: Path) -> None:
    cache = ImageCache(tmp_path / "cache", SHAPE)
    cache.add([Prepared("CANARY-ITEM", "1", image(0.77), "CANARY-PIXELS"), Prepared("c", "2", image(0.3), "y")])
    assert cache.purge(["CANARY-ITEM", "nobody"]) == 1
    assert set(cache.known()) == {"c"}
    assert 0.77 not in np.fromfile(cache.path, "<f4").round(3)
    for path in tmp_path.iterdir():
        assert b"CANARY" not in path.read_bytes()
    cache.add([Prepared("e", "1", image(0.5), "v")])
    known = cache.known()
    assert [float(cache.images()[known[item].place, 0, 0, 0]) for item in "ce"] == pytest.approx([0.3, 0.5])


def test_several_may_add_at_once(tmp_path: Path) -> None:
    cache = ImageCache(tmp_path / "cache", SHAPE)

    def add(number: int) -> None:
        ImageCache(tmp_path / "cache", SHAPE).add([Prepared(f"{number}-{i}", "1", image(number), "x") for i in range(5)])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(12)))
    known, images = cache.known(), cache.images()
    assert len(known) == len(images) == 60
    for item, one in known.items():
        assert one.place is not None
        assert images[one.place, 0, 0, 0] == float(item.split("-")[0])


def test_a_damaged_cache_says_so(tmp_path: Path) -> None:
    (tmp_path / "cache.sqlite").write_bytes(b"damaged " * 1000)
    with pytest.raises(DataError, match=r"is damaged .*: delete it"):
        ImageCache(tmp_path / "cache", SHAPE)


WRITING = """
import sys
from pathlib import Path
import numpy as np
from excise.client.cache import ImageCache, Prepared
cache = ImageCache(Path(sys.argv[1]), (1, 4, 4))
for i in range(len(cache.known()), 10_000):
    cache.add([Prepared(str(i), "1", np.full((1, 4, 4), i, np.float32), str(i))])
    print(i, flush=True)
"""


def test_a_cache_whose_writer_was_killed_is_whole(tmp_path: Path) -> None:
    root = str(Path(__file__).parents[2])
    for attempt in range(5):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITING, str(tmp_path / "cache")],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": root},
        )
        assert writer.stdout is not None
        for _ in range(3):
            writer.stdout.readline()
        time.sleep(0.003 * attempt)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        cache = ImageCache(tmp_path / "cache", SHAPE)
        known, images = cache.known(), cache.images()
        assert len(known) >= 3 * (attempt + 1)
        for item, one in known.items():
            assert one.place is not None
            assert set(images[one.place].ravel().tolist()) == {float(item)}
