"""One hospital as the rest of the client sees it: its rows, its images, its lists, its policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from excise.client.config import SiteConfig, read_site_config
from excise.client.crosswalk import Crosswalk
from excise.client.forgotten import Register
from excise.client.identities import UNKNOWN, Identities
from excise.client.images import Images, load_images
from excise.client.lists import read_lists
from excise.client.selection import Selection, select
from excise.client.sources import open_source
from excise.client.table import Problem, Scan
from excise.common.errors import ConfigError
from excise.common.predicate_parser import parse
from excise.common.request import ForgetRequest


@dataclass(frozen=True)
class Site:
    """A site's data.

    Attributes
    ----------
    folder : where its `site.toml` is
    config : its `site.toml`
    scan : usable rows and what was skipped
    x : images, float32 in [0, 1], (N, channels, size, size[, size]), read from disk as they are asked for
    y_N : classes, int64 (N,); when an image has any number of labels zeros and ones, float32 (N, L)
    lists : named lists that predicates may refer to; they never leave the site
    forgotten : images that are left out because an earlier request forgot them
    """

    folder: Path
    config: SiteConfig
    scan: Scan
    x: Images
    y_N: Tensor
    lists: dict[str, frozenset[str]]
    forgotten: int = 0

    @property
    def public_names(self) -> frozenset[str]:
        """Names that may leave: its own and those of its classes."""
        return frozenset({self.config.name, *self.config.data.classes})

    def select(self, request: ForgetRequest | None) -> Selection:
        """Resolve a request over this site's rows."""
        return select(self.scan.rows, request, self.lists, self._twins(request) if request else frozenset())

    def skipped(self, request: ForgetRequest) -> list[Problem]:
        """Images that match, and that could not be used so far."""
        return [one for one in self.scan.problems if one.matches(request.predicate, self.lists)]

    def identities(self, images: Sequence[Problem], retry: bool = False) -> dict[str, str]:
        """Fingerprints of images that are not used, by item (`Identities.of`)."""
        if not images:
            return {}
        source = open_source(self.config)
        return Identities(self.config.state).of(images, source.identify, source.parallel, retry)

    def _twins(self, request: ForgetRequest) -> frozenset[int]:
        """Rows whose image is also one that matches and is skipped: an original without a label, say."""
        pixels = set(self.identities(self.skipped(request)).values()) - {UNKNOWN}
        return frozenset(i for i, fingerprint in enumerate(self.x.fingerprints) if fingerprint in pixels)


@lru_cache(maxsize=1024)  # as many as a simulation in one process may hold
def open_site(site_toml: Path) -> Site:
    """Open the site whose configuration is `site_toml`. A process opens each site once.

    Raises
    ------
    ConfigError, DataError, StorageError : the configuration, the data or the cache cannot be used
    """
    config = read_site_config(site_toml)
    scan, x = load_images(config, forgotten=Register(site_toml.parent, config.split.key).holds)
    crosswalk = Crosswalk(site_toml.parent, config.split.key)
    lists = {name: crosswalk.resolve(values) for name, values in read_lists(site_toml.parent).items()}
    predicates = [parse(where) for where in config.forgotten]
    if grown := sorted({name for predicate in predicates for name in predicate.lists()}):
        raise ConfigError(
            f"`forgotten` refers to @{grown[0]}: whoever is added to that list later would count as forgotten already. "
            "Write out the values that were forgotten"
        )
    kept = [i for i, row in enumerate(scan.rows) if not any(row.matches(p, lists) for p in predicates)]
    forgotten = scan.forgotten + len(scan.rows) - len(kept)
    if len(kept) < len(scan.rows):
        scan, x = Scan([scan.rows[i] for i in kept], scan.problems, forgotten), x.only(kept)
    return Site(site_toml.parent, config, scan, x, _labels(scan, config), lists, forgotten)


def _labels(scan: Scan, config: SiteConfig) -> Tensor:
    if not config.data.multi_label:
        return torch.tensor([row.label for row in scan.rows], dtype=torch.int64)
    y_NL = torch.zeros(len(scan.rows), len(config.data.classes))
    for row, y_L in zip(scan.rows, y_NL, strict=True):
        assert isinstance(row.label, tuple)  # as every source makes it when there are several labels
        y_L[list(row.label)] = 1
    return y_NL
