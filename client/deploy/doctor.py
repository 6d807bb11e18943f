"""`excise site doctor`: everything that has to be right before a site answers a round, each with its remedy."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from http.client import HTTPException, HTTPSConnection
from pathlib import Path

import pydicom.data
import torch
from cryptography import x509
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    JPEG2000,
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from excise.client.compute import device_of
from excise.client.config import SiteConfig, SplitSettings, read_site_config
from excise.client.coordinator import IDENTITY, CoordinatorRefused, CoordinatorSilent, PromotedModel, connected
from excise.client.dicom.pixels import Rules, decode
from excise.client.dicom.web import Pacs
from excise.client.forgotten import Register
from excise.client.joining import keys_of
from excise.client.promoted import in_use
from excise.client.setup import NODE_KEY, SIGNING_KEY
from excise.client.sources import index_of, open_source
from excise.client.table import Split
from excise.common.bundle import bundle_digest
from excise.common.errors import ConfigError, ExciseError, MessageError

FREE = 2 * 2**30
"""Bytes that have to be free beside the state: a model of half a gigabyte, twice, and room to work."""
GPU_FREE = 2 * 2**30
"""Bytes of a GPU that should be free: a model of half a gigabyte, its gradients, its momentum, and room to work."""
CLOCK = timedelta(minutes=2)
"""Most that the clock may differ from the coordinator's: certificates and Flower's signatures are refused beyond."""
SECRET = 16
"""Characters that the site's secret has at least."""
EXPIRES = timedelta(days=14)
SELF_TESTS: dict[UID, str | None] = {
    ExplicitVRLittleEndian: "MR_small.dcm",
    ImplicitVRLittleEndian: "MR_small_implicit.dcm",
    ExplicitVRBigEndian: "MR_small_bigendian.dcm",
    RLELossless: "MR_small_RLE.dcm",
    JPEG2000Lossless: "MR_small_jp2klossless.dcm",
    JPEG2000: "JPEG2000.dcm",
    JPEGLSLossless: "MR_small_jpeg_ls_lossless.dcm",
    JPEGLSNearLossless: "JPEGLSNearLossless_16.dcm",
    JPEGBaseline8Bit: "SC_rgb_jpeg_dcmtk.dcm",
    JPEGLosslessSV1: None,
    JPEGLossless: None,
}
"""Transfer syntaxes that a site has to decode, each with a file of pydicom's that shows it; of two none is shipped."""


@dataclass(frozen=True)
class Finding:
    """One check.

    Attributes
    ----------
    name : what was looked at
    good : whether it is right; None when it could not be looked at, or is not needed
    told : what was found
    remedy : what to do, when it is not right
    required : whether the site may not start without it
    """

    name: str
    good: bool | None
    told: str
    remedy: str = ""
    required: bool = True


def examine(site_toml: Path) -> Iterator[Finding]:
    """Check everything, in an order in which the first fault explains those after it."""
    try:
        config = read_site_config(site_toml)
    except ExciseError as error:
        yield Finding("site.toml", False, str(error), "correct it, or make one with excise site init")
        return
    yield Finding("site.toml", True, f"site '{config.name}'")
    checks: list[Callable[[], Iterator[Finding]]] = [
        lambda: _keys(site_toml.parent),
        lambda: _secret(config),
        lambda: _policy(config),
        lambda: _bundle(config),
        lambda: _disk(config),
        _decoders,
        lambda: _pacs(config),
        lambda: _images(site_toml.parent, config),
        lambda: _device(config),
        lambda: _coordinator(config),
        lambda: _service(site_toml.parent, config),
    ]
    for check in checks:
        yield from check()


def _keys(folder: Path) -> Iterator[Finding]:
    for name in (NODE_KEY, SIGNING_KEY):
        path = folder / "keys" / name
        if not path.exists():
            yield Finding(
                f"key {name}", False, f"none at {path}", "make it with excise site init, in a new folder, and move it here"
            )
        elif (mode := stat.S_IMODE(path.stat().st_mode)) & 0o077:
            yield Finding(f"key {name}", False, f"others may read it (mode {mode:o})", f"chmod 600 {path}")
        else:
            yield Finding(f"key {name}", True, "there, readable by its owner alone")


def _secret(config: SiteConfig) -> Iterator[Finding]:
    own = config.split.key != SplitSettings().key and len(config.split.key) >= SECRET
    told = "of your own" if own else "known to everybody, or too short"
    yield Finding(
        "split.key", own, told, f"{SECRET} random characters or more, chosen once and kept; excise site init makes them"
    )


def _policy(config: SiteConfig) -> Iterator[Finding]:
    policy = config.policy
    if not policy.kinds:
        yield Finding("policy", False, "no kind of request is allowed", "name some in policy.kinds")
    else:
        approval = "each approved by a person" if policy.approval else "WITHOUT anybody's approval"
        told = ", ".join(policy.metrics) or "no measured number"
        profiles = " and losses of groups" if policy.profiles else ""
        yield Finding(
            "policy",
            True,
            f"requests of kind {', '.join(policy.kinds)}, {approval}; {told}{profiles} may leave",
        )


def _bundle(config: SiteConfig) -> Iterator[Finding]:
    digest = bundle_digest()
    told = "that of this release is allowed" if digest in config.policy.bundles else "that of this release is not allowed"
    yield Finding(
        "bundle", digest in config.policy.bundles, told, f'bundles = ["{digest}"] under [policy], if it may run here'
    )


def _disk(config: SiteConfig) -> Iterator[Finding]:
    at = config.state
    while not at.exists():
        at = at.parent
    free = shutil.disk_usage(at).free
    yield Finding(
        "disk", free >= FREE, f"{free / 2**30:.1f} GB free beside the state", f"free {FREE / 2**30:g} GB, or move `state`"
    )
    if not os.access(at, os.W_OK):
        yield Finding("state", False, f"{at} cannot be written", "let the user who runs excise write there")


def _decoders() -> Iterator[Finding]:
    for syntax, example in SELF_TESTS.items():
        name = f"decoder {syntax.name}"
        decoder = get_decoder(syntax)
        if not decoder.is_available:
            yield Finding(name, False, "no decoder", f"install {', '.join(decoder.missing_dependencies)}")
            continue
        path = pydicom.data.get_testdata_file(example, download=False) if example else None
        if path is None:
            yield Finding(name, True, "there")
            continue
        try:
            decode(Path(str(path)), Rules(colour=str(example).startswith("SC_rgb")))
        except ExciseError as error:
            yield Finding(name, False, str(error), "reinstall excise, with its dependencies")
        else:
            yield Finding(name, True, "decodes")


def _pacs(config: SiteConfig) -> Iterator[Finding]:
    if config.data.pacs is None:
        return
    url = config.data.pacs.url
    try:
        found = next(Pacs(config.data.pacs).walk(), None)
    except ExciseError as error:
        yield Finding("PACS", False, f"{url}: {error}", "correct [data.pacs] in site.toml, or ask those who run it", False)
        return
    told = f"{url} answers" if found else f"{url} answers, and knows no image that data.pacs.search finds"
    yield Finding("PACS", bool(found), told, "correct data.pacs.search in site.toml", required=False)
    if (secret := config.data.pacs.secret) and (mode := stat.S_IMODE(secret.stat().st_mode)) & 0o077:
        yield Finding("PACS' secret", False, f"others may read it (mode {mode:o})", f"chmod 600 {secret}")
    if url.startswith("http://"):
        yield Finding("PACS' TLS", None, "none: whoever listens in the network sees images", "use https", required=False)


def _images(folder: Path, config: SiteConfig) -> Iterator[Finding]:
    try:
        Register(folder, config.split.key)
        if config.data.is_dicom and not index_of(config).whole:
            yield Finding("images", False, "never scanned", "excise site scan")
            return
        scan = open_source(config).scan
    except ExciseError as error:
        yield Finding("images", False, str(error), "correct [data] in site.toml, then excise site scan")
        return
    told = f"{len(scan.rows):,} images, {len(scan.problems):,} skipped"
    yield Finding("images", bool(scan.rows), told, "excise site scan --problems says why each is skipped")
    least, found = config.policy.min_count, Counter(row.split for row in scan.rows)
    for split, use in ((Split.REFERENCE, "calibrates runs"), (Split.HELD_OUT, "judges results")):
        if found[split] < least:
            told = f"{found[split]:,}; of fewer than {least}, which is policy.min_count, no number leaves"
            remedy = f"this site {use} with none: more images, or a smaller policy.min_count"
            yield Finding(f"{split.value} images", None, told, remedy, required=False)


def _device(config: SiteConfig) -> Iterator[Finding]:
    try:
        device = device_of(config)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        yield Finding("device", False, str(error).splitlines()[0], "correct `device` in site.toml, or leave it out")
        return
    if device.type != "cuda":
        yield Finding("device", True, "the processor; no GPU was found or wanted", required=False)
        return
    free, total = torch.cuda.mem_get_info(device)
    most = config.limits.gpu_share * total
    name = torch.cuda.get_device_name(device)
    told = f"{name}, {free / 2**30:.1f} of {total / 2**30:.1f} GB free, at most {most / 2**30:.1f} used"
    good = True if free >= GPU_FREE and most >= GPU_FREE else None
    remedy = (
        f"a large model takes {GPU_FREE / 2**30:g} GB: end what else runs there, raise limits.gpu_share, or use another device"
    )
    yield Finding("device", good, told, remedy, required=False)


# ---- the coordinator ----------------------------------------------------------------------------------------------------


def _coordinator(config: SiteConfig) -> Iterator[Finding]:
    if config.coordinator is None:
        yield Finding("coordinator", False, "not joined", "excise site join INVITE")
        return
    host, port, ca = config.coordinator.host, config.coordinator.port, config.coordinator.ca
    proxy = {name: value for name, value in os.environ.items() if name.lower() in ("https_proxy", "all_proxy") and value}
    yield Finding(
        "proxy",
        None if not proxy else True,
        f"{', '.join(proxy)} is set, and Flower's client goes through it" if proxy else "none is set",
        required=False,
    )
    try:
        authority = x509.load_pem_x509_certificates(ca.read_bytes())
    except (OSError, ValueError) as error:
        yield Finding("authority", False, f"{ca} cannot be read: {error}", "excise site join INVITE")
        return
    yield from (_lasts("authority", one) for one in authority)
    try:
        addresses = {str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except OSError as error:
        told = f"{host} has no address: {error.strerror or error}"
        yield Finding("name", False, told, "ask for a DNS entry, or a line in /etc/hosts")
        return
    yield Finding("name", True, f"{host} is {', '.join(sorted(addresses))}")
    try:
        socket.create_connection((host, port), timeout=10).close()
    except OSError as error:
        told = f"{host}:{port}: {error.strerror or error}"
        yield Finding("port", False, told, f"open outbound TCP {port} to {host} in the firewall")
        return
    yield Finding("port", True, f"{host}:{port} answers")
    yield from _greeting(host, port, ca)


def _service(folder: Path, config: SiteConfig) -> Iterator[Finding]:
    """The coordinator's own service; rounds go on without it, so nothing of it keeps a site from starting."""
    if config.coordinator is None:
        return
    name, remedy = "coordinator's service", f"open outbound TCP to {config.coordinator.api} in the firewall"
    try:
        own = x509.load_pem_x509_certificates((folder / IDENTITY).read_bytes())
    except (OSError, ValueError) as error:
        yield Finding(name, False, f"no certificate for it: {error}", "excise site join, by a new invite", required=False)
        return
    lasts = [_own_lasts(one) for one in own]
    yield from lasts
    if any(finding.good is False for finding in lasts):
        remedy = "first the site's certificate: no service believes one that is not valid"
    try:
        with connected(folder, config.coordinator) as coordinator:
            coordinator.report(in_use(folder))
            models = coordinator.models(config.coordinator.key)
    except CoordinatorSilent as error:
        yield Finding(name, False, str(error), remedy, required=False)
    except CoordinatorRefused as error:
        yield Finding(name, False, str(error), f"tell the coordinator {_fingerprint(folder, config)}", required=False)
    except MessageError as error:
        yield Finding(name, False, str(error), "ask the coordinator", required=False)
    else:
        yield Finding(name, True, f"{config.coordinator.api} knows this site")
        yield from (_fits(config, one) for one in models if one.current)


def _fingerprint(folder: Path, config: SiteConfig) -> str:
    """The fingerprint of the site's keys, in words: whoever is not let in yet has to tell it by telephone."""
    try:
        return f"by telephone; the fingerprint of this site's keys is {keys_of(folder, config.name).fingerprint}"
    except (ConfigError, ValueError):
        return "by telephone"


def _fits(config: SiteConfig, model: PromotedModel) -> Finding:
    """Whether the coordinator's model in use is for images as they are prepared here. Another may come, so it is no fault."""
    data, spec = config.data, model.manifest.get("spec")
    ours = {"size": data.size, "channels": data.channels, "dims": data.dims, "classes": len(data.classes)}
    theirs = spec if isinstance(spec, dict) else {}
    differ = [f"{key} {theirs[key]}, here {value}" for key, value in ours.items() if key in theirs and theirs[key] != value]
    told = f"model {model.version} wants {'; '.join(differ)}" if differ else f"model {model.version} fits this site's images"
    remedy = "correct [data] in site.toml and excise site scan, or ask the coordinator; until then rounds end with bad_data"
    return Finding("coordinator's model", not differ, told, remedy, required=False)


def _own_lasts(certificate: x509.Certificate) -> Finding:
    """How long the site's own certificate lasts. With one that has expired no other can be asked for."""
    found = _lasts("site's certificate", certificate)
    if certificate.not_valid_after_utc < datetime.now(UTC):
        remedy = "ask the coordinator to revoke, invite and let this site join anew"
    elif found.good is False:
        remedy = "look at the clock: it is not valid yet"
    else:
        remedy = "excise site renew"
    return replace(found, remedy=remedy, required=False)


def _greeting(host: str, port: int, ca: Path) -> Iterator[Finding]:
    connection = HTTPSConnection(host, port, timeout=10, context=ssl.create_default_context(cafile=str(ca)))
    try:
        connection.request("HEAD", "/")
        answer = connection.getresponse()
        certificate = connection.sock.getpeercert(binary_form=True) if connection.sock else None
    except ssl.SSLCertVerificationError as error:
        remedy = "if the coordinator renewed its authority, ask for a new invite; else somebody may be listening in between"
        yield Finding("certificate", False, error.verify_message, remedy)
        return
    except (OSError, HTTPException) as error:
        yield Finding("certificate", False, f"no TLS: {error}", "ask the coordinator whether the server runs")
        return
    finally:
        connection.close()
    yield Finding("certificate", True, f"{host} is who it says")
    if certificate:
        yield _lasts("certificate's end", x509.load_der_x509_certificate(certificate))
    told = answer.getheader("Date")
    if told is None:
        yield Finding("clock", None, "the coordinator tells no time", required=False)
        return
    differs = abs(datetime.now(UTC) - parsedate_to_datetime(told))
    said = f"{differs.total_seconds():.0f} s from the coordinator's"
    yield Finding("clock", differs <= CLOCK, said, "set the clock by NTP: systemctl status systemd-timesyncd")


def _lasts(name: str, certificate: x509.Certificate) -> Finding:
    ends, now = certificate.not_valid_after_utc, datetime.now(UTC)
    if not certificate.not_valid_before_utc <= now <= ends:
        told = f"valid from {certificate.not_valid_before_utc:%Y-%m-%d} to {ends:%Y-%m-%d}"
        return Finding(name, False, told, "look at the clock; if it is right, ask the coordinator for a new one")
    if ends - now < EXPIRES:
        return Finding(name, None, f"ends on {ends:%Y-%m-%d}", "ask the coordinator for a new one", required=False)
    return Finding(name, True, f"ends on {ends:%Y-%m-%d}")
