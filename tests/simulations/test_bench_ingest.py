"""The benchmark of ingest: every way gives the same images, and the page says what was measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from excise.client.images import load_images
from excise.simulations.bench import ingest
from excise.simulations.bench.ingest import Decoding, Indexed, Rates
from excise.simulations.bench.ingest_page import write_ingest_page


@pytest.mark.filterwarnings("ignore")  # MONAI's own
@pytest.mark.parametrize("name", ingest.SYNTAXES)
def test_every_way_is_measured_on_the_same_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    if name != "RLE":  # seconds to start two processes, which decode one as the other
        monkeypatch.setattr(ingest, "_two_at_once", lambda _: 1.0)
    config = ingest.write_files(tmp_path, 6, ingest.SYNTAXES[name])
    found = ingest.images(config, 1)
    for rates in (found.cold, found.warm):
        assert min(rates.plain, rates.excise, rates.monai) > 0
    assert sum(found.shares.values()) == pytest.approx(1)
    assert min(found.shares.values()) > 0
    assert found.two > 0
    scan, x = load_images(config)
    plain = {path.stem: ingest._plainly(path) for path in config.data.path.rglob("*.dcm")}
    assert len(scan.rows) == 6
    for i, row in enumerate(scan.rows):
        np.testing.assert_allclose(x[:][i].numpy(), plain[str(int(row.item.split(".")[-1]) - 1)], atol=1e-5)


def test_headers_and_memory_are_measured(tmp_path: Path) -> None:
    rates = ingest.headers(tmp_path / "speed", 20, 1)
    assert min(rates.plain, rates.excise) > 0
    found = ingest.indexed(tmp_path / "memory", 1200)
    assert found.files == 1200
    assert found.again < found.seconds
    assert 20 < found.megabytes < 500


def test_the_page_judges_what_was_measured(tmp_path: Path) -> None:
    good, bad = Rates(100.0, 400.0), Rates(100.0, 250.0, 80.0)
    decoded = Decoding(bad, Rates(100.0, 9000.0, 3000.0), {"decoder": 0.75, "the rest": 0.25}, 1.28)
    write_ingest_page(tmp_path / "a.md", (9, 20), good, {"RLE": decoded}, Indexed(9, 1.0, 0.1, 501.0), 2.5)
    text = (tmp_path / "a.md").read_text()
    assert [line.rsplit("|", 2)[1].strip() for line in text.splitlines() if "at least" in line or "less than" in line] == [
        "yes",
        "**no**",
        "yes",
        "**no**",
    ]
    assert "| RLE, cold | 100 | 80 | 250 | 2.5 |" in text
    assert "| headers | 100 | – | 400 | 4.0 |" in text
    assert "| RLE | 75% | 25% | 1.28 |" in text
    assert ingest.start_seconds() > 0
