"""A PACS as a site's source: what Orthanc gives by DICOMweb is what the files are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
import torch
from pydicom.data import get_testdata_file

from excise.client.config import SiteConfig, read_site_config
from excise.client.dicom.folder import Folder
from excise.client.dicom.headers import KEYWORDS, read_header
from excise.client.dicom.index import Index
from excise.client.dicom.web import Pacs
from excise.client.forgetting import forget_for_good
from excise.client.images import load_images
from excise.client.site import open_site
from excise.client.sources import index_of
from excise.common.errors import DataError
from excise.common.request import ForgetRequest, RequestKind
from tests.dicoms import CLASSES, write_dicom, write_hospital, write_site_toml
from tests.pacs import PASSWORD, USER, Orthanc, orthanc

SHIPPED = [
    *("CT_small.dcm", "MR_small.dcm", "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "JPEG2000.dcm"),
    *("MR_small_jpeg_ls_lossless.dcm", "MR_small_bigendian.dcm", "SC_rgb_rle.dcm", "rtplan.dcm"),
]
DEVICE = ForgetRequest(id="mr7", kind=RequestKind.DEVICE, where="StationName = MR7", reason="retired")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with orthanc(tmp_path_factory.mktemp("pacs") / "orthanc") as made:
        yield made


@pytest.fixture
def pacs(running: Orthanc) -> Iterator[Orthanc]:
    """An empty one."""
    yield running
    running.clear()


@pytest.fixture
def site(tmp_path: Path, pacs: Orthanc) -> Path:
    """A hospital of 12 files, in a folder and in the PACS."""
    write_hospital(tmp_path, patients=12)
    for path in sorted((tmp_path / "images").iterdir()):
        pacs.store(path)
    (tmp_path / "password").write_text(f"{PASSWORD}\n")
    return write_pacs_site(tmp_path, pacs)


def write_pacs_site(folder: Path, pacs: Orthanc, **settings: Any) -> Path:
    section = {"url": pacs.url, "user": USER, "secret": "password"} | settings
    return write_site_toml(folder, data={"source": "dicomweb", "labels": "labels.csv", "pacs": section})


def in_folder(config: SiteConfig) -> SiteConfig:
    data = config.data.model_copy(update={"source": "dicom", "pacs": None, "path": config.state.parent / "images"})
    return config.model_copy(update={"data": data, "state": config.state.parent / "other-state"})


def test_headers_are_those_of_the_files(pacs: Orthanc, tmp_path: Path) -> None:
    paths = {}
    for name in SHIPPED:
        path = Path(str(get_testdata_file(name, download=False)))
        pacs.store(path)
        values = read_header(path)
        assert not isinstance(values, str)
        paths[values[KEYWORDS.index("SOPInstanceUID")]] = values
    (tmp_path / "password").write_text(PASSWORD)
    config = read_site_config(write_pacs_site(tmp_path, pacs))
    found = index_of(config)
    assert found.scan().found == len(paths)
    assert {header["SOPInstanceUID"]: header.values_ for _, _, header in found.headers()} == paths


def test_images_are_those_of_the_files(site: Path) -> None:
    config = read_site_config(site)
    scan, x = load_images(config)
    other, y = load_images(in_folder(config))
    order = [[row.item for row in other.rows].index(row.item) for row in scan.rows]
    assert len(order) == 12
    torch.testing.assert_close(x[:], y[torch.tensor(order)], rtol=0, atol=0)
    fields = [{name: row.fields[name] for name in row.fields} for row in scan.rows]
    assert fields == [{name: other.rows[i].fields[name] for name in other.rows[i].fields} for i in order]


def test_only_what_is_new_is_asked_for_and_what_is_gone_goes(site: Path, pacs: Orthanc, tmp_path: Path) -> None:
    found = index_of(read_site_config(site))
    first = found.scan()
    assert (first.found, first.read, first.gone) == (12, 12, 0)
    assert found.scan().read == 0
    pixels = torch.arange(256, dtype=torch.int32).reshape(16, 16).numpy().astype("uint16")
    name = pacs.store(write_dicom(tmp_path / "new", pixels, "1.2.4.1"))
    again = found.scan()
    assert (again.found, again.read, again.gone) == (13, 1, 0)
    pacs.delete(name)
    last = found.scan()
    assert (last.found, last.read, last.gone) == (12, 0, 1)


def test_a_search_narrows_it(site: Path, pacs: Orthanc) -> None:
    narrow = Pacs(read_site_config(site).data.pacs.model_copy(update={"search": {"PatientID": "CANARY-PATIENT-3"}}))  # type: ignore[union-attr]
    assert len(list(narrow.walk())) == 1


def test_a_wrong_password_and_a_lost_pacs_keep_what_was_indexed(
    site: Path, pacs: Orthanc, tmp_path: Path, excise: Callable[..., Any]
) -> None:
    assert excise("site", "scan", "--site", site)[0] == 0
    (tmp_path / "password").write_text("wrong")
    (tmp_path / "password").rename(tmp_path / "other")
    write_pacs_site(tmp_path, pacs, secret="other")
    code, _, err = excise("site", "scan", "--site", site)
    assert code == 2
    assert "answers with 401: look at data.pacs.user and secret" in err
    found = index_of(read_site_config(site))
    assert len(list(found.headers())) == 12
    gone = Index(found.database, Pacs(read_site_config(site).data.pacs))  # type: ignore[arg-type]
    with pytest.raises(DataError):
        gone.scan()
    assert len(list(found.headers())) == 12
    assert Index(found.database, Folder(tmp_path)).whole is False


def test_a_site_works_from_it_and_forgets(site: Path, pacs: Orthanc, tmp_path: Path, excise: Callable[..., Any]) -> None:
    code, out, err = excise("site", "scan", "--site", site)
    assert code == 0, err
    assert "12 images of 12 patients; 0 skipped" in out
    (tmp_path / "mr7.toml").write_text(DEVICE.to_toml())
    code, out, err = excise("site", "dry-run", tmp_path / "mr7.toml", "--site", site)
    assert code == 0, err
    assert "'mr7' matches 4 images here" in out
    assert forget_for_good(site, DEVICE, "N").images == 4
    pacs.store(
        write_dicom(tmp_path / "again", _pixels(tmp_path / "images" / "1.2.3.1.dcm"), "1.2.4.7", "P", StationName="MR1")
    )
    with (tmp_path / "labels.csv").open("a") as file:
        file.write(f"1.2.4.7,{CLASSES[0]}\n")
    index_of(read_site_config(site)).scan()
    open_site.cache_clear()
    after = open_site(site)
    assert (len(after.scan.rows), after.forgotten) == (8, 5)


def _pixels(path: Path) -> Any:
    return pydicom.dcmread(path).pixel_array


def test_the_doctor_asks_it(site: Path, pacs: Orthanc, tmp_path: Path, excise: Callable[..., Any]) -> None:
    _, out, _ = excise("site", "doctor", "--site", site)
    assert f"✓ PACS: {pacs.url} answers\n" in out
    assert "– PACS' TLS: none" in out
    write_pacs_site(tmp_path, pacs, search={"PatientID": "NOBODY"})
    _, out, _ = excise("site", "doctor", "--site", site)
    assert "✗ PACS" in out
    assert "knows no image that data.pacs.search finds" in out
    write_pacs_site(tmp_path, pacs, url="http://127.0.0.1:1/dicom-web")
    _, out, _ = excise("site", "doctor", "--site", site)
    assert "does not answer (ConnectionError)" in out
