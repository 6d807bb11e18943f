"""Making a site: its commented `site.toml`, and its keys, which never leave."""

from __future__ import annotations

import json
import secrets
import tomllib
from collections.abc import Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from pydantic import ValidationError

from excise import __version__
from excise.client.config import SiteConfig, read_site_config
from excise.client.policy import Metric
from excise.common.bundle import bundle_digest
from excise.common.errors import ConfigError
from excise.common.files import write_atomically
from excise.common.request import RequestKind
from excise.common.signing import make_key, write_secret
from excise.common.validation import explain

NODE_KEY, SIGNING_KEY = "node", "signing.pem"
"""Files in the folder ``keys``: Flower knows the site by the first; decisions are signed with the second."""


def init(
    folder: Path, name: str, source: str, where: str, labels: Path | None, classes: Sequence[str], multi_label: bool = False
) -> SiteConfig:
    """Write ``folder/site.toml`` and the site's keys; `where` is the images' path, or the address of a PACS.

    Raises
    ------
    ConfigError : there is a site already, or a value cannot be used; nothing was written
    StorageError : a file cannot be written
    """
    check_is_new(folder)
    toml = folder / "site.toml"
    text = TEMPLATE.format(
        name=json.dumps(name),
        source=json.dumps(source),
        path='# path = "images"' if source == "dicomweb" else f"path = {json.dumps(where)}",
        pacs=PACS.format(url=json.dumps(where)) if source == "dicomweb" else "",
        labels=f"labels = {json.dumps(str(labels))}" if labels else '# labels = "labels.csv"',
        classes=json.dumps(list(classes), ensure_ascii=False),
        multi_label=json.dumps(multi_label),
        kinds=json.dumps([*RequestKind]),
        metrics=json.dumps([*Metric]),
        release=__version__,
        bundle=bundle_digest(),
        split_key=secrets.token_hex(16),
    )
    try:
        SiteConfig.model_validate(tomllib.loads(text))
    except ValidationError as error:
        raise ConfigError(explain(error, SiteConfig, str(toml))) from error
    write_atomically(toml, text)
    config = read_site_config(toml)
    for key, make in ((SIGNING_KEY, make_key), (NODE_KEY, make_node_key)):
        if not (folder / "keys" / key).exists():
            make(folder / "keys" / key)
    return config


def check_is_new(folder: Path) -> None:
    """Let a folder pass in which no site is.

    Raises
    ------
    ConfigError : there is one
    """
    if (toml := folder / "site.toml").exists():
        raise ConfigError(f"{toml} exists already: edit it, or choose another folder")


def make_node_key(path: Path) -> None:
    """A key that Flower accepts, ECDSA on P-384 in OpenSSH's form, and its public part beside it, to be registered.

    Raises
    ------
    ConfigError : there is a key already; it is never overwritten
    StorageError : it cannot be written
    """
    key = ec.generate_private_key(ec.SECP384R1())
    write_secret(path, key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    write_atomically(path.with_suffix(".pub"), public + b"\n")


PACS = """
[data.pacs]                    # read by DICOMweb; nothing is written to it
url = {url}
# search = {{ ModalitiesInStudy = "MR", StudyDate = "20200101-20241231" }}   # which studies; all without
# user = "excise"              # and its password in the file below; without a user the file holds a bearer token
# secret = "keys/pacs"
# ca = "pacs-ca.crt"           # where the hospital has an authority of its own
"""
TEMPLATE = """\
# A site of excise. You own this file: what it does not allow is not done, whatever the coordinator asks.
name = {name}                  # letters, digits and hyphens; the coordinator's people see it

[data]
source = {source}              # dicom, dicomweb, image-folder, csv or npz
{path}                         # absolute, or relative to this file
{labels}                       # the same; dicom, dicomweb: SOPInstanceUID,label   csv: image,label and patient
classes = {classes}            # the same, in the same order, at every site
multi_label = {multi_label}    # whether an image has any number of labels, "a|b" in the table
size = 32                      # pixels of the prepared image: what the model wants
channels = 1                   # 1 grey, 3 colour; images of the other kind are skipped
# frames = "middle"            # use one frame of multi-frame files; without it they are skipped
# ct_window = [40, 400]        # centre and width, Hounsfield units; the same at every site
{pacs}
[split]                        # shares of patients that are never trained on; adding data moves nobody
reference = 0.2                # calibrates: min_count images and more are needed in it
held_out = 0.2                 # judges the result; as many
key = "{split_key}"  # decides who they are: keep it, and keep it secret

[policy]                       # fail closed: what is left out is not allowed
kinds = {kinds}
approval = true                # a person approves each request: excise site approve
min_count = 10                 # nothing that is measured on fewer images leaves; numbers of images are rounded up to it
profiles = true                # means of losses over groups of images may leave; unlearning patients or devices needs them
metrics = {metrics}  # measured numbers that may leave
# embeddings = true            # a point for each of some hundreds of images may leave: where models put it on a coarse plane
training = false               # ordinary federated training
releases = ["{release}"]       # of excise that may run here
bundles = ["{bundle}"]  # Flower's bundle of this release: it names the code installed here
# hours = ["20:00", "06:00"]   # when rounds are answered, local time

[policy.privacy]               # of the change of the model's weights; off as it stands here, and each costs quality
# clip = 0.15                  # largest norm of an update; docs/results/privacy.md says how long updates are
# noise_multiplier = 1.0       # Gaussian noise on every number of it, in units of clip
# keep_share = 0.1             # only the largest tenth of its numbers leaves
# delta = 1e-5                 # excise site status tells ε at this δ, of all updates that ever left with noise
# max_epsilon = 50             # a round that would exceed it is refused

[limits]
rounds = 200                   # of one request, in all its runs and for all its candidates
steps = 1000                   # gradient steps of one round
seconds = 3600                 # of one round
gpu_share = 1.0                # of the GPU's memory

[compute]
precision = "float32"          # bfloat16, or auto: measured once on this machine, the faster one kept
compile = false
"""
