"""`site.toml`: what a site is, where its images are, and how little may leave it. Owned by the site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from excise.client.policy import LimitSettings, PolicySettings
from excise.common.invite import ADDRESS, SITE_NAME
from excise.common.settings import Settings
from excise.common.validation import read_toml

SEPARATOR = "|"
"""Between the labels of one image in a table, as in ``effusion|nodule``."""


class PacsSettings(Settings):
    """A PACS that images are fetched from, by DICOMweb (PS3.18): QIDO-RS and WADO-RS. Nothing is written to it."""

    url: str = Field(pattern=r"^https?://[^\s?#]+$")
    """Address of the service, such as ``https://pacs.hospital.example/dicom-web``."""
    search: Mapping[str, str] = {}
    """Which studies, by keywords and values of a QIDO-RS search, such as ``ModalitiesInStudy = "MR"``; all without."""
    user: str = ""
    secret: Path | None = None
    """A file: the password of `user`, or without one a bearer token; relative to site.toml."""
    ca: Path | None = None
    """Certificate of the authority that the PACS' is checked with, PEM; those of the system without. Relative to site.toml."""

    def __hash__(self) -> int:
        return hash((self.url, *sorted(self.search.items()), self.user, self.secret, self.ca))

    @model_validator(mode="after")
    def _secrets_are_kept(self) -> Self:
        if self.user and not self.secret:
            raise ValueError("user needs secret, a file that holds the password")
        return self


class DataSettings(Settings):
    """Where the images are and how they are prepared."""

    source: Literal["dicom", "dicomweb", "image-folder", "csv", "npz"] = "dicom"
    path: Path = Path()
    """Folder of images or DICOM files, or the npz file; relative to site.toml. Not of `dicomweb`."""
    pacs: PacsSettings | None = None
    """Of `dicomweb`: the PACS."""
    labels: Path | None = None
    """CSV of labels (`dicom`, `dicomweb`: SOPInstanceUID,label; `csv`: image,label and optional columns); relative to
    site.toml."""
    classes: tuple[str, ...]
    """Class names in the order of the logits; the same at every site. The names of the labels when `multi_label`."""
    multi_label: bool = False
    """Whether an image has any number of labels: `dicom` and `csv` name them in the column label, parted by ``|``, with
    nothing for none; `npz` holds 0 and 1, (N, labels)."""
    size: int = Field(32, ge=16)
    """Side of the prepared square or cubic image, pixels."""
    dims: Literal[2, 3] = 2
    """Spatial dimensions: 2 images, 3 volumes (`npz` only)."""
    channels: Literal[1, 3] = 1
    """1: grey images; 3: colour. DICOM files of the other kind are skipped."""
    frames: Literal["skip", "first", "middle"] = "skip"
    """What becomes of a DICOM file of several frames."""
    ct_window: tuple[float, float] = (40.0, 400.0)
    """Centre and width for CT, Hounsfield units; the same at every site. Other modalities have windows of their own."""
    patient_column: str = "patient"
    """Column of `csv` labels that names the patient; when absent every image is its own patient."""

    @property
    def is_dicom(self) -> bool:
        """Whether the images are DICOM, wherever they are."""
        return self.source in ("dicom", "dicomweb")

    @property
    def where(self) -> str:
        """Where the images are, for people."""
        return self.pacs.url if self.pacs else str(self.path)

    @model_validator(mode="after")
    def _have_a_place(self) -> Self:
        if (self.source == "dicomweb") != (self.pacs is not None):
            raise ValueError("source = 'dicomweb' needs pacs, the section [data.pacs] with its url; other sources have none")
        if self.source != "dicomweb" and "path" not in self.model_fields_set:
            raise ValueError(f"source = '{self.source}' needs path, where the images are")
        return self

    @model_validator(mode="after")
    def _volumes_are_arrays(self) -> Self:
        if self.dims == 3 and self.source != "npz":
            raise ValueError(f"dims = 3 needs source = 'npz': volumes are not read from '{self.source}'")
        return self

    @model_validator(mode="after")
    def _labels_can_be_told_apart(self) -> Self:
        if self.multi_label:
            check_labels(self.source, self.classes)
        return self


def check_labels(source: str, names: Sequence[str]) -> None:
    """Check that images of such a source can have any number of labels of these names.

    Raises
    ------
    ValueError : they cannot
    """
    if source not in ("dicom", "dicomweb", "dicom-sites", "csv", "npz"):
        raise ValueError(f"multi_label needs DICOM files, a csv or an npz: an image of '{source}' has one class")
    if odd := [name for name in names if SEPARATOR in name or name != name.strip() or not name]:
        raise ValueError(
            f"the label '{odd[0]}' is empty, or has a '{SEPARATOR}' or blanks around it, which part labels in a table"
        )


class SplitSettings(Settings):
    """Shares of patients; decided by a keyed hash, so that adding data moves nobody."""

    reference: float = Field(0.2, ge=0, lt=1)
    """Never trained on; calibrates the targets, and decides which round and which candidate are kept."""
    held_out: float = Field(0.2, ge=0, lt=1)
    """Never trained on; audits the model, and calibrates too: on a small reference alone, targets were 10 points off."""
    key: str = "excise"
    """Key of the hash. A hospital chooses its own secret; a simulation derives it from the seed."""

    @model_validator(mode="after")
    def _leaves_training(self) -> Self:
        if self.reference + self.held_out >= 1:
            raise ValueError("reference + held_out must leave patients to train on")
        return self


class CoordinatorSettings(Settings):
    """Where the coordinator is: `excise site join` writes it."""

    address: str = Field(pattern=ADDRESS)
    """Host and port of Flower's rounds."""
    api: str = Field(pattern=ADDRESS)
    """Host and port of the coordinator's own service."""
    key: str = Field(pattern=r"^[0-9a-f]{64}$")
    """The coordinator's signing key (Ed25519, hexadecimal), as it was when the site joined: models are checked with it."""
    ca: Path
    """Certificate of the authority that the coordinator's is checked with, PEM; relative to site.toml."""

    @property
    def host(self) -> str:
        """The name of its machine."""
        return self.address.rpartition(":")[0]

    @property
    def port(self) -> int:
        """The port of its server."""
        return int(self.address.rpartition(":")[2])


class ComputeSettings(Settings):
    """How this site runs models (`client/compute.py`). It changes results by rounding, and by a model's dropout."""

    precision: Literal["float32", "bfloat16", "auto"] = "float32"
    """`auto` measures both when a model first comes, takes the faster one, and keeps to it."""
    compile: bool = False
    """Whether models are compiled (torch.compile; needs a C++ compiler, or Triton on a GPU); pays off over many rounds."""


class SiteConfig(Settings):
    """One hospital."""

    name: str = Field(pattern=SITE_NAME)
    data: DataSettings
    coordinator: CoordinatorSettings | None = None
    """Absent until the site has joined one."""
    split: SplitSettings = SplitSettings()
    policy: PolicySettings = PolicySettings()
    """What is left out is not allowed: without a policy no request is carried out."""
    limits: LimitSettings = LimitSettings()
    models: tuple[str, ...] = ()
    """Import paths of models that the coordinator may name beside those of excise: each runs code that is installed here."""
    forgotten: tuple[str, ...] = ()
    """Predicates of requests that were carried out: what they match is used for nothing any more."""
    device: str = "auto"
    """`auto` takes a GPU when there is one; else a torch device such as `cpu` or `cuda:1`."""
    compute: ComputeSettings = ComputeSettings()
    state: Path = Path("state")
    """Folder for caches, teachers and logs; relative to site.toml. It may be deleted at any time."""

    @model_validator(mode="after")
    def _points_are_nameless(self) -> Self:
        if self.policy.embeddings and self.split.key == SplitSettings().key:
            raise ValueError("policy.embeddings needs a split.key of your own: the order of the points follows from it")
        return self

    @model_validator(mode="after")
    def _noise_is_secret(self) -> Self:
        if self.policy.privacy.noise_multiplier and self.split.key == SplitSettings().key:
            raise ValueError("policy.privacy.noise_multiplier needs a split.key of your own: the noise follows from it")
        return self


def read_site_config(path: Path) -> SiteConfig:
    """Read a `site.toml` and make its paths absolute.

    Raises
    ------
    ConfigError : no such file, not TOML, or a wrong key or value
    """
    config = read_toml(path, SiteConfig, "no site configuration")
    root = path.resolve().parent
    data = config.data.model_copy(
        update={"path": root / config.data.path, "labels": root / config.data.labels if config.data.labels else None}
    )
    if pacs := data.pacs:
        paths = {"secret": root / pacs.secret if pacs.secret else None, "ca": root / pacs.ca if pacs.ca else None}
        data = data.model_copy(update={"pacs": pacs.model_copy(update=paths)})
    coordinator = config.coordinator
    if coordinator:
        coordinator = coordinator.model_copy(update={"ca": root / coordinator.ca})
    return config.model_copy(update={"data": data, "state": root / config.state, "coordinator": coordinator})
